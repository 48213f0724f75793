// The overview: state and reason, four charts, the flow, and the tables below it.

import { Tile } from './chart.js';
import { badge, byId, el, facts, makeScrollable, reconcile, row, setAttribute, setText, svg, table } from './dom.js';
import { epochsBehind, findings, headline } from './findings.js';
import { Flow, flowNote } from './flow.js';
import { bytes, count, milliseconds, number, rate, seconds, short, time } from './format.js';
import { engineNow } from './history.js';

const MINUTE_MS = 60_000;
/** The slowest partition is marked if the fastest is ahead of it by this much. */
const DRIFT_MS = 1_000;
/** The greatest number of checkpoints that the page remembers. */
const CHECKPOINTS = 6;

const SIGNS = { ok: 'M5 13l4 4L19 7', warn: 'M12 5v9M12 18v.5', bad: 'M6 6l12 12M18 6L6 18', unknown: 'M6 12h12' };
const LISTS = { ok: 'ok', failing: 'bad', unread: 'warn' };
const STATES = { live: 'ok', idle: 'info', held: 'bad' };

export class Overview {
  constructor() {
    this.flow = new Flow();
    this.checkpoints = [];
    const span = 'last 5 minutes';
    this.tiles = {
      events: new Tile('Events', span, rate),
      lag: new Tile('Lag', span, short),
      watermark: new Tile('Watermark lag', span, seconds),
      latency: new Tile('Latency p99', 'of alerts, since the start', milliseconds),
    };
    byId('tiles').append(...Object.values(this.tiles).map((tile) => tile.node));
    this.#tables();
  }

