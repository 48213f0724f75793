// Places the nodes of a directed graph without cycles in layers, so that edges run one way and cross little.
//
//   layers:  the longest path from a node without incoming edges
//   long edges pass each layer in between at a place without a node (a "bend"), which edges from one node share
//   order:   each layer is sorted by the mean place of its neighbours, back and forth
//   places:  as near to the neighbours as the distances allow

const SWEEPS = 8;

function layersOf(nodes, edges) {
  const layer = new Map(nodes.map((node) => [node.id, 0]));
  // A cycle would raise layers for ever; the number of rounds is bounded.
  for (let round = 0; round < nodes.length; round += 1) {
    let changed = false;
    for (const { from, to } of edges) {
      if (layer.get(to) > layer.get(from)) continue;
      layer.set(to, layer.get(from) + 1);
      changed = true;
    }
    if (!changed) break;
  }
  return layer;
}

/** Splits edges over several layers; returns the layers' items, the items' neighbours, and the way of each edge. */
function split(nodes, edges, layer) {
  const layers = [];
  const put = (id, index) => (layers[index] ??= []).push(id);
  for (const node of nodes) put(node.id, layer.get(node.id));
  const before = new Map();
  const after = new Map();
  const link = (from, to) => {
    after.set(from, [...(after.get(from) ?? []), to]);
    before.set(to, [...(before.get(to) ?? []), from]);
  };
  const bends = new Set();
  const ways = edges.map((edge) => {
    const way = [edge.from];
    for (let index = layer.get(edge.from) + 1; index < layer.get(edge.to); index += 1) {
      const bend = `${edge.from} @ ${index}`;
      if (!bends.has(bend)) put(bend, index);
      bends.add(bend);
      way.push(bend);
    }
    way.push(edge.to);
    way.slice(1).forEach((to, index) => link(way[index], to));
    return { edge, way };
  });
  return { layers, before, after, ways };
}

function mean(values, otherwise) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : otherwise;
}

function order(layers, before, after) {
  const rank = new Map();
  const number = (items) => items.forEach((id, index) => rank.set(id, index - (items.length - 1) / 2));
  layers.forEach(number);
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const down = sweep % 2 === 0;
    for (const items of down ? layers : [...layers].reverse()) {
      const neighbours = down ? before : after;
      const wish = new Map(items.map((id) => [id, mean((neighbours.get(id) ?? []).map((n) => rank.get(n)), rank.get(id))]));
      items.sort((a, b) => wish.get(a) - wish.get(b));
      number(items);
    }
  }
}

/** Moves items to their wishes, in their order and at their distances. */
function spread(items, wish, gap) {
  const places = items.map((id) => wish(id));
  for (let i = 1; i < places.length; i += 1) {
    places[i] = Math.max(places[i], places[i - 1] + gap(items[i - 1], items[i]));
  }
  // What was pushed away from its wish pulls the whole back by the mean of it.
  const shift = mean(items.map((id, i) => wish(id) - places[i]), 0);
  return new Map(items.map((id, i) => [id, places[i] + shift]));
}

/**
 * Returns `{ layers, across, ways }`: the number of layers, the layer and the place across it of each item, and the items
 * that each edge passes. `gap(a, b)` is the least distance between neighbours in a layer; bends are no nodes of `nodes`.
 */
export function place(nodes, edges, gap) {
  const ids = new Set(nodes.map((node) => node.id));
  const sound = edges.filter((edge) => ids.has(edge.from) && ids.has(edge.to));
  const layer = layersOf(nodes, sound);
  const { layers, before, after, ways } = split(nodes, sound, layer);
  const filled = layers.filter(Boolean);
  order(filled, before, after);
  const across = new Map();
  const along = new Map();
  filled.forEach((items, index) => {
    items.forEach((id) => along.set(id, index));
    spread(items, () => 0, gap).forEach((at, id) => across.set(id, at));
  });
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    for (const items of sweep % 2 ? [...filled].reverse() : filled) {
      const wish = (id) => mean([...(before.get(id) ?? []), ...(after.get(id) ?? [])].map((n) => across.get(n)), across.get(id));
      spread(items, wish, gap).forEach((at, id) => across.set(id, at));
    }
  }
  return { layers: filled.length, along, across, ways };
}
