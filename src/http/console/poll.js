// Polls the engine: one request at a time, none while the page is hidden or paused, and fewer while it does not answer.

import { Problem, authority } from './api.js';

const SLOWEST_MS = 10_000;

/** Announces `change` when updates are paused or resumed by the reader. */
export const updates = new EventTarget();
updates.paused = false;
updates.set = (paused) => {
  updates.paused = paused;
  updates.dispatchEvent(new Event('change'));
};

/** Calls `load` every so often, and `show` or `fail` with what it returns or throws. */
export class Poller {
  constructor(intervalMs, load, show, fail) {
    Object.assign(this, { intervalMs, load, show, fail, wanted: false, timer: null, failures: 0, turn: 0 });
    document.addEventListener('visibilitychange', () => this.#resume());
    updates.addEventListener('change', () => this.#resume());
    authority.addEventListener('token', () => this.#resume());
  }

  start() {
    this.wanted = true;
    this.again();
  }

  stop() {
    this.wanted = false;
    this.turn += 1;
    clearTimeout(this.timer);
  }

  /** Asks at once, also if paused: the reader has asked for something else. */
  again() {
    clearTimeout(this.timer);
    this.failures = 0;
    this.turn += 1;
    if (this.wanted) this.#ask(this.turn);
  }

  #resume() {
    if (this.wanted && !document.hidden && !updates.paused) this.again();
  }

  async #ask(turn) {
    // An answer that was overtaken by another question is dropped.
    let apply;
    try {
      const answer = await this.load();
      this.failures = 0;
      apply = () => this.show(answer);
    } catch (error) {
      this.failures += 1;
      apply = () => this.fail(error);
    }
    if (turn !== this.turn) return;
    apply();
    const delay = Math.min(this.intervalMs * 2 ** Math.min(this.failures, 5), Math.max(SLOWEST_MS, this.intervalMs));
    this.timer = setTimeout(() => {
      if (!document.hidden && !updates.paused) this.#ask(turn);
    }, delay);
  }
}

/** Returns the words for what went wrong with a request. */
export function explain(error) {
  if (error instanceof Problem) return error.unavailable ? `Unavailable: ${error.message}` : error.message;
  return 'The engine does not answer.';
}
