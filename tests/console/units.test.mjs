// The console's decisions without a browser: what the banner says, rates, lists, the stream's format, the layout.

import assert from 'node:assert/strict';
import test from 'node:test';

const console_ = new URL('../../src/http/console/', import.meta.url);
const load = (name) => import(new URL(name, console_));
const { findings, headline, epochsBehind } = await load('findings.js');
const { History, engineNow } = await load('history.js');
const { AlertList, SHOWN, isFiltered } = await load('alert_list.js');
const { EventParser } = await load('stream.js');
const { place } = await load('layout.js');
const { resultText } = await load('retry.js');
const { objectionTo } = await load('letter_detail.js');
const { bytes, fields, seconds } = await load('format.js');

const status = (changes = {}) => ({
  state: 'ready', reason: null, stalled: [], generation: 1, epoch: 100, uptime_s: 500, restarts: 0, lag_records: 0, events: 0,
  frontier: { epoch: 98, age_s: 0, held_by: null }, watermark: { time: '2026-01-01T00:00:00.000Z', lag_s: 5, ended: false },
  partitions: [], sinks: [], flow: { nodes: [], edges: [] }, ...changes,
});
const alert = (id, changes = {}) => ({
  alert_id: id, status: 'raised', rule: 'r', severity: 'high', key: '1', epoch: 1, event_time: '2026-01-01T00:00:00.000Z', ...changes,
});

test('the headline follows the state and its reason', () => {
  assert.deepEqual(headline(status()), { level: 'ok', state: 'Ready', reason: 'Nothing holds up the results.' });
  assert.equal(headline(status({ state: 'starting', reason: 'opening sink a' })).reason, 'opening sink a');
  assert.equal(headline(status({ state: 'stalled', reason: 'partition 3' })).level, 'bad');
  assert.match(headline(status({ state: 'stalled', stalled: ['ledger', 'unheard_of'] })).reason, /the ledger; for unheard of/);
  const held = headline(status({ frontier: { epoch: 1, age_s: 9, held_by: 'sink postgres' } }));
  assert.deepEqual(held, { level: 'warn', state: 'Ready, but held up', reason: 'sink postgres' });
});

test('findings name the partition, the sink and a growing lag', () => {
  const found = findings(status({
    partitions: [{ partition: 3, state: 'held', held_s: 12 }, { partition: 4, state: 'live', held_s: 0 }],
    sinks: [{ name: 'postgres', committing_s: 8 }, { name: 'kafka', committing_s: null }],
    lag_records: 500,
  }), 400);
  assert.deepEqual(found.map((one) => [one.level, one.node]), [['bad', 'source'], ['bad', 'sink:postgres'], ['warn', 'source']]);
  assert.match(found[0].text, /^Partition 3 held for 12 s$/);
  assert.deepEqual(findings(status(), null), []);
  assert.deepEqual(findings(status({ lag_records: 1_000_000 }), 150), [], 'a small change of a great lag is no growth');
});

test('a sink is behind by the epochs that are not committed', () => {
  assert.equal(epochsBehind(status(), { through_epoch: 100 }), 0);
  assert.equal(epochsBehind(status(), { through_epoch: 91 }), 9);
  assert.equal(epochsBehind(status({ epoch: null }), { through_epoch: 90 }), null);
});

test('rates come from totals and end with a restart', () => {
  const history = new History();
  for (let second = 0; second <= 10; second += 1) history.add(status({ events: second * 50, uptime_s: second }), second * 1000);
  assert.equal(history.rate((one) => one.events), 50);
  assert.equal(history.rate((one) => one.missing), null);
  assert.equal(history.change((one) => one.events, 10_000), 500);
  assert.equal(history.change((one) => one.events, 60_000), null, 'the page has not been open for so long');
  history.add(status({ events: 3, uptime_s: 1 }), 11_000);
  assert.equal(history.rate((one) => one.events), null);
  assert.equal(engineNow(history.latest), Date.parse('2026-01-01T00:00:05.000Z'));
});

test('a revoked alert stays in the place of the raised one', () => {
  const list = new AlertList();
  ['a', 'b', 'c'].forEach((id, index) => list.add(alert(id, { epoch: index })));
  assert.ok(list.add(alert('a', { epoch: 9, status: 'revoked' })));
  assert.ok(!list.add(alert('a', { epoch: 0 })), 'an older state does not replace a newer one');
  assert.deepEqual(list.sorted().map((one) => [one.alert_id, one.status]), [['c', 'raised'], ['b', 'raised'], ['a', 'revoked']]);
});

