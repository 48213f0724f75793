// Draws the flow: the engine's operators as nodes, the records between them as edges with their rates.

import { byId, el, reconcile, row, setAttribute, setText, svg, table } from './dom.js';
import { count, number, rate, short } from './format.js';
import { epochsBehind } from './findings.js';
import { place } from './layout.js';

/** Below this width of its place, the flow runs from top to bottom. */
const NARROW = 860;

const SHAPES = {
  wide: { width: 128, height: 50, along: 212, across: 74, bend: 40 },
  narrow: { width: 106, height: 50, along: 104, across: 114, bend: 24 },
};

/** The greatest number of characters of a node's name; all of it is in its title. */
const LONGEST = 15;

/** The speeds of the moving dashes, by the order of magnitude of the rate. */
function speed(perSecond) {
  return perSecond > 0 ? Math.min(4, 1 + Math.floor(Math.log10(Math.max(1, perSecond)))) : 0;
}

/** Returns a path through the points that leaves and enters each along the flow. */
function curve(points, narrow) {
  const at = ([along, across]) => (narrow ? `${across},${along}` : `${along},${across}`);
  return points.slice(1).reduce((path, point, index) => {
    const from = points[index];
    const middle = (from[0] + point[0]) / 2;
    return `${path}C${at([middle, from[1]])} ${at([middle, point[1]])} ${at(point)}`;
  }, `M${at(points[0])}`);
}

/** Returns the second line of a node: what is most worth knowing there. */
function detail(node, status) {
  if (node.id === 'source') return `lag ${short(status.lag_records)}`;
  if (node.id === 'rules') return count(status.keys, 'key');
  if (node.id === 'windows') return `${short(status.open_windows)} open`;
  if (node.kind === 'sink') {
    const sink = status.sinks.find((one) => `sink:${one.name}` === node.id);
    const behind = sink ? epochsBehind(status, sink) : null;
    return behind === null ? 'sink' : behind === 0 ? 'up to date' : `${short(behind)} ${behind === 1 ? 'epoch' : 'epochs'} behind`;
  }
  const into = status.flow.edges.filter((edge) => edge.to === node.id && typeof edge.total === 'number');
  return into.length ? `${short(into.reduce((sum, edge) => sum + edge.total, 0))} so far` : node.kind;
}

export class Flow {
  constructor() {
    this.place = byId('flow');
    this.shape = null;
    this.nodes = new Map();
    this.edges = new Map();
    const { node, body } = table('Flow: records by second along each edge', [
      'From', 'To', { text: 'Rate', number: true }, { text: 'Total', number: true },
    ]);
    byId('flow-table').append(node);
    this.rows = body;
    new ResizeObserver(() => this.status && this.show(this.status, this.history, this.held)).observe(this.place);
  }

  /** Shows the rates; `held` has the levels of the nodes that hold the flow up. */
  show(status, history, held) {
    Object.assign(this, { status, history, held });
    const { nodes, edges } = status.flow;
    const narrow = this.place.clientWidth < NARROW;
    const shape = JSON.stringify([narrow, nodes.map((node) => [node.id, node.label]), edges.map((edge) => [edge.from, edge.to])]);
    if (shape !== this.shape) this.#draw(nodes, edges, narrow);
    this.shape = shape;
    for (const node of nodes) this.#updateNode(node, status, held.get(node.id) ?? null);
    const rates = edges.map((edge) => ({
      ...edge,
      rate: history.rate((past) => past.flow.edges.find((one) => one.from === edge.from && one.to === edge.to)?.total),
    }));
    for (const edge of rates) this.#updateEdge(edge);
    this.#updateTable(nodes, rates);
  }

  #draw(nodes, edges, narrow) {
    const { width, height, along, across, bend } = narrow ? SHAPES.narrow : SHAPES.wide;
    const ids = new Set(nodes.map((node) => node.id));
    const gap = (a, b) => ((ids.has(a) ? across : bend) + (ids.has(b) ? across : bend)) / 2;
    const placed = place(nodes, edges, gap);
    const thick = narrow ? height : width;
    const broad = narrow ? width : height;
    const least = Math.min(...placed.across.values()) - broad / 2 - 4;
    const greatest = Math.max(...placed.across.values()) + broad / 2 + 4;
    const at = (id) => [placed.along.get(id) * along + thick / 2 + 4, placed.across.get(id) - least];
    const length = (placed.layers - 1) * along + thick + 8;
    const size = narrow ? [greatest - least, length] : [length, greatest - least];

