// Sends dead letters again: first as a check that sends nothing, then in earnest. Both show the same counts.

import { post } from './api.js';
import { el } from './dom.js';
import { count } from './format.js';
import { explain } from './poll.js';

/** Returns the words for an answer of the engine. */
export function resultText(answer) {
  const { sent, dry_run: dry, skipped } = answer;
  const verb = dry ? `${count(sent, 'record')} would be sent` : `${count(sent, 'record')} sent`;
  const reasons = [
    [skipped?.sent_before, 'sent before'],
    [skipped?.late, 'late: would be late again'],
    [skipped?.truncated, 'truncated: the bytes are not complete'],
    [answer.exhausted, 'sent too often'],
    [answer.of_other_pipelines, 'of other pipelines'],
  ].filter(([number]) => number > 0).map(([number, text]) => `${number} ${text}`);
  return reasons.length ? `${verb}. Left out: ${reasons.join('; ')}.` : `${verb}.`;
}

/**
 * Returns a form with `Check` and `Send again`. `target` returns the body of the request, `fields` come first in the
 * form, and `onSent` is called after something has been sent. With `careful`, sending needs a check first. `objection`
 * returns why the request must not be sent, or null.
 */
export function retryForm({ target, fields, late, careful, onSent, objection = () => null }) {
  const output = el('p', { class: 'result', role: 'status' });
  const includeLate = el('input', { type: 'checkbox' });
  const check = el('button', { type: 'button' }, 'Check');
  const send = el('button', { type: 'submit', class: 'primary' }, 'Send again');
  const say = (level, text) => {
    output.dataset.level = level;
    output.textContent = text;
  };
  const busy = (is) => {
    check.disabled = is;
    send.disabled = is;
  };
  const ask = async (dry) => {
    const against = objection();
    if (against) {
      say('bad', against);
      return;
    }
    busy(true);
    say('info', dry ? 'Checking …' : 'Sending …');
    let sendable = !careful;
    try {
      const answer = await post('/dead-letters/retry', { ...target(), dry_run: dry, include_late: includeLate.checked });
      say(answer.sent > 0 ? 'ok' : 'warn', resultText(answer));
      sendable ||= dry && answer.sent > 0;
      if (!dry) onSent(answer);
    } catch (error) {
      say('bad', explain(error));
    }
    busy(false);
    send.disabled = !sendable;
  };
  const stale = () => {
    say('info', '');
    send.disabled = careful;
  };
  includeLate.addEventListener('change', stale);
  check.addEventListener('click', () => ask(true));
  send.disabled = careful;
  return el(
    'form', {
      class: 'retry',
      oninput: stale,
      onsubmit: (event) => {
        event.preventDefault();
        ask(false);
      },
    },
    ...fields,
    late ? el('label', { class: 'check' }, includeLate, 'Send late records too') : null,
    el('div', { class: 'buttons' }, check, send), output,
  );
}
