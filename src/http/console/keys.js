// The view of one key: its profile, open windows, the state of each rule, and its alerts.

import { Problem, get, segment } from './api.js';
import { AlertTable } from './alert_list.js';
import { breakable, byId, el, facts, makeScrollable, notice, reconcile, row, setText, table } from './dom.js';
import { decimal, fields, number, place, plain, time } from './format.js';
import { Poller, explain } from './poll.js';

const EVERY_MS = 2_000;

/** Returns how near a rule is to raising an alert, between 0 and 1; null if its state has no such measure. */
function nearness(state) {
  const now = state?.count ?? state?.distinct;
  const limit = state?.more_than ?? state?.at_least;
  return typeof now === 'number' && typeof limit === 'number' && limit > 0 ? Math.min(1, now / limit) : null;
}

export class Keys {
  constructor() {
    this.form = byId('key-form');
    this.notice = byId('key-notice');
    this.result = byId('key-result');
    this.poller = new Poller(EVERY_MS, () => this.#load(), (answer) => this.#show(answer), (error) => this.#fail(error));
    this.form.addEventListener('submit', (event) => {
      event.preventDefault();
      const { space, key } = this.form.elements;
      const address = `#/keys/${segment(space.value)}/${segment(key.value.trim())}`;
      if (window.location.hash === address) this.poller.again();
      else window.location.hash = address;
    });
  }

  open(space, key) {
    this.poller.stop();
    this.key = key === undefined ? null : { space, key };
    this.result.replaceChildren();
    this.panels = null;
    notice(this.notice, 'info', null);
    if (!this.key) return;
    const { elements } = this.form;
    // A kind of key that this page does not know yet can be followed from a link.
    if (![...elements.space.options].some((option) => option.value === space)) elements.space.append(el('option', {}, space));
    elements.space.value = space;
    elements.key.value = key;
    this.poller.start();
  }

  close() {
    this.poller.stop();
  }

  /** Offers these kinds of keys beside those that the page knows. */
  offer(spaces) {
    const { space } = this.form.elements;
    const known = new Set([...space.options].map((option) => option.value));
    for (const name of spaces ?? []) if (!known.has(name)) space.append(el('option', {}, name));
  }

  #load() {
    return get(`/keys/${segment(this.key.space)}/${segment(this.key.key)}`);
  }

  #fail(error) {
    const missing = error instanceof Problem && error.status === 404;
    notice(this.notice, missing ? 'info' : 'warn', missing ? error.message : explain(error));
    if (missing) {
      this.result.replaceChildren();
      this.panels = null;
    }
  }

  #build() {
    const panel = (id, title, note, content) => el(
      'section', { class: 'panel', 'aria-labelledby': id },
      el('div', { class: 'panel-head' }, el('h2', { id }, title), note), content,
    );
    const scroll = (label, node) => {
      const region = el('div', { class: 'scroll' }, node);
      makeScrollable(region, label);
      return region;
    };
    const rules = table('State of each rule', ['Rule', 'State', { text: 'Towards an alert', class: 'meter' }]);
    const windows = table('Open windows', [
      'Window', 'From', 'To', { text: 'Events', number: true }, { text: 'Sum', number: true }, { text: 'Least', number: true },
      { text: 'Greatest', number: true }, { text: 'Merchants', number: true },
    ]);
    const alerts = el('div');
    this.panels = {
      title: el('p', { class: 'panel-note' }), windowsNote: el('p', { class: 'panel-note' }), profile: el('dl', { class: 'facts' }), rules: rules.body, windows: windows.body,
      alerts: new AlertTable(alerts, 'Alerts of this key', { key: false }), noAlerts: el('p', { class: 'empty' }, 'No alerts.'),
      noWindows: el('p', { class: 'empty' }, 'No open windows.'),
    };
    alerts.append(this.panels.noAlerts);
    this.result.replaceChildren(el(
      'div', { class: 'columns' },
      el(
        'div', { class: 'column' },
        panel('k-profile', 'Profile', this.panels.title, this.panels.profile),
        panel('k-windows', 'Open windows', this.panels.windowsNote, scroll('Open windows', el('div', {}, windows.node, this.panels.noWindows))),
      ),
      el(
        'div', { class: 'column' },
        panel('k-rules', 'Rules', null, scroll('State of each rule', rules.node)),
        panel('k-alerts', 'Alerts', null, scroll('Alerts of this key', alerts)),
      ),
    ));
  }

  #show(answer) {
    notice(this.notice, 'info', answer.found ? null : 'The engine has no state of this key: it may have expired. Its alerts are stored.');
    if (!this.panels) this.#build();
    const { panels } = this;
    setText(panels.title, `as of epoch ${number(answer.as_of_epoch)}`);
    const left = answer.windows_left_out;
    setText(panels.windowsNote, left ? `${number(left)} older ones are left out` : '');
    const profile = answer.profile;
    facts(panels.profile, [
      ['Key', `${answer.key_kind} ${answer.key}`],
      ['Events', number(profile?.events)],
      ['Last event', time(profile?.last_event_time)],
      ['Last place', place(profile?.last_location)],
      ['Amounts', number(profile?.amount_count)],
      ['Mean amount', decimal(profile?.amount_mean)],
      ['Watermark', time(answer.watermark)],
      ['Worker', `process ${answer.process}, worker ${answer.worker}`],
    ]);
    this.#showRules(answer.rules);
    this.#showWindows(answer.windows);
    panels.alerts.show(answer.alerts);
    panels.alerts.node.hidden = answer.alerts.length === 0;
    panels.noAlerts.hidden = answer.alerts.length > 0;
  }

  #showRules(rules) {
    reconcile(
      this.panels.rules, rules, (rule) => rule.rule,
      (rule) => row(el('span', {}, ...breakable(rule.rule)), '', el('meter', { min: 0, max: 1, high: 0.8, 'aria-label': `${rule.rule}, towards an alert` })),
      (line, { text, state }) => {
        setText(line.children[1], text || fields(state));
        const near = nearness(state);
        const meter = line.children[2].firstChild;
        meter.hidden = near === null;
        meter.value = near ?? 0;
      },
    );
  }

  #showWindows(windows) {
    const { windows: body, noWindows } = this.panels;
    body.parentNode.hidden = windows.length === 0;
    noWindows.hidden = windows.length > 0;
    reconcile(
      body, windows, (window) => `${window.name} ${window.start} ${window.end}`,
      (window) => row(
        window.name, { content: time(window.start), class: 'nowrap' }, { content: time(window.end), class: 'nowrap' },
        ...[0, 1, 2, 3, 4].map(() => ({ content: '', number: true })),
      ),
      (line, window) => {
        const values = [number(window.count), plain(window.amount_sum), plain(window.min), plain(window.max), number(window.distinct_merchants)];
        values.forEach((value, index) => setText(line.children[index + 3], value));
      },
    );
  }
}