test('a filter keeps what it shows when that is revoked', () => {
  const list = new AlertList({ status: 'raised', severity: '' });
  list.add(alert('a'));
  list.add(alert('b', { status: 'revoked' }));
  list.add(alert('a', { status: 'revoked', epoch: 2 }));
  assert.deepEqual(list.sorted().map((one) => [one.alert_id, one.status]), [['a', 'revoked']]);
});

test('a filter of modes leaves out alerts of the other', () => {
  const of = (mode) => {
    const list = new AlertList({ mode, status: '' });
    list.add(alert('a', { mode: 'live' }));
    list.add(alert('b', { mode: 'shadow' }));
    return list.sorted().map((one) => one.alert_id);
  };
  assert.deepEqual([of('live'), of('shadow'), of('all')], [['a'], ['b'], ['a', 'b']]);
  assert.deepEqual([{ mode: 'live' }, { mode: 'live', key: '' }, { mode: 'all' }, { mode: 'live', key: '1' }].map(isFiltered), [false, false, true, true]);
});

test('a list of alerts is bounded and keeps the newest', () => {
  const list = new AlertList();
  for (let id = 0; id < SHOWN + 50; id += 1) list.add(alert(`a${id}`, { epoch: id }));
  const sorted = list.sorted();
  assert.equal(sorted.length, SHOWN);
  assert.equal(sorted[0].alert_id, `a${SHOWN + 49}`);
  assert.equal(list.alerts.size, SHOWN);
});

test('server-sent events are parsed however they are split', () => {
  const text = ': hello\n\nevent: alert\nid: 7-a\ndata: {"a":\ndata: 1}\n\nid: 8-b\r\nevent: alert\r\ndata: x\r\n\r\nevent: none\n\n';
  const wanted = [{ event: 'alert', id: '7-a', data: '{"a":\n1}' }, { id: '8-b', event: 'alert', data: 'x' }];
  for (let size = 1; size <= text.length; size += 1) {
    const parser = new EventParser();
    const found = [];
    for (let at = 0; at < text.length; at += size) found.push(...parser.push(text.slice(at, at + size)));
    assert.deepEqual(found, wanted, `in parts of ${size}`);
  }
});

test('edges of the layout lead to later layers, nodes apart', () => {
  const nodes = ['a', 'b', 'c', 'd', 'e'].map((id) => ({ id }));
  const edges = [['a', 'b'], ['b', 'c'], ['a', 'd'], ['b', 'd'], ['c', 'e'], ['a', 'e'], ['a', 'gone']].map(([from, to]) => ({ from, to }));
  const { layers, along, across, ways } = place(nodes, edges, () => 10);
  assert.equal(layers, 4);
  assert.equal(ways.length, 6, 'an edge to an unknown node is left out');
  for (const { way } of ways) {
    way.slice(1).forEach((id, index) => assert.equal(along.get(id), along.get(way[index]) + 1));
  }
  for (const [id, layer] of along) {
    for (const [other, same] of along) {
      if (id !== other && layer === same) assert.ok(Math.abs(across.get(id) - across.get(other)) >= 9.999, `${id} and ${other}`);
    }
  }
  assert.equal(place(nodes, [{ from: 'a', to: 'b' }, { from: 'b', to: 'a' }], () => 10).ways.length, 2, 'a cycle ends');
});

test('the result of a retry names what was left out', () => {
  const answer = { sent: 2, dry_run: true, skipped: { sent_before: 1, late: 3, truncated: 0 }, exhausted: 0, of_other_pipelines: 0 };
  assert.equal(resultText(answer), '2 records would be sent. Left out: 1 sent before; 3 late: would be late again.');
  assert.equal(resultText({ sent: 1, dry_run: false }), '1 record sent.');
});

test('an edited value must not keep a mask', () => {
  const original = '{"card":"***","user_id":""}';
  assert.equal(objectionTo(original, original), null, 'the engine sends the bytes that it has');
  assert.match(objectionTo('{"card":"***","user_id":"7"}', original), /masked/);
  assert.equal(objectionTo('{"card":"4111","user_id":"7"}', original), null);
  assert.equal(objectionTo('{"note":"***"}', '{"note":""}'), null, 'no mask was shown');
});

test('spans, sizes and fields are short texts', () => {
  assert.deepEqual([0.25, 4.2, 192, 7200, -3, null].map(seconds), ['250 ms', '4.2 s', '3 min 12 s', '2 h', '−3 s', '–']);
  assert.deepEqual([12, 2048, 3 * 2 ** 20].map(bytes), ['12 B', '2 KiB', '3 MiB']);
  assert.equal(fields({ count: 36, within_ms: 3_600_000, last_place: null }), 'count 36, within 1 h, last place –');
});
