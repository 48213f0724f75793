// One dead letter: why it was rejected, its value with the place marked, and a form that edits it and sends it again.
// Also one group of dead letters, to be sent again as a whole.

import { get, segment } from './api.js';
import { badge, el, facts, notice } from './dom.js';
import { bytes, plain, time } from './format.js';
import { payload } from './payload.js';
import { explain } from './poll.js';
import { retryForm } from './retry.js';

/** The time that the engine may take to read letters from a topic. */
export const READ_MS = 30_000;

/** The engine shows this in place of a value that its configuration masks. */
const MASK = '"***"';

/** Returns why an edited value must not be sent, or null: the mask would be sent in place of the value that it hides. */
export function objectionTo(edited, original) {
  return edited !== original && original?.includes(MASK) && edited.includes(MASK)
    ? `The value has masked fields, shown as ${MASK}. An edited value is sent as it is: write the real value in place of each mask.`
    : null;
}

export class LetterDetail {
  constructor(drawer, onSent) {
    this.drawer = drawer;
    this.onSent = onSent;
    this.id = null;
  }

  /** Opens a letter; `known` is the letter if the list has it. */
  async open(id, known) {
    const body = this.drawer.open(`Dead letter ${id}`, '#/dead-letters', () => {
      this.id = null;
    });
    this.id = id;
    if (known) {
      this.#show(body, known);
      return;
    }
    body.append(el('p', { class: 'empty' }, 'Looking for the letter …'));
    try {
      const letter = await get(`/dead-letters/${segment(id)}`, {}, READ_MS);
      if (this.id === id) this.#show(body, letter);
    } catch (error) {
      if (this.id === id) notice(body, 'warn', explain(error));
    }
  }

  #show(body, letter) {
    const list = el('dl', { class: 'facts' });
    const { source } = letter;
    facts(list, [
      ['Reason', badge('reason', letter.reason)],
      ['Field', plain(letter.field)],
      ['Rejected', time(letter.time, true)],
      ['Record', `${source.topic}, partition ${source.partition}, offset ${source.offset}`],
      ['Record timestamp', time(source.timestamp, true)],
      ['Record key', plain(letter.key)],
      ['Producer', plain(letter.producer)],
      ['Size', letter.original_bytes ? `${bytes(letter.bytes)} of ${bytes(letter.original_bytes)}` : bytes(letter.bytes)],
      ['Sent again', letter.sent_again ? 'yes' : letter.retries ? `no, but ${letter.retries} times before` : 'no'],
    ]);
    body.replaceChildren(
      el('p', { class: 'summary' }, letter.message ?? `Rejected as ${letter.reason}.`), el('h3', {}, 'Value'), payload(letter), list,
      el('h3', {}, 'Send again'), this.#form(letter),
    );
  }

  #form(letter) {
    const text = typeof letter.value === 'string';
    const area = el('textarea', { name: 'value', rows: 6, spellcheck: 'false', autocomplete: 'off' });
    area.value = letter.value ?? '';
    const hint = text
      ? 'The record goes back to its topic with this value. Check says what would happen, and sends nothing.'
      : 'The value is not text, so it cannot be edited here; it is sent again as it is.';
    // Only an edited value is sent: the engine has the exact bytes of the original.
    const target = () => (text && area.value !== letter.value ? { id: letter.id, value: area.value } : { id: letter.id });
    return retryForm({
      target,
      fields: [el('p', { class: 'view-note' }, hint), text ? el('label', { class: 'stack' }, 'Value', area) : null],
      late: letter.reason === 'late',
      careful: false,
      objection: () => objectionTo(area.value, letter.value),
      onSent: (answer) => answer.sent > 0 && this.onSent([letter.id]),
    });
  }

  /** Opens a group, to be sent again as a whole. */
  openGroup(group) {
    const name = [group.reason, group.field && `field ${group.field}`, group.producer].filter(Boolean).join(', ');
    const body = this.drawer.open(`Send again: ${name}`, null);
    const wider = group.field && group.producer
      ? null
      : el('p', { class: 'notice', 'data-level': 'info' }, `Letters are chosen by what the group names: those of ${group.field ? 'every producer' : 'every field'} are included.`);
    body.append(...[
      el('p', {}, 'All letters of this group go back to their topic as they are. Check counts them first; only then can they be sent.'),
      wider,
      retryForm({
        target: () => Object.fromEntries(['reason', 'field', 'producer'].map((name) => [name, group[name]]).filter(([, value]) => value)),
        fields: [],
        late: group.reason === 'late',
        careful: true,
        onSent: () => this.onSent([]),
      }),
    ].filter(Boolean));
  }
}