    this.edges.clear();
    this.nodes.clear();
    // Sinks often get the same records: the label of the first edge from a node stands for those that have the same rate.
    const kinds = new Map(nodes.map((node) => [node.id, node.kind]));
    const sharing = new Map();
    const lines = svg('g', {});
    const labels = svg('g', {});
    for (const { edge, way } of placed.ways) {
      const points = way.map(at);
      points[0] = [points[0][0] + thick / 2, points[0][1]];
      points[points.length - 1] = [points.at(-1)[0] - thick / 2, points.at(-1)[1]];
      const path = curve(points, narrow);
      const title = svg('title', {});
      const line = svg('path', { class: 'edge', d: path }, title);
      const moving = svg('path', { class: 'edge-moving', d: path });
      const label = svg('text', { class: 'edge-label' });
      lines.append(line, moving);
      labels.append(label);
      this.edges.set(`${edge.from} ${edge.to}`, { line, moving, label, title, first: kinds.get(edge.to) === 'sink' ? sharing.get(edge.from) ?? null : null, bent: way.length > 2 });
      if (kinds.get(edge.to) === 'sink' && !sharing.has(edge.from)) sharing.set(edge.from, `${edge.from} ${edge.to}`);
    }
    const boxes = svg('g', {}, ...nodes.map((node) => {
      const [x, y] = narrow ? at(node.id).reverse() : at(node.id);
      const label = svg('text', { class: 'node-label', x, y: y - 4 });
      const second = svg('text', { class: 'node-detail', x, y: y + 14 });
      const box = svg(
        'g', { class: 'node', 'data-kind': node.kind },
        svg('title', {}, node.label),
        svg('rect', { x: x - width / 2, y: y - height / 2, width, height, rx: node.kind === 'operator' ? 8 : height / 2 }),
        label, second,
      );
      this.nodes.set(node.id, { box, label, second });
      return box;
    }));
    const picture = svg('svg', { viewBox: `0 0 ${size[0]} ${size[1]}`, role: 'img', 'aria-label': 'Flow of records' }, lines, boxes, labels);
    picture.setAttribute('width', size[0]);
    picture.setAttribute('height', size[1]);
    this.picture = picture;
    this.place.replaceChildren(picture);
    this.#placeLabels();
  }

  /** Puts each label on its line, where it is farthest from the labels before it. */
  #placeLabels() {
    const taken = [];
    for (const { line, label, bent, first } of this.edges.values()) {
      const length = line.getTotalLength();
      // Edges that share their first part differ only behind it.
      const parts = bent && first ? [0.78, 0.72, 0.84, 0.66, 0.9] : bent ? [0.35, 0.3, 0.4, 0.45] : [0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8];
      const candidates = parts.map((part) => line.getPointAtLength(length * part));
      const room = ({ x, y }) => Math.min(...taken.map((other) => Math.max(Math.abs(other.x - x) / 3, Math.abs(other.y - y))), 18);
      const best = candidates.reduce((chosen, point) => (room(point) > room(chosen) ? point : chosen));
      taken.push(best);
      setAttribute(label, 'x', best.x);
      setAttribute(label, 'y', best.y + 4);
    }
  }

  #updateNode(node, status, level) {
    const { box, label, second } = this.nodes.get(node.id);
    const name = node.label.length > LONGEST ? `${node.label.slice(0, LONGEST - 1)}…` : node.label;
    setText(label, level ? `▲ ${name}` : name);
    setText(second, detail(node, status));
    setAttribute(box, 'data-level', level);
  }

  #updateEdge(edge) {
    const drawn = this.edges.get(`${edge.from} ${edge.to}`);
    if (!drawn) return;
    const text = typeof edge.total === 'number' ? rate(edge.rate) : '';
    const same = drawn.first !== null && this.edges.get(drawn.first).label.textContent === text;
    setText(drawn.label, same ? '' : text);
    setText(drawn.title, `${edge.from} to ${edge.to}: ${text || 'not counted'}`);
    setAttribute(drawn.moving, 'data-speed', speed(edge.rate));
    setAttribute(drawn.line, 'data-speed', speed(edge.rate));
  }

  #updateTable(nodes, rates) {
    const label = new Map(nodes.map((node) => [node.id, node.label]));
    reconcile(
      this.rows, rates, (edge) => `${edge.from} ${edge.to}`,
      (edge) => row(label.get(edge.from), label.get(edge.to), { content: '', number: true }, { content: '', number: true }),
      (line, edge) => {
        setText(line.children[2], rate(edge.rate));
        setText(line.children[3], number(edge.total));
      },
    );
    const moving = rates.filter((edge) => edge.rate > 0).length;
    const names = [...this.held.keys()].map((id) => label.get(id)).filter(Boolean);
    const heldText = names.length ? `; held up at ${names.join(', ')}` : '';
    setAttribute(this.picture, 'aria-label', `Flow of records: ${moving} of ${count(rates.length, 'edge')} carry records${heldText}. The table below has the rates.`);
  }
}

/** Returns the note above the flow. */
export function flowNote(status) {
  const { epoch, age_s: age, held_by: held } = status.frontier;
  if (held) return el('span', { class: 'held', 'data-level': status.state === 'stalled' ? 'bad' : 'warn' }, `Held up by ${held}`);
  if (!epoch) return el('span', {}, 'No epoch is complete yet');
  return el('span', {}, `Committed through epoch ${number(epoch - 1)}${typeof age === 'number' && age >= 1 ? `, ${Math.round(age)} s ago` : ''}`);
}
