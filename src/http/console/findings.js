// Decides what the banner says: how the engine is, and what holds it up. Without the page, so that it can be tested.

import { count, number, seconds } from './format.js';

/** A commit that takes longer than this is worth a look. */
const LONG_COMMIT_S = 5;
/** The lag grows if it has risen by this many records in a minute, and by a tenth. */
const GROWTH_RECORDS = 100;

const CAUSES = {
  transaction: 'a transaction that was left open in the source',
  leader: 'the leader of a source partition, which does not respond',
  records: 'records that advance the watermark',
  memory: 'memory: limits.unfinal_bytes is used up',
  sink: 'a sink',
  ledger: 'the ledger',
  frontier: 'a process or worker that is behind',
  topic: 'the topic',
};

/** Returns the words for the causes of a stall, or null if there are none. */
function waitsFor(causes) {
  const named = (causes ?? []).map((cause) => CAUSES[cause] ?? cause.replaceAll('_', ' '));
  return named.length ? `Results wait for ${named.join('; for ')}.` : null;
}

/** Returns `{ level, state, reason }`: what a reader has to know first. */
export function headline(status) {
  if (status.state === 'ready') {
    const held = status.frontier.held_by ?? waitsFor(status.stalled);
    if (held) return { level: 'warn', state: 'Ready, but held up', reason: held };
    if (status.watermark.ended) return { level: 'ok', state: 'Ready', reason: 'The input has ended; all results are final.' };
    return { level: 'ok', state: 'Ready', reason: 'Nothing holds up the results.' };
  }
  if (status.state === 'starting') {
    return { level: 'warn', state: 'Starting', reason: status.reason ?? 'No results are committed yet.' };
  }
  const waits = waitsFor(status.stalled) ?? 'No epoch becomes complete.';
  return { level: 'bad', state: 'Stalled', reason: status.reason ?? status.frontier.held_by ?? waits };
}

/**
 * Returns what holds the engine up or soon will, as `{ level, node, text }`, the worst first. `node` is the place in the
 * flow, and `growth` the change of the lag over the last minute.
 */
export function findings(status, growth) {
  const found = [];
  const add = (level, node, text) => found.push({ level, node, text });
  const held = status.partitions.filter((partition) => partition.state === 'held');
  if (held.length) {
    const names = held.map((partition) => partition.partition).join(', ');
    const longest = Math.max(...held.map((partition) => partition.held_s));
    add('bad', 'source', `Partition ${names} held for ${seconds(longest)}`);
  }
  for (const sink of status.sinks) {
    if (sink.committing_s >= LONG_COMMIT_S) {
      add('bad', `sink:${sink.name}`, `Sink ${sink.name} has been committing for ${seconds(sink.committing_s)}`);
    }
  }
  for (const list of status.lists ?? []) {
    if (list.error) {
      const holds = list.version ? 'rules go on with its last contents' : 'it is empty';
      add('warn', null, `List ${list.name} cannot be read; ${holds}: ${list.error}`);
    }
  }
  for (const node of status.flow?.nodes ?? []) {
    const named = found.some((finding) => finding.node === node.id);
    if (node.held && !named) add('warn', node.id, `${node.label} holds the frontier`);
  }
  if (growth >= GROWTH_RECORDS && growth * 10 >= status.lag_records) {
    add('warn', 'source', `Falling behind: ${count(growth, 'record')} more lag than a minute ago`);
  }
  if (status.restarts > 0 && status.uptime_s < 60) {
    add('warn', null, `Restarted ${seconds(status.uptime_s)} ago (restart ${number(status.restarts)})`);
  }
  return found;
}

/** Returns the number of epochs that have closed and that a sink has not committed; null if unknown. */
export function epochsBehind(status, sink) {
  if (typeof status.epoch !== 'number' || typeof sink.through_epoch !== 'number') return null;
  return Math.max(0, status.epoch - sink.through_epoch);
}
