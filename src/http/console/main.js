// The console: one page that polls the engine's status, follows its alerts, and shows the view that the address names.
//
//   poll.js ──▶ history.js ──▶ overview.js (findings.js, chart.js, flow.js, layout.js)
//   stream.js ─▶ alerts.js ──▶ alert_detail.js (timeline.js)
//   api.js ────▶ keys.js, rules.js, dead_letters.js ──▶ letter_detail.js (payload.js, retry.js)

import { AlertDetail } from './alert_detail.js';
import { Alerts } from './alerts.js';
import { Problem, authority, get, hasToken, setToken } from './api.js';
import { DeadLetters } from './dead_letters.js';
import { byId, setAttribute, setText } from './dom.js';
import { Drawer } from './drawer.js';
import { headline } from './findings.js';
import { timeText } from './format.js';
import { History } from './history.js';
import { Keys } from './keys.js';
import { Overview } from './overview.js';
import { Poller, explain, updates } from './poll.js';
import { Rules } from './rules.js';
import { AlertStream } from './stream.js';

const STATUS_MS = 1_000;
const TITLES = { overview: 'Overview', alerts: 'Alerts', keys: 'Keys', 'dead-letters': 'Dead letters', rules: 'Rules' };

const history = new History();
const overview = new Overview();
const drawer = new Drawer();
const stream = new AlertStream();
const alerts = new Alerts(stream);
const alertDetail = new AlertDetail(drawer);
const keys = new Keys();
const deadLetters = new DeadLetters(drawer);
let shown = null;
let state = 'Loading';
let answered = null;

/** Shows a view, its detail, and its place in the navigation. */
function route(first = false) {
  let path;
  try {
    path = window.location.hash.replace(/^#?\//, '').split('/').map(decodeURIComponent);
  } catch {
    path = [''];
  }
  const view = path[0] in TITLES ? path[0] : 'overview';
  const changed = view !== shown;
  for (const name of Object.keys(TITLES)) {
    byId(`view-${name}`).hidden = name !== view;
    setAttribute(document.querySelector(`nav [data-view="${name}"]`), 'aria-current', name === view ? 'page' : null);
  }
  const opensDetail = path.length > 1 && path[1] !== '' && (view === 'alerts' || view === 'dead-letters');
  if (!opensDetail) drawer.hide();
  if (changed && shown === 'keys') keys.close();
  if (changed && shown === 'dead-letters') deadLetters.close();
  shown = view;
  if (changed && !first) {
    window.scrollTo(0, 0);
    document.querySelector(`#view-${view} h1`).focus({ preventScroll: true });
  }
  if (view === 'alerts' && opensDetail) alertDetail.open(path[1]);
  if (view === 'keys') keys.open(path[1], path.length > 2 ? path.slice(2).join('/') : undefined);
  if (view === 'dead-letters') deadLetters.open(opensDetail ? path[1] : null);
  title();
}

function title() {
  const name = history.latest?.pipeline;
  const parts = [state === 'Ready' ? null : state, TITLES[shown], name, 'Headwater'];
  document.title = parts.filter(Boolean).join(' · ');
}

/** Shows the state in the header; screen readers hear only changes. */
function showState(level, text) {
  setAttribute(byId('pill'), 'data-level', level);
  setText(byId('pill-text'), text);
  if (text !== state) setText(byId('announce'), `${history.latest?.pipeline ?? 'Headwater'}: ${text}`);
  state = text;
  title();
}

function showStatus(status) {
  answered = new Date();
  history.add(status, Date.now());
  document.body.classList.remove('lost', 'waiting');
  setText(byId('pipeline'), status.pipeline);
  const { level, state: text } = headline(status);
  showState(level, text);
  setText(byId('updated'), '');
  overview.show(history);
  keys.offer(status.key_spaces);
}

function showFailure(error) {
  document.body.classList.add('lost');
  const wrong = error instanceof Problem;
  const since = answered ? timeText(answered.toISOString()) : null;
  const text = wrong ? (error.status === 401 ? 'Token needed' : 'Unavailable') : 'Connection lost';
  showState('bad', text);
  setText(byId('updated'), since ? `as of ${since}` : '');
  const last = since ? ` What is shown is as of ${since}.` : '';
  const reason = wrong ? explain(error) : `The engine has not answered${since ? ` since ${since}` : ''}. Trying again.`;
  overview.showProblem(!wrong && since ? `Connection lost since ${since}` : text, reason + (wrong ? last : ''));
}

function askForToken() {
  const dialog = byId('token-dialog');
  const form = byId('token-form');
  authority.addEventListener('denied', ({ detail }) => {
    const error = byId('token-error');
    error.hidden = !hasToken();
    setText(error, detail);
    if (!dialog.open) dialog.showModal();
  });
  form.addEventListener('submit', () => {
    const { token } = form.elements;
    setToken(token.value.trim());
    token.value = '';
  });
}

function pauseButton() {
  const button = byId('pause');
  button.addEventListener('click', () => {
    updates.set(!updates.paused);
    setAttribute(button, 'aria-pressed', updates.paused);
    setText(byId('updated'), updates.paused ? `paused at ${timeText(new Date().toISOString())}` : '');
  });
}

byId('skip').addEventListener('click', (event) => {
  // The address holds the view, so the link must not change it.
  event.preventDefault();
  byId('main').focus();
});
askForToken();
pauseButton();
alerts.onChange((alert) => alertDetail.changed(alert));
window.addEventListener('hashchange', () => route());
route(true);
new Poller(STATUS_MS, () => get('/status'), showStatus, showFailure).start();
new Rules((ids) => alerts.setRules(ids));
stream.start();
