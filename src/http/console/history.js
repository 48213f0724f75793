// What the page remembers of the last minutes: samples of the status, and the rates between them.

const SPAN_MS = 5 * 60_000;

/** The span over which a rate is taken: long enough to be steady, short enough to be current. */
const RATE_MS = 5_000;

export class History {
  constructor() {
    this.samples = [];
  }

  /** Remembers a status that was received at `at` (milliseconds). A restarted engine begins anew: its totals do. */
  add(status, at) {
    const last = this.samples.at(-1);
    if (last && (status.uptime_s < last.status.uptime_s || status.generation !== last.status.generation)) {
      this.samples = [];
    }
    this.samples.push({ at, status });
    while (this.samples.length > 2 && at - this.samples[0].at > SPAN_MS) this.samples.shift();
  }

  get latest() {
    return this.samples.at(-1)?.status ?? null;
  }

  /** Returns the rate of a total by second, or null if it is not counted or has been seen only once. */
  rate(totalOf, index = this.samples.length - 1) {
    const now = this.samples[index];
    if (!now) return null;
    let first = index;
    while (first > 0 && now.at - this.samples[first].at < RATE_MS) first -= 1;
    const then = this.samples[first];
    const [from, to] = [totalOf(then.status), totalOf(now.status)];
    if (typeof from !== 'number' || typeof to !== 'number' || now.at <= then.at) return null;
    return Math.max(0, ((to - from) * 1000) / (now.at - then.at));
  }

  /** Returns the points of a value over time; null where it is unknown. */
  series(valueOf) {
    return this.samples.map(({ at, status }) => ({ at, value: valueOf(status) ?? null }));
  }

  /** Returns the points of the rate of a total over time. */
  rates(totalOf) {
    return this.samples.map(({ at }, index) => ({ at, value: this.rate(totalOf, index) }));
  }

  /** Returns the change of a value over the last `spanMs`, or null if the page has not been open for so long. */
  change(valueOf, spanMs) {
    const now = this.samples.at(-1);
    const then = this.samples.findLast((sample) => now.at - sample.at >= spanMs);
    return then ? valueOf(now.status) - valueOf(then.status) : null;
  }
}

/** Returns the engine's clock, in milliseconds, by which its times are to be read; the reader's clock if unknown. */
export function engineNow(status) {
  const { time, lag_s: lag } = status.watermark;
  return time !== null && typeof lag === 'number' ? Date.parse(time) + lag * 1000 : Date.now();
}
