// The events of an explanation on a line of time: the trigger, late arrivals, and amounts as heights.

import { el, svg } from './dom.js';
import { seconds, timeText } from './format.js';

const LEFT = 14;
const TOP = 18;
/** The height of the axis, and that without amounts, which need no room above it. */
const BASE = 92;
const LOW_BASE = 34;
/** The part of the picture before the first event, in which the time that the rule looks back begins or goes on. */
const LEAD = 0.06;

/** The kind of an event, which decides its shape. A late arrival may be the reason for a revocation: that comes first. */
export function kindOf(event) {
  if (event.trigger) return 'trigger';
  if (event.arrived_after) return 'late';
  return event.took_part ? 'part' : 'aside';
}

export const KINDS = {
  trigger: 'raised the alert',
  part: 'took part',
  late: 'arrived later, out of order',
  aside: 'did not take part',
};

/** Above this number of events, their marks are smaller. */
const MANY = 40;

/** Returns the shape of a kind: a diamond, a disc, a ring, a small square. */
function mark(kind, x, y, radius = 5) {
  const name = { class: 'event-mark', 'data-kind': kind };
  if (kind === 'trigger') return svg('path', { ...name, d: `M${x},${y - 8}L${x + 8},${y}L${x},${y + 8}L${x - 8},${y}Z` });
  if (kind === 'aside') return svg('rect', { ...name, x: x - 3, y: y - 3, width: 6, height: 6 });
  return svg('circle', { ...name, cx: x, cy: y, r: kind === 'late' ? 5 : radius });
}

export function legend(events) {
  const kinds = Object.keys(KINDS).filter((kind) => events.some((event) => kindOf(event) === kind));
  const items = kinds.map((kind) => el(
    'li', {}, svg('svg', { viewBox: '0 0 20 20', width: 16, height: 16, 'aria-hidden': 'true' }, mark(kind, 10, 10)), KINDS[kind],
  ));
  if (events.some((event) => event.amount !== null)) items.push(el('li', {}, 'height: amount'));
  return el('ul', { class: 'legend' }, ...items);
}

/** Draws the events, which are in order of their time, over `width` pixels. */
export function timeline({ events, look_back_ms: lookBack }, label, width) {
  const times = events.map((event) => Date.parse(event.event_time));
  const trigger = Date.parse((events.find((event) => event.trigger) ?? events.at(-1)).event_time);
  const last = Math.max(...times, trigger);
  const first = Math.min(...times);
  const looksBack = typeof lookBack === 'number';
  // A rule may look back far beyond its events: they fill the picture, not the empty time before them.
  const lead = (last - first) * LEAD || 1000;
  const start = looksBack ? Math.max(first - lead, Math.min(trigger - lookBack, first)) : first;
  const span = last - start || 1;
  const x = (at) => Math.round((LEFT + ((at - start) / span) * (width - 2 * LEFT)) * 10) / 10;
  const amounts = events.map((event) => (event.amount === null ? null : Math.abs(Number(event.amount))));
  const most = Math.max(...amounts.filter((amount) => amount !== null), 0);
  const base = most ? BASE : LOW_BASE;
  // The square root keeps small amounts visible beside one that is far larger.
  const y = (amount) => (most && amount !== null ? base - Math.sqrt(amount / most) * (base - TOP) : base);

  const picture = svg('svg', { class: 'timeline', viewBox: `0 0 ${width} ${base + 40}`, role: 'img', 'aria-label': label });
  if (looksBack) {
    const from = x(Math.max(start, trigger - lookBack));
    picture.append(svg('rect', { class: 'look-back', x: from, y: 6, width: Math.max(1, x(trigger) - from), height: base - 2 }));
  }
  picture.append(svg('line', { class: 'axis', x1: LEFT, x2: width - LEFT, y1: base, y2: base }));
  // The trigger is drawn last, above the others.
  const order = events.map((event, index) => index).sort((a, b) => events[a].trigger - events[b].trigger);
  for (const index of order) {
    const event = events[index];
    const [at, height] = [x(times[index]), y(amounts[index])];
    const kind = kindOf(event);
    const text = [timeText(event.event_time, true), event.event_id, event.amount && `${event.amount} ${event.currency ?? ''}`, KINDS[kind]];
    picture.append(svg(
      'g', {}, svg('title', {}, text.filter(Boolean).join(', ')),
      svg('line', { class: 'stem', 'data-kind': kind, x1: at, x2: at, y1: base, y2: height }), mark(kind, at, height, events.length > MANY ? 3 : 5),
    ));
  }
  const ends = [[LEFT, 'start', timeText(new Date(start).toISOString())], [width - LEFT, 'end', timeText(new Date(last).toISOString())]];
  for (const [at, anchor, text] of ends) {
    picture.append(svg('text', { class: 'axis-label', x: at, y: base + 30, 'text-anchor': anchor }, text));
  }
  picture.append(svg('text', { class: 'axis-label', x: width / 2, y: base + 30, 'text-anchor': 'middle' }, seconds(span / 1000)));
  return picture;
}
