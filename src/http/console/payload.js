// Shows the bytes of a rejected record. They are hostile: text only, with invisible and misleading characters made visible.

import { el } from './dom.js';

/** Control characters, and those that reorder or hide text. Line breaks and tabs stay as they are. */
const DECEPTIVE = /[\u0000-\u0008\u000B-\u001F\u007F-\u009F\u00AD\u061C\u200B-\u200F\u2028-\u202E\u2060-\u206F\uFEFF\uFFF9-\uFFFB]/gu;

/** The greatest length that is shown; all of it is sent. */
const SHOWN = 20_000;

function hex(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}`;
}

/** Returns nodes for a text of a record, with a sign in place of each deceptive character. */
export function visible(text) {
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(DECEPTIVE)) {
    nodes.push(text.slice(from, found.index), el('span', { class: 'codepoint' }, hex(found[0])));
    from = found.index + found[0].length;
  }
  nodes.push(text.slice(from));
  return nodes;
}

/** Returns the lines of a dump: offset, bytes in hexadecimal, and printable ASCII. */
function dump(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)).slice(0, SHOWN / 4);
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const part = [...bytes.slice(at, at + 16)];
    const digits = part.map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
    const text = part.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : '·')).join('');
    lines.push(`${at.toString(16).padStart(4, '0')}  ${digits.padEnd(48)} ${text}`);
  }
  return lines.join('\n');
}

/** Returns an element with the value of a letter, the offending place marked. */
export function payload(letter) {
  const attributes = { class: 'payload', tabindex: '0', role: 'region', 'aria-label': 'Value of the record' };
  if (letter.value === null || letter.value === undefined) {
    return letter.value_base64
      ? el('pre', { ...attributes, class: 'payload hex' }, dump(letter.value_base64))
      : el('p', { class: 'empty' }, letter.bytes ? 'The value is not shown: it is not text, and fields are masked.' : 'The record has no value.');
  }
  // The place counts characters (code points), JavaScript's strings count UTF-16 units.
  const characters = [...letter.value];
  const start = Math.min(letter.place?.start ?? characters.length, characters.length);
  const end = Math.min(letter.place?.end ?? characters.length, characters.length);
  const text = (from, to) => visible(characters.slice(from, to).join(''));
  const node = el('pre', attributes, ...text(0, Math.min(start, SHOWN)));
  if (letter.place) {
    const marked = start < end ? text(start, Math.min(end, start + SHOWN)) : ['␣'];
    node.append(el('mark', {}, ...marked), ...text(end, Math.max(end, SHOWN)));
  }
  if (characters.length > SHOWN) node.append(el('span', { class: 'codepoint' }, `of ${characters.length} characters`));
  return node;
}
