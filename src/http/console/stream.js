// The stream of alerts: server-sent events, read through fetch, because an EventSource cannot send the token.

import { Problem, authority, request } from './api.js';

const FASTEST_MS = 1_000;
const SLOWEST_MS = 15_000;
/** A stream without any byte for this long counts as broken; the engine sends comments in between. */
const SILENCE_MS = 60_000;

/** Splits a text stream into server-sent events; `push` returns those that became complete. */
export class EventParser {
  #rest = '';
  #event = {};

  push(text) {
    const found = [];
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === '') {
        if (this.#event.data !== undefined) found.push(this.#event);
        this.#event = {};
      } else if (!line.startsWith(':')) {
        this.#field(line);
      }
    }
    return found;
  }

  #field(line) {
    const colon = line.indexOf(':');
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (name === 'data') this.#event.data = this.#event.data === undefined ? value : `${this.#event.data}\n${value}`;
    else if (name === 'id' || name === 'event') this.#event[name] = value;
  }
}

/**
 * Follows the alerts as they come. Announces `alert` (detail: the alert), `open`, and `lost` (detail: the error, with
 * `unavailable` if the engine does not serve the stream). Resumes after the last alert that was received.
 */
export class AlertStream extends EventTarget {
  #last = null;
  #mode = 'live';
  #abort = null;
  #timer = null;
  #delay = FASTEST_MS;

  start() {
    document.addEventListener('visibilitychange', () => (document.hidden ? this.#stop() : this.#restart()));
    authority.addEventListener('token', () => this.#restart());
    if (!document.hidden) this.#restart();
  }

  /** Follows alerts of `live` rules, of those in `shadow`, or of `all`. */
  setMode(mode) {
    if (mode === this.#mode) return;
    this.#mode = mode;
    if (!document.hidden) this.#restart();
  }

  #restart() {
    this.#stop();
    this.#delay = FASTEST_MS;
    this.#follow();
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#abort = null;
  }

  async #follow() {
    const abort = new AbortController();
    this.#abort = abort;
    let error = null;
    try {
      await this.#read(abort);
    } catch (caught) {
      error = caught;
    }
    if (this.#abort !== abort) return;
    this.dispatchEvent(new CustomEvent('lost', { detail: error }));
    // The engine does not know the last alert: it has another ledger. What was missed is in the list, which is loaded anew.
    if (error instanceof Problem && error.status === 400) this.#last = null;
    // With a wrong token, only another token helps; it restarts the stream.
    if (error instanceof Problem && error.status === 401) return;
    this.#timer = setTimeout(() => this.#follow(), this.#delay);
    this.#delay = Math.min(this.#delay * 2, SLOWEST_MS);
  }

  async #read(abort) {
    const headers = { accept: 'text/event-stream' };
    if (this.#last) headers['last-event-id'] = this.#last;
    const response = await request(`/alerts/stream?mode=${this.#mode}`, { headers, signal: abort.signal });
    this.dispatchEvent(new Event('open'));
    this.#delay = FASTEST_MS;
    const parser = new EventParser();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const silence = setTimeout(() => abort.abort(new Error('no byte for a minute')), SILENCE_MS);
      const { value, done } = await reader.read().finally(() => clearTimeout(silence));
      if (done) return;
      for (const { id, event, data } of parser.push(value)) {
        if (id) this.#last = id;
        if (event === 'alert') this.dispatchEvent(new CustomEvent('alert', { detail: JSON.parse(data) }));
      }
    }
  }
}
