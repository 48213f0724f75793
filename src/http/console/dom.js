// Builds and updates elements. Text from the engine is only ever set as text, never as markup: payloads are hostile.

const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false && child !== ''));
  return node;
}

/** Creates an HTML element; a child is a node or a text. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Creates an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

/** Sets a text only if it differs, so that selections and screen readers are left in peace. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets an attribute only if it differs; null removes it. */
export function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** The elements that `reconcile` has made, by parent and key. */
const made = new WeakMap();

/** Returns the elements of a parent by their keys. */
export function childrenByKey(parent) {
  if (!made.has(parent)) made.set(parent, new Map());
  return made.get(parent);
}

/**
 * Makes the children of `parent` correspond to `items`, in their order. The element of a key is kept, with its focus, and
 * moved only if the order has changed.
 */
export function reconcile(parent, items, keyOf, create, update) {
  const nodes = childrenByKey(parent);
  const wanted = new Set(items.map(keyOf));
  for (const [key, node] of nodes) {
    if (wanted.has(key)) continue;
    node.remove();
    nodes.delete(key);
  }
  let after = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    let node = nodes.get(key);
    if (!node) {
      node = create(item);
      nodes.set(key, node);
    }
    update(node, item);
    if (node === after) after = after.nextSibling;
    else parent.insertBefore(node, after);
  }
}

/** Creates a table with a caption for screen readers. A column is its heading, or `{ text, number, class }`. */
export function table(caption, columns, rows = []) {
  const heads = columns.map((column) => {
    const { text, number, ...rest } = typeof column === 'string' ? { text: column } : column;
    return el('th', { scope: 'col', class: [number && 'num', rest.class].filter(Boolean).join(' ') || null }, text);
  });
  const body = el('tbody', {}, ...rows);
  const node = el(
    'table', {},
    el('caption', { class: 'sr-only' }, caption),
    el('thead', {}, el('tr', {}, ...heads)),
    body,
  );
  return { node, body };
}

/** Returns a row of a table whose first cell is its heading. A cell is a text, a node, or `{ content, number, class }`. */
export function row(...cells) {
  return el('tr', {}, ...cells.map((cell, index) => {
    const plain = cell === null || typeof cell !== 'object' || cell instanceof Node;
    const { content, number, class: name } = plain ? { content: cell } : cell;
    const attributes = { class: [number && 'num', name].filter(Boolean).join(' ') || null };
    if (index === 0) return el('th', { scope: 'row', ...attributes }, content ?? '–');
    return el('td', attributes, content ?? '–');
  }));
}

/** Replaces all of a list of facts: pairs of a term and a text or node. */
export function facts(list, pairs) {
  reconcile(
    list, pairs, ([term]) => term,
    ([term]) => el('div', {}, el('dt', {}, term), el('dd', {})),
    (node, [, value]) => {
      const cell = node.lastChild;
      if (value instanceof Node) cell.replaceChildren(value);
      else setText(cell, value ?? '–');
    },
  );
}

/** Lets the keyboard scroll what is larger than its place. */
export function makeScrollable(region, label) {
  const observe = () => {
    const larger = region.scrollWidth > region.clientWidth + 1 || region.scrollHeight > region.clientHeight + 1;
    setAttribute(region, 'tabindex', larger ? '0' : null);
    setAttribute(region, 'role', larger ? 'region' : null);
    setAttribute(region, 'aria-label', larger ? `${label}, scrolls` : null);
  };
  const observer = new ResizeObserver(observe);
  observer.observe(region);
  for (const child of region.children) observer.observe(child);
}

/** Shows a message in its place, or nothing. */
export function notice(slot, level, text) {
  if (!text) {
    slot.replaceChildren();
    return;
  }
  const shown = slot.firstElementChild;
  if (shown?.dataset.level === level && shown.textContent === text) return;
  slot.replaceChildren(el('p', { class: 'notice', 'data-level': level }, text));
}

/** Returns the parts of a name, which may be broken after an underscore or a full stop. */
export function breakable(name) {
  return name.split(/(?<=[_.])/).flatMap((part, index) => (index ? [el('wbr'), part] : [part]));
}

/** Returns a badge: a shape and a word, so that colour is never alone. */
export function badge(level, text) {
  return el('span', { class: 'badge', 'data-level': level }, text);
}
