// One alert with its explanation: why it was raised, the events that took part, and whether it still stands.

import { get, segment } from './api.js';
import { keyLink, severityBadge, shadowBadge, statusBadge } from './alert_list.js';
import { badge, el, facts, makeScrollable, notice, row, table } from './dom.js';
import { count, fields, number, place, plain, seconds, time } from './format.js';
import { explain } from './poll.js';
import { KINDS, kindOf, legend, timeline } from './timeline.js';

/** The greatest number of events that are shown in the table: the newest, the trigger among them. */
const EVENTS = 300;

/** Returns whether an alert can still change, in words. */
function finality({ final, status }) {
  if (final) return 'yes: it cannot change any more';
  return status === 'revoked' ? 'no: it may be raised again' : 'no: an event that arrives out of order may revoke it';
}

/** Returns the part that an event took. */
function part(event) {
  const kind = kindOf(event);
  const aside = kind !== 'aside' && !event.took_part ? ` ${KINDS.aside}` : null;
  return el('span', {}, badge(kind, KINDS[kind]), aside);
}

export class AlertDetail {
  constructor(drawer) {
    this.drawer = drawer;
    this.id = null;
  }

  async open(id) {
    this.body = this.drawer.open(`Alert ${id}`, '#/alerts', () => {
      this.id = null;
    });
    this.id = id;
    this.body.append(el('p', { class: 'empty' }, 'Looking for the events that took part …'));
    await this.#load();
  }

  /** Called with each alert that comes: an alert that is open and changes is loaded again. */
  changed(alert) {
    if (alert.alert_id === this.id) this.#load();
  }

  async #load() {
    const { id } = this;
    try {
      const alert = await get(`/alerts/${segment(id)}`, { explain: true });
      if (this.id === id) this.#show(alert);
    } catch (error) {
      if (this.id === id) notice(this.body, 'warn', explain(error));
    }
  }

  #show(alert) {
    this.drawer.title.replaceChildren(alert.rule, ' ', severityBadge(alert.severity), ' ', statusBadge(alert), ...[shadowBadge(alert)].filter(Boolean));
    const list = el('dl', { class: 'facts' });
    facts(list, [
      ['Key', keyLink(alert.key_kind, alert.key)],
      ['Event time', time(alert.event_time, true)],
      ['Last change', `epoch ${number(alert.epoch)}`],
      ['Final', finality(alert)],
      ['Rule version', plain(alert.rule_version)],
      ['Details', fields(alert.details)],
      ['Alert', el('code', {}, alert.alert_id)],
    ]);
    const revoked = alert.status === 'revoked' && !alert.explanation
      ? el('p', { class: 'notice', 'data-level': 'info' }, 'Revoked: an event with an earlier time arrived later and showed that the rule does not hold.')
      : null;
    const parts = alert.explanation ? this.#explanation(alert) : [];
    this.body.replaceChildren(...[revoked, ...parts.slice(0, 1), list, ...parts.slice(1)].filter(Boolean));
    for (const region of this.body.querySelectorAll('.scroll')) makeScrollable(region, 'Events that took part');
  }

  #explanation(alert) {
    const { explanation } = alert;
    const parts = [el('p', { class: 'summary' }, explanation.summary)];
    if (!explanation.complete) {
      const text = explanation.note ?? 'Not all events that took part are still available.';
      parts.push(el('p', { class: 'notice', 'data-level': 'warn' }, `Incomplete: ${text}`));
    } else if (explanation.note) {
      parts.push(el('p', { class: 'notice', 'data-level': 'info' }, explanation.note));
    }
    if (!explanation.events.length) return parts;
    const took = explanation.events.filter((event) => event.took_part).length;
    const late = explanation.events.filter((event) => event.arrived_after).length;
    const back = typeof explanation.look_back_ms === 'number' ? `, looking back ${seconds(explanation.look_back_ms / 1000)}` : '';
    const label = `${count(took, 'event')} took part${late ? `, ${number(late)} arrived out of order` : ''}${back}`;
    parts.push(
      el('h3', {}, 'Events that took part'), el('p', { class: 'view-note' }, `${label}.`),
      timeline(explanation, `Timeline: ${label}`, Math.max(300, this.body.clientWidth - 40)), legend(explanation.events),
      el('div', { class: 'scroll' }, this.#events(explanation.events)),
    );
    const hidden = explanation.events.length - EVENTS;
    if (hidden > 0) parts.push(el('p', { class: 'view-note' }, `The table leaves out the ${count(hidden, 'oldest event')}.`));
    return parts;
  }

  /** Returns the table of events, the newest first; columns that no event fills are left out. */
  #events(events) {
    const has = (field) => events.some((event) => event[field] !== null && event[field] !== undefined);
    const columns = [
      ['Event time', (event) => ({ content: time(event.event_time, true), class: 'nowrap' })],
      ['Part', (event) => part(event)],
      has('event_type') && ['Type', (event) => plain(event.event_type)],
      has('amount') && [{ text: 'Amount', number: true }, (event) => ({ content: event.amount ? `${event.amount} ${event.currency ?? ''}` : '–', number: true, class: 'nowrap' })],
      has('merchant_id') && ['Merchant', (event) => plain(event.merchant_id)],
      has('location') && ['Place', (event) => ({ content: place(event.location), class: 'nowrap' })],
      has('before') && ['State before', (event) => ({ content: fields(event.before), class: 'before' })],
      [{ text: 'Record', number: true }, (event) => ({ content: `${event.partition}:${event.offset}`, number: true, class: 'nowrap' })],
      has('epoch') && [{ text: 'Epoch', number: true }, (event) => ({ content: number(event.epoch), number: true })],
      ['Event', (event) => ({ content: el('code', {}, plain(event.event_id)), class: 'event' })],
    ].filter(Boolean);
    const rows = events.slice(-EVENTS).reverse().map((event) => {
      const line = row(...columns.map(([, cell]) => cell(event)));
      line.dataset.kind = kindOf(event);
      return line;
    });
    return table('Events that took part, the newest first', columns.map(([column]) => column), rows).node;
  }
}
