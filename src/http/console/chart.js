// A small chart of one value over the last minutes: a line over an area, with a reading under the pointer.

import { el, setAttribute, setText, svg } from './dom.js';
import { seconds, timeText } from './format.js';

const WIDTH = 300;
const HEIGHT = 56;
const PAD = 3;

/** The span of time that the whole width shows at least, so that the first samples do not fill it. */
const LEAST_SPAN_MS = 60_000;

/** Returns the parts of a line without its gaps. */
function runs(points) {
  const found = [[]];
  for (const point of points) {
    if (point.value === null) found.push([]);
    else found.at(-1).push(point);
  }
  return found.filter((run) => run.length);
}

/** A tile with a name, the current value, and its chart. */
export class Tile {
  constructor(name, note, format) {
    this.format = format;
    this.points = [];
    this.value = el('p', { class: 'tile-value' }, '–');
    this.reading = el('p', { class: 'tile-note' }, note);
    this.note = note;
    this.area = svg('path', { class: 'chart-area' });
    this.line = svg('path', { class: 'chart-line' });
    this.cursor = svg('line', { class: 'chart-cursor', y1: 0, y2: HEIGHT, visibility: 'hidden' });
    this.plot = svg(
      'svg',
      { class: 'chart', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': name },
      this.area, this.line, this.cursor,
    );
    this.name = name;
    this.node = el('section', { class: 'tile', 'aria-label': name }, el('h2', {}, name), this.value, this.plot, this.reading);
    this.plot.addEventListener('pointermove', (event) => this.#read(event));
    this.plot.addEventListener('pointerleave', () => this.#release());
  }

  /** Shows the points, which are in order of time, and the level of the last (`ok`, `warn` or `bad`). */
  show(points, level = 'ok', note = this.note) {
    this.note = note;
    this.points = points;
    const known = points.filter((point) => point.value !== null);
    const last = points.at(-1)?.value ?? null;
    setText(this.value, last === null ? '–' : this.format(last));
    setAttribute(this.node, 'data-level', level);
    if (!this.reads) setText(this.reading, note);
    if (!known.length) return;
    const end = points.at(-1).at;
    this.start = Math.min(points[0].at, end - LEAST_SPAN_MS);
    this.span = end - this.start;
    this.top = Math.max(...known.map((point) => point.value)) * 1.08 || 1;
    const lines = runs(points).map((run) => run.map((point) => `${this.#x(point)},${this.#y(point)}`));
    setAttribute(this.line, 'd', lines.map((line) => `M${line.join('L')}`).join(''));
    setAttribute(this.area, 'd', lines.map((line) => {
      const [first, final] = [line[0].split(',')[0], line.at(-1).split(',')[0]];
      return `M${first},${HEIGHT}L${line.join('L')}L${final},${HEIGHT}Z`;
    }).join(''));
    const values = known.map((point) => point.value);
    const range = `${this.format(Math.min(...values))} to ${this.format(Math.max(...values))}`;
    setAttribute(this.plot, 'aria-label', `${this.name}: ${range} in the last ${seconds((end - points[0].at) / 1000)}`);
  }

  #x(point) {
    return Math.round(((point.at - this.start) / this.span) * WIDTH * 10) / 10;
  }

  #y(point) {
    return Math.round((HEIGHT - PAD - (Math.max(0, point.value) / this.top) * (HEIGHT - 2 * PAD)) * 10) / 10;
  }

  #read(event) {
    const box = this.plot.getBoundingClientRect();
    const at = this.start + ((event.clientX - box.left) / box.width) * this.span;
    const near = this.points.filter((point) => point.value !== null)
      .reduce((best, point) => (!best || Math.abs(point.at - at) < Math.abs(best.at - at) ? point : best), null);
    if (!near) return;
    this.reads = true;
    for (const name of ['x1', 'x2']) this.cursor.setAttribute(name, this.#x(near));
    this.cursor.setAttribute('visibility', 'visible');
    setText(this.reading, `${this.format(near.value)} at ${timeText(new Date(near.at).toISOString())}`);
  }

  #release() {
    this.reads = false;
    this.cursor.setAttribute('visibility', 'hidden');
    setText(this.reading, this.note);
  }
}

/** Returns a line without axes, for a cell of a table. */
export function spark(values, label) {
  const top = Math.max(...values, 0) || 1;
  const step = values.length > 1 ? 80 / (values.length - 1) : 0;
  const points = values.map((value, index) => `${(index * step).toFixed(1)},${(17 - (value / top) * 15).toFixed(1)}`);
  return svg(
    'svg', { class: 'spark', viewBox: '0 0 80 18', role: 'img', 'aria-label': label },
    svg('polyline', { class: 'chart-line', points: points.join(' ') }),
  );
}
