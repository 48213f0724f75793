// A list of alerts, the newest change first: what was loaded and what has come since, one entry an alert.

import { badge, breakable, el, reconcile, setAttribute, setText, table } from './dom.js';
import { fields, time } from './format.js';
import { segment } from './api.js';

/** The greatest number of alerts that a list shows. */
export const SHOWN = 500;

const LEVELS = { critical: 'bad', high: 'bad', medium: 'warn', low: 'info' };
/** How many of the four bars of a severity are filled: its shape, beside its colour and its word. */
const BARS = { low: 1, medium: 2, high: 3, critical: 4 };

export function severityBadge(severity) {
  const node = badge(LEVELS[severity] ?? 'info', '');
  const bars = el('span', { class: 'bars', 'data-bars': BARS[severity] ?? 1, 'aria-hidden': 'true' }, ...[1, 2, 3, 4].map(() => el('i')));
  node.classList.add('severity');
  node.append(bars, el('span', { class: 'word' }, severity));
  return node;
}

export function statusBadge(alert) {
  if (alert.status === 'revoked') return badge('revoked', 'revoked');
  return badge('raised', alert.final ? 'raised, final' : 'raised');
}

/** Returns the badge of a rule or alert whose mode is shadow; null for a live one. */
export function shadowBadge({ mode }) {
  return mode === 'shadow' ? badge('shadow', 'shadow') : null;
}

/** Returns true if a filter leaves out live alerts, or shows others. */
export function isFiltered({ mode, ...others }) {
  return mode !== 'live' || Object.values(others).some(Boolean);
}

export function keyLink(kind, key) {
  return el('a', { href: `#/keys/${segment(kind)}/${segment(key)}`, class: 'key' }, `${kind} ${key}`);
}

/** The alerts that match a filter, without the page. */
export class AlertList {
  constructor(filter = {}) {
    this.reset(filter);
  }

  reset(filter) {
    this.filter = filter;
    this.alerts = new Map();
  }

  matches(alert) {
    return Object.entries(this.filter).every(
      ([field, wanted]) => !wanted || (field === 'mode' && wanted === 'all') || String(alert[field]) === wanted,
    );
  }

  /**
   * Takes an alert; an older state of one that is known is left out. An alert that is shown and no longer matches, because
   * it has been revoked, stays where it is: it must not vanish under the reader.
   */
  add(alert) {
    const known = this.alerts.get(alert.alert_id);
    if (known ? known.epoch > alert.epoch : !this.matches(alert)) return false;
    // A change keeps the place of the alert: revoked is shown where raised was.
    this.alerts.set(alert.alert_id, { ...alert, order: known?.order ?? alert.epoch });
    // While the page is paused, nothing else forgets old alerts.
    if (this.alerts.size > 2 * SHOWN) this.sorted();
    return true;
  }

  /** Returns the alerts in order, and forgets those beyond the greatest number. */
  sorted() {
    const sorted = [...this.alerts.values()].sort(
      (a, b) => b.order - a.order || b.event_time.localeCompare(a.event_time) || a.alert_id.localeCompare(b.alert_id),
    );
    for (const { alert_id: id } of sorted.splice(SHOWN)) this.alerts.delete(id);
    return sorted;
  }
}

/** Shows alerts as a table; `details` and `key` say whether it has these columns. */
export class AlertTable {
  constructor(place, caption, { details = false, key = true } = {}) {
    const columns = [
      'Alert', { text: 'Severity', class: 'severity-head' }, key && 'Key', 'Event time', details && { text: 'Details', class: 'wide' }, 'Status',
    ];
    const { node, body } = table(caption, columns.filter(Boolean));
    node.classList.add('alerts');
    this.body = body;
    this.columns = { details, key };
    this.node = node;
    place.append(node);
  }

  /** Shows alerts; those that come after the first time are marked as new for a moment. */
  show(alerts) {
    const first = !this.shown;
    this.shown = true;
    reconcile(
      this.body, alerts, (alert) => alert.alert_id,
      (alert) => this.#create(alert, !first),
      (line, alert) => this.#update(line, alert),
    );
  }

  #create(alert, isNew) {
    const cells = [
      el('th', { scope: 'row' }, el('a', { href: `#/alerts/${segment(alert.alert_id)}`, 'aria-label': `${alert.rule}, ${alert.key_kind} ${alert.key}` }, ...breakable(alert.rule)), shadowBadge(alert)),
      el('td', {}, severityBadge(alert.severity)),
      this.columns.key && el('td', {}, keyLink(alert.key_kind, alert.key)),
      el('td', { class: 'nowrap' }, time(alert.event_time)),
      this.columns.details && el('td', { class: 'wide details' }),
      el('td', { class: 'status' }),
    ];
    return el('tr', { class: isNew ? 'new' : null }, ...cells.filter(Boolean));
  }

  #update(line, alert) {
    if (line.epoch === alert.epoch && line.dataset.status === alert.status && line.final === alert.final) return;
    Object.assign(line, { epoch: alert.epoch, final: alert.final });
    setAttribute(line, 'data-status', alert.status);
    line.querySelector('.status').replaceChildren(statusBadge(alert));
    const details = line.querySelector('.details');
    if (details) setText(details, fields(alert.details));
  }
}