  #tables() {
    const put = (id, caption, columns) => {
      const { node, body } = table(caption, columns);
      byId(id).append(node);
      makeScrollable(byId(id), caption);
      return body;
    };
    const num = (text) => ({ text, number: true });
    this.partitions = put('partitions', 'Partitions of the source', ['Partition', 'State', num('Events'), num('Lag'), num('Behind'), { text: 'Watermark', class: 'wide' }]);
    this.sinks = put('sinks', 'Sinks', ['Sink', { ...num('Through epoch'), class: 'wide' }, num('Behind'), num('Commits'), num('Mean commit'), num('Retries')]);
    this.lists = put('lists', 'Lists that rules look values up in', ['List', 'State', num('Entries'), num('After epoch'), num('Read')]);
    this.checkpointRows = put('checkpoints', 'Checkpoints, the newest first', ['Taken', num('Epoch'), num('Size'), num('After')]);
    this.noCheckpoint = el('p', { class: 'empty' });
    byId('checkpoints').append(this.noCheckpoint);
    this.rejected = put('rejected', 'Rejected records and fields by reason', ['Reason', num('Records'), num('Rate')]);
  }

  /** Shows the newest status of the history. */
  show(history) {
    const status = history.latest;
    const growth = history.change((past) => past.lag_records, MINUTE_MS);
    const found = findings(status, growth);
    this.#banner(status, found);
    this.#tiles(status, history);
    this.#flow(status, history, found);
    this.#partitions(status, history);
    this.#sinks(status, history);
    this.#lists(status);
    this.#checkpoints(status);
    this.#rejected(status, history);
    this.#process(status);
  }

  /** Shows that the engine does not answer; what is known stays visible. */
  showProblem(state, reason) {
    this.#headline({ level: 'bad', state, reason });
    byId('findings').hidden = true;
  }

  #headline({ level, state, reason }) {
    setAttribute(byId('banner'), 'data-level', level);
    setText(byId('banner-state'), state);
    setText(byId('banner-reason'), reason);
    const mark = byId('banner-mark');
    if (mark.dataset.level === level) return;
    mark.dataset.level = level;
    mark.replaceChildren(svg('svg', { viewBox: '0 0 24 24' }, svg('path', { d: SIGNS[level] ?? SIGNS.unknown })));
  }

  #banner(status, found) {
    this.#headline(headline(status));
    const list = byId('findings');
    list.hidden = found.length === 0;
    reconcile(list, found, (finding) => `${finding.level} ${finding.node}`, () => el('li', {}), (item, finding) => {
      setAttribute(item, 'data-level', finding.level);
      setText(item, finding.text);
    });
    facts(byId('banner-facts'), [
      ['Events', short(status.events)],
      ['Keys', short(status.keys)],
      ['Up for', seconds(status.uptime_s)],
    ]);
  }

  #tiles(status, history) {
    const { tiles } = this;
    const behind = status.state === 'starting' ? 'warn' : 'ok';
    tiles.events.show(history.rates((past) => past.events), 'ok', `${number(status.events)} since the start`);
    tiles.lag.show(history.series((past) => past.lag_records), status.state === 'stalled' && status.lag_records ? 'bad' : behind, 'records not yet read');
    tiles.watermark.show(
      history.series((past) => past.watermark.lag_s), status.state === 'stalled' ? 'bad' : 'ok',
      status.watermark.ended ? 'the input has ended' : 'behind the clock',
    );
    tiles.latency.show(history.series((past) => past.latency.p99_ms), 'ok', `of alerts; p50 ${milliseconds(status.latency.p50_ms)}`);
  }

  #flow(status, history, found) {
    const levels = { warn: 0, bad: 1 };
    const held = new Map();
    for (const { node, level } of found) {
      if (node && (levels[level] > (levels[held.get(node)] ?? -1))) held.set(node, level);
    }
    byId('flow-note').replaceChildren(flowNote(status));
    if (status.flow?.nodes?.length) this.flow.show(status, history, held);
  }

  #partitions(status, history) {
    const now = engineNow(status);
    const active = status.partitions.filter((one) => one.state !== 'idle' && one.watermark);
    const slowest = active.reduce((least, one) => (!least || one.watermark < least.watermark ? one : least), null);
    const fastest = Math.max(...active.map((one) => Date.parse(one.watermark)));
    const marked = slowest && fastest - Date.parse(slowest.watermark) >= DRIFT_MS ? slowest.partition : null;
    const counted = status.partitions.some((one) => typeof one.next_offset === 'number');
    this.partitions.parentNode.classList.toggle('without-events', !counted);
    const live = status.partitions.filter((one) => one.state === 'live').length;
    setText(byId('partitions-note'), `${number(live)} of ${number(status.partitions.length)} live`);
    reconcile(
      this.partitions, status.partitions, (one) => one.partition,
      (one) => row(String(one.partition), '', ...['events', 'lag', 'behind'].map((name) => ({ content: '', number: true, class: name })), { content: '', class: 'wide nowrap' }),
      (line, one) => {
        const [, state, events, lag, behind, watermark] = line.children;
        const text = one.state === 'held' ? `held ${seconds(one.held_s)}` : one.state;
        state.replaceChildren(badge(STATES[one.state] ?? 'info', text));
        if (one.partition === marked) state.append(' ', el('span', { class: 'hint', title: 'The least watermark of all partitions that are not idle' }, 'slowest'));
        setText(events, rate(history.rate((past) => past.partitions.find((other) => other.partition === one.partition)?.next_offset)));
        setText(lag, short(one.lag_records));
        setText(behind, one.watermark ? seconds((now - Date.parse(one.watermark)) / 1000) : '–');
        watermark.replaceChildren(time(one.watermark));
      },
    );
  }

  #sinks(status, history) {
    reconcile(
      this.sinks, status.sinks, (sink) => sink.name,
      (sink) => row(sink.name, { content: '', number: true, class: 'wide' }, ...[0, 1, 2, 3].map(() => ({ content: '', number: true }))),
      (line, sink) => {
        const behind = epochsBehind(status, sink);
        const commits = history.rate((past) => past.sinks.find((other) => other.name === sink.name)?.commits);
        const values = [
          number(sink.through_epoch), behind === null ? '–' : count(behind, 'epoch'), rate(commits),
          sink.committing_s >= 1 ? `in commit ${seconds(sink.committing_s)}` : milliseconds(sink.mean_commit_ms), number(sink.retries),
        ];
        values.forEach((value, index) => setText(line.children[index + 1], value));
        setAttribute(line, 'data-level', sink.committing_s >= 5 ? 'bad' : null);
      },
    );
  }

  #lists(status) {
    const lists = status.lists ?? [];
    byId('lists-panel').hidden = lists.length === 0;
    reconcile(
      this.lists, lists, (list) => list.name,
      (list) => row(list.name, '', ...[0, 1, 2].map(() => ({ content: '', number: true }))),
      (line, list) => {
        const [, state, entries, after, read] = line.children;
        state.replaceChildren(badge(LISTS[list.state] ?? 'info', list.state));
        setAttribute(line, 'title', list.error ? `${list.source}: ${list.error}` : list.source);
        setText(entries, number(list.entries));
        setText(after, list.version ? number(list.version.after_epoch) : '–');
        setText(read, typeof list.age_s === 'number' ? `${seconds(list.age_s)} ago` : '–');
      },
    );
  }

  #checkpoints(status) {
    const { checkpoint } = status;
    const note = checkpoint ? `the last ${seconds(checkpoint.age_s)} ago` : '';
    setText(byId('checkpoint-note'), note);
    byId('checkpoints').firstChild.hidden = !checkpoint;
    const none = status.generation === null
      ? 'Without a ledger, no checkpoints are taken: a start begins anew.'
      : 'No checkpoint has been taken: a start would replay from the beginning.';
    setText(this.noCheckpoint, none);
    this.noCheckpoint.hidden = Boolean(checkpoint);
    if (!checkpoint) return;
    if (this.checkpoints[0]?.time !== checkpoint.time) {
      const after = this.checkpoints[0] ? (Date.parse(checkpoint.time) - Date.parse(this.checkpoints[0].time)) / 1000 : null;
      this.checkpoints = [{ ...checkpoint, after }, ...this.checkpoints].slice(0, CHECKPOINTS);
    }
    reconcile(
      this.checkpointRows, this.checkpoints, (one) => one.time,
      (one) => row(
        { content: time(one.time), class: 'nowrap' }, { content: number(one.epoch), number: true },
        { content: bytes(one.bytes), number: true }, { content: seconds(one.after), number: true },
      ),
      () => {},
    );
  }

  #rejected(status, history) {
    const letters = Object.entries(status.dead_letters).map(([name, total]) => (
      { id: name, label: name, total, of: (past) => past.dead_letters[name] }
    ));
    const fields = Object.entries(status.field_errors).map(([name, total]) => (
      { id: `field ${name}`, label: `field ${name}, treated as absent`, total, of: (past) => past.field_errors[name] ?? 0 }
    ));
    reconcile(
      this.rejected, [...letters, ...fields], (one) => one.id,
      (one) => row(one.label, { content: '', number: true }, { content: '', number: true }),
      (line, one) => {
        setText(line.children[1], number(one.total));
        setText(line.children[2], rate(history.rate(one.of)));
        setAttribute(line, 'data-quiet', one.total === 0 ? 'yes' : null);
      },
    );
  }

  #process(status) {
    facts(byId('process'), [
      ['Process', `${status.process + 1} of ${status.processes}`],
      ['Workers', number(status.workers)],
      ['Busy', Object.values(status.workers_busy).map((busy) => `${Math.round(busy * 100)} %`).join(', ') || 'not measured'],
      ['Generation', status.generation === null ? 'no ledger' : number(status.generation)],
      ['Restarts', number(status.restarts)],
      ['Epoch', number(status.epoch)],
      ['Keys', number(status.keys)],
      ['Open windows', number(status.open_windows)],
      ['In flight', bytes(status.bytes_in_flight)],
      ['Memory', bytes(status.resident_bytes)],
      ['Watermark', time(status.watermark.time)],
      ['Version', status.version],
    ]);
  }
}
