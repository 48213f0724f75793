// Requests to the engine's HTTP API. Every answer that is not a success becomes a `Problem`.

const BASE = '/api/v1';
const TOKEN = 'headwater.token';

/** The time after which a request counts as unanswered. */
const PATIENCE_MS = 8000;

/** An answer that is no success, as the engine describes it (RFC 9457). */
export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail || title);
    this.status = status;
    this.title = title;
  }

  /** True if the engine answers, but does not serve this. */
  get unavailable() {
    return this.status === 404 || this.status === 501;
  }
}

/** Announces `denied` when the engine asks for a token, and `token` when there is a new one. */
export const authority = new EventTarget();

export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
  authority.dispatchEvent(new Event('token'));
}

export function hasToken() {
  return sessionStorage.getItem(TOKEN) !== null;
}

async function problemOf(response) {
  const text = await response.text().catch(() => '');
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // Not from the engine: a proxy's page. The status alone is shown.
  }
  return new Problem(response.status, body.title ?? response.statusText, body.detail ?? `the engine answers ${response.status}`);
}

/** Sends a request with the token, if there is one. */
export async function request(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { accept: 'application/json', ...options.headers };
  if (token !== null) headers.authorization = `Bearer ${token}`;
  const response = await fetch(BASE + path, { cache: 'no-store', redirect: 'error', ...options, headers });
  if (response.ok) return response;
  const problem = await problemOf(response);
  if (problem.status === 401) {
    authority.dispatchEvent(new CustomEvent('denied', { detail: problem.message }));
  }
  throw problem;
}

/** Returns the JSON at a path. `query` leaves out what is empty. */
export async function get(path, query = {}, patienceMs = PATIENCE_MS) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== '');
  const text = new URLSearchParams(given).toString();
  const response = await request(text ? `${path}?${text}` : path, { signal: AbortSignal.timeout(patienceMs) });
  return response.json();
}

/** Sends JSON and returns the answer's. A retry of many dead letters may take long: there is no limit of time. */
export async function post(path, body) {
  const headers = { 'content-type': 'application/json' };
  const response = await request(path, { method: 'POST', headers, body: JSON.stringify(body) });
  return response.json();
}

/** A segment of a path or of the page's address. */
export const segment = encodeURIComponent;
