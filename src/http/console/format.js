// Formats numbers, sizes, spans of time and times. Everything is in the language and the zone of the reader.

import { el } from './dom.js';

const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const hundredths = new Intl.NumberFormat(undefined, { maximumFractionDigits: 2 });
const compact = new Intl.NumberFormat(undefined, { notation: 'compact', maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat(undefined, { hourCycle: 'h23', hour: '2-digit', minute: '2-digit', second: '2-digit' });
const exactClock = new Intl.DateTimeFormat(undefined, {
  hourCycle: 'h23', hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3,
});
const day = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });
const dayAndYear = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short', year: 'numeric' });

const known = (value) => typeof value === 'number' && Number.isFinite(value);

export function number(value) {
  return known(value) ? whole.format(value) : '–';
}

/** A number with as many digits as help. */
export function decimal(value) {
  if (!known(value)) return '–';
  return (Math.abs(value) >= 100 ? whole : Math.abs(value) >= 10 ? tenths : hundredths).format(value);
}

export function short(value) {
  return known(value) ? (Math.abs(value) < 10_000 ? decimal(value) : compact.format(value)) : '–';
}

export function rate(perSecond) {
  return known(perSecond) ? `${short(perSecond)}/s` : '–';
}

/** A span of time in its two largest units: `4.2 s`, `3 min 12 s`, `2 d 4 h`. */
export function seconds(value) {
  if (!known(value)) return '–';
  const sign = value < 0 ? '−' : '';
  const span = Math.abs(value);
  if (span < 0.9995) return `${sign}${whole.format(span * 1000)} ms`;
  if (span < 99.95) return `${sign}${tenths.format(span)} s`;
  for (const [unit, size, lesser, part] of [['d', 86400, 'h', 3600], ['h', 3600, 'min', 60], ['min', 60, 's', 1]]) {
    if (span < size) continue;
    const rest = Math.floor((span % size) / part);
    return `${sign}${whole.format(Math.floor(span / size))} ${unit}${rest ? ` ${rest} ${lesser}` : ''}`;
  }
  return '–';
}

export function milliseconds(value) {
  return known(value) ? (value < 1000 ? `${decimal(value)} ms` : seconds(value / 1000)) : '–';
}

export function bytes(value) {
  if (!known(value)) return '–';
  let [size, unit] = [value, 'B'];
  for (const next of ['KiB', 'MiB', 'GiB', 'TiB']) {
    if (size < 1024) break;
    [size, unit] = [size / 1024, next];
  }
  return `${decimal(size)} ${unit}`;
}

/** The text of a time in the reader's zone: the clock today, with the date otherwise. */
export function timeText(iso, exact = false) {
  const date = new Date(iso);
  if (!iso || Number.isNaN(date.getTime())) return '–';
  const text = (exact ? exactClock : clock).format(date);
  const now = new Date();
  if (date.toDateString() === now.toDateString()) return text;
  return `${(date.getFullYear() === now.getFullYear() ? day : dayAndYear).format(date)}, ${text}`;
}

/** An element with a time in the reader's zone; its title has the time in UTC. */
export function time(iso, exact = false) {
  if (!iso) return el('span', {}, '–');
  return el('time', { datetime: iso, title: `${iso.replace('T', ' ').replace('Z', '')} UTC` }, timeText(iso, exact));
}

/** The value of a field of a JSON object, as a text of one line. */
export function plain(value) {
  if (value === null || value === undefined) return '–';
  if (typeof value === 'number') return Number.isInteger(value) ? number(value) : decimal(value);
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}

/** `{"count": 36, "within_ms": 3600000}` as `count 36, within 1 h`. */
export function fields(object) {
  if (!object) return '–';
  const words = Object.entries(object).map(([name, value]) => {
    const span = name.endsWith('_ms') && typeof value === 'number';
    const label = (span ? name.slice(0, -3) : name).replaceAll('_', ' ');
    return `${label} ${span ? seconds(value / 1000) : plain(value)}`;
  });
  return words.join(', ') || '–';
}

export function place(location) {
  return location ? `${location.lat.toFixed(4)}, ${location.lon.toFixed(4)}` : '–';
}

/** `1 alert`, `2 alerts`. */
export function count(value, noun) {
  return `${number(value)} ${noun}${value === 1 ? '' : 's'}`;
}
