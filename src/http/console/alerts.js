// The view of alerts and the latest alerts of the overview: what is stored, then what the stream brings.

import { get } from './api.js';
import { AlertList, AlertTable, SHOWN, isFiltered } from './alert_list.js';
import { byId, el, makeScrollable, notice, setText } from './dom.js';
import { count } from './format.js';
import { explain, updates } from './poll.js';

const PAGE = 50;
const RECENT = 8;
const RENDER_MS = 200;
const RETRY_MS = 10_000;
/** Screen readers hear of new alerts at most this often. */
const ANNOUNCE_MS = 15_000;

export class Alerts {
  constructor(stream) {
    this.stream = stream;
    this.list = new AlertList({ mode: 'live' });
    this.recent = new AlertList();
    this.table = new AlertTable(byId('alerts'), 'Alerts, the newest first', { details: true });
    this.recentTable = new AlertTable(byId('recent'), 'Latest alerts');
    makeScrollable(byId('alerts'), 'Alerts');
    makeScrollable(byId('recent'), 'Latest alerts');
    this.form = byId('alert-filters');
    this.older = byId('older');
    this.waiting = 0;
    this.news = { raised: 0, revoked: 0 };
    this.#listen(stream);
  }

  #listen(stream) {
    stream.addEventListener('alert', ({ detail }) => this.#take(detail));
    stream.addEventListener('open', () => {
      setText(byId('stream-state'), 'New alerts appear as they come.');
      this.load();
    });
    stream.addEventListener('lost', ({ detail }) => this.#lost(detail));
    this.form.addEventListener('input', () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.#filter(), 250);
    });
    this.form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#filter();
    });
    this.older.addEventListener('click', () => this.#loadOlder());
    updates.addEventListener('change', () => this.#render());
    setInterval(() => this.#announce(), ANNOUNCE_MS);
  }

  /** Adds the rules to choose from. */
  setRules(ids) {
    const select = this.form.elements.rule;
    for (const id of ids) {
      if (![...select.options].some((option) => option.value === id)) select.append(el('option', { value: id }, id));
    }
  }

  /** Called with each alert that comes. */
  onChange(callback) {
    this.changed = callback;
  }

  #take(alert) {
    if (alert.mode === 'live') this.recent.add(alert);
    if (this.list.add(alert) && updates.paused) this.waiting += 1;
    this.news[alert.status] += 1;
    this.setRules([alert.rule]);
    this.changed?.(alert);
    this.#renderSoon();
  }

  #lost(error) {
    if (error?.unavailable) setText(byId('stream-state'), explain(error));
    else setText(byId('stream-state'), 'The stream of alerts is interrupted; trying again.');
    // The list may be served although the stream is not.
    if (error?.unavailable && !this.loaded) this.load();
  }

  #filter() {
    const { rule, severity, status, mode, key } = this.form.elements;
    const filter = { mode: mode.value, rule: rule.value, severity: severity.value, status: status.value, key: key.value.trim() };
    if (JSON.stringify(filter) === JSON.stringify(this.list.filter)) return;
    this.stream.setMode(filter.mode);
    this.list.reset(filter);
    this.table.shown = false;
    this.load();
  }

  /** Loads the newest alerts, also those that came while the page was hidden or the stream was broken. */
  async load() {
    const { list } = this;
    const filter = list.filter;
    try {
      const page = await get('/alerts', { ...filter, limit: PAGE });
      if (list.filter !== filter) return;
      this.loaded = true;
      this.cursor = page.next_cursor;
      page.alerts.forEach((alert) => list.add(alert));
      if (!isFiltered(filter)) page.alerts.forEach((alert) => this.recent.add(alert));
      this.setRules(page.alerts.map((alert) => alert.rule));
      this.problem = null;
    } catch (error) {
      if (list.filter !== filter) return;
      this.problem = error;
      clearTimeout(this.retry);
      this.retry = setTimeout(() => this.load(), RETRY_MS);
    }
    this.#render(true);
  }

  async #loadOlder() {
    const filter = this.list.filter;
    this.older.disabled = true;
    try {
      const page = await get('/alerts', { ...filter, limit: PAGE, cursor: this.cursor });
      if (this.list.filter !== filter) return;
      this.cursor = page.next_cursor;
      this.table.shown = false;
      page.alerts.forEach((alert) => this.list.add(alert));
    } catch (error) {
      this.problem = error;
    }
    this.older.disabled = false;
    this.#render(true);
  }

  /** Shows the lists a moment later: alerts often come many at a time. */
  #renderSoon() {
    this.pending ??= setTimeout(() => {
      this.pending = null;
      this.#render();
    }, RENDER_MS);
  }

  /** Shows the lists; while paused, only what the reader has asked for. */
  #render(asked = false) {
    if (!updates.paused) this.waiting = 0;
    if (!updates.paused || asked) {
      const alerts = this.list.sorted();
      this.table.show(alerts);
      this.recentTable.show(this.recent.sorted().slice(0, RECENT));
      this.older.hidden = !this.cursor || alerts.length >= SHOWN;
      this.table.node.hidden = alerts.length === 0;
      this.recentTable.node.hidden = this.recent.alerts.size === 0;
    }
    this.#say();
  }

  #say() {
    const shown = this.list.alerts.size;
    const empty = isFiltered(this.list.filter) ? 'No alert matches.' : 'No alerts yet.';
    const none = this.loaded && shown === 0;
    const level = this.problem ? 'warn' : 'info';
    notice(byId('alerts-notice'), level, this.problem ? explain(this.problem) : none ? empty : null);
    const most = shown >= SHOWN ? '; older ones are left out, filter to see them' : '';
    const waiting = this.waiting ? `; ${count(this.waiting, 'change')} waiting` : '';
    setText(byId('alerts-count'), `${count(shown, 'alert')} shown${most}${waiting}`);
    if (this.recent.alerts.size === 0 && !byId('recent').querySelector('.empty')) {
      byId('recent').append(el('p', { class: 'empty' }));
    }
    const recentEmpty = byId('recent').querySelector('.empty');
    if (recentEmpty) {
      recentEmpty.hidden = this.recent.alerts.size > 0;
      setText(recentEmpty, this.problem ? explain(this.problem) : 'No alerts yet.');
    }
  }

  #announce() {
    const { raised, revoked } = this.news;
    this.news = { raised: 0, revoked: 0 };
    if ((!raised && !revoked) || updates.paused) return;
    const parts = [raised && `${count(raised, 'alert')} raised`, revoked && `${count(revoked, 'alert')} revoked`];
    setText(byId('announce-alerts'), parts.filter(Boolean).join(', '));
  }
}
