// The console in a headless Chromium, against a running engine: HEADWATER_CONSOLE=http://127.0.0.1:PORT node --test
//
// Most tests compare what the page shows with what the API of the same engine answers. States that a healthy engine does
// not have (stalled, unreachable, guarded by a token, hostile payloads) are answered in its place by the browser.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';

const BASE = (process.env.HEADWATER_CONSOLE ?? '').replace(/\/$/, '');
const TOKEN = process.env.HEADWATER_CONSOLE_TOKEN;
const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
/** How long live data may take to appear: an alert needs an event that raises it. */
const LIVE_MS = 60_000;
const VIEWS = ['#/', '#/alerts', '#/keys', '#/dead-letters', '#/rules'];
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

assert.ok(BASE, 'HEADWATER_CONSOLE has the address of a running engine; scripts/console starts one');

let browser;
/** What no page may do: requests to other places, errors in its console. */
const foreign = [];
const errors = [];

before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] });
});

after(() => browser?.close());

async function api(path, options = {}) {
  const headers = { ...options.headers, ...(TOKEN ? { authorization: `Bearer ${TOKEN}` } : {}) };
  const response = await fetch(`${BASE}/api/v1${path}`, { ...options, headers });
  return { status: response.status, body: await response.json() };
}

async function answer(path) {
  const { status, body } = await api(path);
  assert.equal(status, 200, `${path}: ${JSON.stringify(body)}`);
  return body;
}

/** Opens the console in a page of its own. `routes` answers requests in the engine's place. */
async function open(t, hash = '#/', { width = 1280, height = 900, theme = 'light', routes = {}, token = TOKEN } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: theme });
  t.after(() => context.close());
  const page = await context.newPage();
  if (token) await page.addInitScript((value) => sessionStorage.setItem('headwater.token', value), token);
  page.on('request', (request) => {
    if (!request.url().startsWith(`${BASE}/`)) foreign.push(request.url());
  });
  page.on('pageerror', (error) => errors.push(error.stack));
  page.on('console', (message) => {
    // Chromium logs each answer that is no success; the page shows it as the engine's problem.
    const expected = message.location().url.includes('/api/v1/');
    if (message.type() === 'error' && !expected) errors.push(message.text());
  });
  for (const [path, handler] of Object.entries(routes)) await page.route(`${BASE}/api/v1${path}`, handler);
  await page.goto(`${BASE}/${hash}`);
  return page;
}

const json = (body, status = 200) => ({ status, contentType: 'application/json', body: JSON.stringify(body) });
const problem = (status, detail) => (
  { status, contentType: 'application/problem+json', body: JSON.stringify({ type: 'about:blank', title: 'No', status, detail }) }
);
const text = async (page, selector) => (await page.locator(selector).textContent()).trim();
/** Waits until a function returns true in the page. */
const until = (page, condition, argument, timeout = 15_000) => page.waitForFunction(condition, argument, { timeout });
const shows = (page, selector, wanted, timeout) => until(
  page, ([where, what]) => new RegExp(what).test(document.querySelector(where)?.textContent ?? ''), [selector, wanted], timeout,
);
const settled = (page) => until(page, () => !document.body.classList.contains('waiting'));

async function anAlert() {
  for (let waited = 0; waited < LIVE_MS; waited += 500) {
    const { alerts } = await answer('/alerts?limit=1');
    if (alerts.length) return alerts[0];
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  assert.fail('the engine has raised no alert');
}

test('the page comes with a strict policy and own files only', async () => {
  const response = await fetch(`${BASE}/`);
  assert.equal(response.status, 200);
  const policy = response.headers.get('content-security-policy');
  assert.match(policy, /default-src 'none'/);
  assert.doesNotMatch(policy, /unsafe|\*|https?:/);
  const page = await response.text();
  assert.doesNotMatch(page, /https?:\/\//, 'no address of another place');
  assert.doesNotMatch(page, / style=| on[a-z]+=/, 'no inline style or script');
});

test('the banner shows the state and the reason', async (t) => {
  const page = await open(t);
  await shows(page, '#banner-state', '^Ready', LIVE_MS);
  assert.match(await text(page, '#banner-reason'), /\w+/);
  assert.match(await text(page, '#pill-text'), /^Ready/);
  const { pipeline } = await answer('/status');
  assert.equal(await text(page, '#pipeline'), pipeline);
  assert.match(await page.title(), new RegExp(`${pipeline} · Headwater$`));
});

test('the flow has all edges, with live rates', async (t) => {
  const page = await open(t);
  await settled(page);
  const { flow } = await answer('/status');
  assert.equal(await page.locator('#flow .node').count(), flow.nodes.length);
  assert.equal(await page.locator('#flow .edge').count(), flow.edges.length);
  await until(page, () => [...document.querySelectorAll('.edge-label')].some((label) => /[1-9].*\/s/.test(label.textContent)));
  await page.locator('.flow-table summary').click();
  const rows = await page.locator('#flow-table tbody tr').allTextContents();
  assert.equal(rows.length, flow.edges.length);
  assert.ok(rows.some((row) => /[1-9].*\/s/.test(row)), rows.join('\n'));
});

test('charts follow events, lag, watermark and latency', async (t) => {
  const page = await open(t);
  await until(page, () => (document.querySelector('.tile .chart-line')?.getAttribute('d') ?? '').split('L').length > 4);
  const values = await page.locator('.tile-value').allTextContents();
  assert.equal(values.length, 4);
  assert.match(values[0], /[1-9].*\/s/, 'events by second');
  assert.match(values[1], /\d/, 'lag');
});

test('partitions, sinks and reasons are those of the API', async (t) => {
  const page = await open(t);
  await settled(page);
  const status = await answer('/status');
  const first = (id) => page.locator(`#${id} tbody th`).allTextContents();
  assert.deepEqual(await first('partitions'), status.partitions.map((one) => String(one.partition)));
  assert.deepEqual(await first('sinks'), status.sinks.map((one) => one.name));
  const reasons = await first('rejected');
  for (const reason of Object.keys(status.dead_letters)) assert.ok(reasons.includes(reason), reason);
  const times = await page.locator('#partitions time').evaluateAll((all) => all.map((one) => one.title));
  assert.ok(times.every((title) => title.endsWith(' UTC')), 'times have UTC in their title');
  assert.match(await text(page, '#process'), /Generation/);
});

test('a checkpoint is shown when there is one', async (t) => {
  const page = await open(t);
  await settled(page);
  const { checkpoint } = await answer('/status');
  const rows = await page.locator('#checkpoints tbody tr').count();
  if (checkpoint) assert.ok(rows >= 1);
  else assert.match(await text(page, '#checkpoints .empty'), /no checkpoint/i);
});

test('an alert appears while the page is open', async (t) => {
  await anAlert();
  const page = await open(t, '#/alerts');
  await until(page, () => document.querySelectorAll('#alerts tbody tr').length > 0);
  const before = await page.locator('#alerts tbody a[href^="#/alerts/"]').evaluateAll((all) => all.map((one) => one.hash));
  await until(page, (known) => [...document.querySelectorAll('#alerts tbody a[href^="#/alerts/"]')].some((one) => !known.includes(one.hash)), before, LIVE_MS);
});

test('alerts are filtered by rule, status and key', async (t) => {
  const alert = await anAlert();
  const page = await open(t, '#/alerts');
  await page.locator('#alert-filters [name=key]').fill(alert.key);
  await until(page, (key) => {
    const keys = [...document.querySelectorAll('#alerts tbody .key')].map((one) => one.textContent.split(' ').slice(1).join(' '));
    return keys.length > 0 && keys.every((one) => one === key);
  }, alert.key);
  await page.locator('#alert-filters [name=key]').fill('no such key');
  await shows(page, '#alerts-notice', 'No alert matches');
});

test('an alert explains itself and closes by the keyboard', async (t) => {
  await anAlert();
  const page = await open(t, '#/alerts');
  const link = page.locator('#alerts tbody tr a[href^="#/alerts/"]').first();
  await link.waitFor();
  const id = decodeURIComponent((await link.getAttribute('href')).split('/').pop());
  await page.goto(`${BASE}/#/alerts/${encodeURIComponent(id)}`);
  await page.locator('#detail .summary').waitFor();
  const { explanation } = await answer(`/alerts/${encodeURIComponent(id)}?explain=true`);
  assert.equal(await text(page, '#detail .summary'), explanation.summary);
  assert.equal(await page.locator('#detail tbody tr').count(), Math.min(300, explanation.events.length));
  const triggers = explanation.events.filter((event) => event.trigger).length;
  assert.equal(await page.locator('#detail .timeline .event-mark[data-kind=trigger]').count(), triggers);
  await page.keyboard.press('Escape');
  await until(page, () => !document.getElementById('detail').open && window.location.hash === '#/alerts');
});

test('one alert can be opened after the other', async (t) => {
  const { alerts } = await answer('/alerts?limit=2');
  const page = await open(t, '#/alerts');
  for (const { alert_id: id } of alerts) {
    await page.evaluate((wanted) => { window.location.hash = wanted; }, `#/alerts/${encodeURIComponent(id)}`);
    await shows(page, '#detail .facts', id);
    await page.locator('#detail .summary').waitFor();
  }
});

test('an unknown alert shows what the engine says', async (t) => {
  const page = await open(t, '#/alerts/no-such-alert');
  const { body } = await api('/alerts/no-such-alert?explain=true');
  await shows(page, '#detail-body', body.detail.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
});

test('a key is looked up with its rules and alerts', async (t) => {
  const alert = await anAlert();
  const page = await open(t, '#/keys');
  await page.locator('#key-form select').selectOption(alert.key_kind);
  await page.locator('#key-form [name=key]').fill(alert.key);
  await page.keyboard.press('Enter');
  await page.locator('#key-result .facts').waitFor();
  await shows(page, '#key-result .facts', `${alert.key_kind} ${alert.key}`);
  const state = await answer(`/keys/${alert.key_kind}/${encodeURIComponent(alert.key)}`);
  const shown = await page.locator('#key-result section:has(#k-rules) tbody th').allTextContents();
  assert.deepEqual(shown, state.rules.map((rule) => rule.rule));
  assert.ok((await page.locator('#key-result section:has(#k-alerts) tbody tr').count()) >= 1);
});

test('an unknown key shows what the engine says', async (t) => {
  const page = await open(t, '#/keys/user/no-such-key');
  const { body } = await api('/keys/user/no-such-key');
  await shows(page, '#key-notice', body.detail.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
});

test('rules have their totals', async (t) => {
  const page = await open(t, '#/rules');
  const { rules } = await answer('/rules');
  await until(page, (many) => document.querySelectorAll('#rules tbody tr').length === many, rules.length);
  assert.deepEqual(await page.locator('#rules .rule-id').allTextContents(), rules.map((rule) => rule.id));
  assert.match(await page.locator('#rules tbody tr').first().locator('.num').first().textContent(), /^[\d.,\s]+$/);
});

test('dead letters are grouped, marked and checked', async (t) => {
  const page = await open(t, '#/dead-letters');
  const { groups } = await answer('/dead-letters/groups');
  if (!groups.length) {
    await shows(page, '#groups-notice', 'No dead letters');
    return;
  }
  await until(page, () => document.querySelectorAll('#groups tbody tr').length > 0 && document.querySelectorAll('#letters tbody tr').length > 0);
  const { dead_letters: letters } = await answer('/dead-letters?limit=50');
  const letter = letters.find((one) => one.place && one.value) ?? letters[0];
  await page.goto(`${BASE}/#/dead-letters/${encodeURIComponent(letter.id)}`);
  await shows(page, '#detail .summary', '\\S');
  if (letter.place && letter.value) {
    const marked = [...letter.value].slice(letter.place.start, letter.place.end).join('');
    assert.equal(await page.locator('#detail mark').textContent(), marked || '␣');
  }
  await page.locator('#detail button:text-is("Check")').click();
  const body = JSON.stringify({ id: letter.id, dry_run: true, include_late: false });
  const said = await api('/dead-letters/retry', { method: 'POST', headers: { 'content-type': 'application/json' }, body });
  const wanted = said.status === 200 ? 'would be sent' : said.body.detail.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  await shows(page, '#detail .result', wanted);
});

test('the place counts characters, and payloads stay text', async (t) => {
  const value = '{"note":"🍵é","user_id":"<img src=x onerror=alert(1)>","hidden":"\u202Egnp"}';
  const start = [...value.slice(0, value.indexOf('"<img'))].length;
  const letter = {
    id: '0:1', partition: 0, offset: 1, reason: 'invalid', field: 'user_id', message: '<b>not</b> an id', time: '2026-01-01T00:00:00.000Z',
    retries: 0, sent_again: false, producer: '<i>p</i>', source: { topic: '<u>t</u>', partition: 0, offset: 1, timestamp: null },
    key: '<s>k</s>', value, value_base64: null, bytes: 90, place: { start, end: start + 29 },
  };
  const sent = [];
  const page = await open(t, '#/dead-letters/0%3A1', {
    routes: {
      '/dead-letters?*': (route) => route.fulfill(json({ dead_letters: [letter], next_cursor: null })),
      '/dead-letters/0*': (route) => route.fulfill(json(letter)),
      '/dead-letters/groups': (route) => route.fulfill(json({ groups: [] })),
      '/dead-letters/retry': (route) => {
        sent.push(route.request().postDataJSON());
        const dry = sent.at(-1).dry_run;
        return route.fulfill(json({ sent: 1, dry_run: dry, skipped: { sent_before: 0, late: 0, truncated: 0 }, exhausted: 0, of_other_pipelines: 0 }));
      },
    },
  });
  await page.locator('#detail mark').waitFor();
  assert.equal(await page.locator('#detail mark').textContent(), '"<img src=x onerror=alert(1)>"'.slice(0, 29));
  assert.equal(await page.locator('#detail :is(img, b, i, u, s)').count(), 0);
  assert.equal(await text(page, '#detail .codepoint'), 'U+202E');
  await page.locator('#detail textarea').fill('{"user_id":"7"}');
  await page.locator('#detail button:text-is("Check")').click();
  await shows(page, '#detail .result', '1 record would be sent');
  await page.locator('#detail button:text-is("Send again")').click();
  await shows(page, '#detail .result', '^1 record sent');
  assert.deepEqual(sent.map((one) => [one.id, one.value, one.dry_run]), [['0:1', '{"user_id":"7"}', true], ['0:1', '{"user_id":"7"}', false]]);
});

test('a revoked alert is marked in its place', async (t) => {
  const raised = {
    alert_id: 'a1', status: 'raised', rule: 'velocity_spike', rule_version: 1, severity: 'high', key_kind: 'user', key: '1', event_ids: ['e'],
    event_time: '2026-01-01T00:00:00.000Z', epoch: 5, final: false, details: { count: 101 }, mode: 'live',
  };
  const other = { ...raised, alert_id: 'a2', epoch: 6 };
  const events = [raised, other, { ...raised, status: 'revoked', epoch: 7 }];
  const body = events.map((one) => `event: alert\nid: ${one.epoch}-${one.alert_id}\ndata: ${JSON.stringify(one)}\n\n`).join('');
  const page = await open(t, '#/alerts', {
    routes: {
      '/alerts?*': (route) => route.fulfill(json({ alerts: [], next_cursor: null })),
      '/alerts/stream?*': (route) => route.fulfill({ status: 200, contentType: 'text/event-stream', body }),
    },
  });
  await until(page, () => document.querySelectorAll('#alerts tbody tr').length === 2);
  assert.deepEqual(await page.locator('#alerts tbody .status').allTextContents(), ['raised', 'revoked']);
  assert.match(await page.locator('#alerts tbody tr').nth(1).locator('th').evaluate((cell) => getComputedStyle(cell).textDecorationLine), /line-through/);
});

test('shadow alerts are shown to who asks for them', async (t) => {
  const alert = (id, mode) => ({
    alert_id: id, status: 'raised', rule: `${mode}_rule`, rule_version: 1, severity: 'high', key_kind: 'user', key: '1', event_ids: ['e'],
    event_time: '2026-01-01T00:00:00.000Z', epoch: 5, final: false, details: {}, mode,
  });
  const all = [alert('a1', 'live'), alert('a2', 'shadow')];
  const modes = [];
  const asked = (route) => new URL(route.request().url()).searchParams.get('mode');
  const of = (mode) => all.filter((one) => mode === 'all' || one.mode === mode);
  const page = await open(t, '#/alerts', {
    routes: {
      '/alerts?*': (route) => route.fulfill(json({ alerts: of(asked(route)), next_cursor: null })),
      '/alerts/stream?*': (route) => {
        modes.push(asked(route));
        return route.fulfill({ status: 200, contentType: 'text/event-stream', body: ': nothing\n\n' });
      },
    },
  });
  for (const [mode, rows] of [['live', ['live_rule']], ['shadow', ['shadow_ruleshadow']], ['all', ['live_rule', 'shadow_ruleshadow']]]) {
    await page.locator('#alert-filters [name=mode]').selectOption(mode);
    await until(page, (wanted) => {
      const shown = [...document.querySelectorAll('#alerts tbody th')].map((one) => one.textContent.replace(/\u200b/g, ''));
      return JSON.stringify(shown) === JSON.stringify(wanted);
    }, rows);
    assert.equal(modes.at(-1), mode);
  }
  await page.goto(`${BASE}/#/`);
  assert.deepEqual(await page.locator('#recent .badge[data-level=shadow]').count(), 0, 'the overview has live alerts only');
});

test('a stall is named, and marked in the flow', async (t) => {
  const status = await answer('/status');
  const [sink] = status.sinks;
  const stalled = {
    ...status, state: 'stalled', reason: 'sink x has been committing for 20 s', stalled: ['sink'],
    frontier: { ...status.frontier, held_by: 'sink x' }, sinks: [{ ...sink, committing_s: 20 }, ...status.sinks.slice(1)],
  };
  const page = await open(t, '#/', { routes: { '/status': (route) => route.fulfill(json(stalled)) } });
  await shows(page, '#banner-state', '^Stalled$');
  assert.equal(await text(page, '#banner-reason'), stalled.reason);
  assert.match(await text(page, '#announce'), /Stalled/);
  assert.match(await page.title(), /^Stalled/);
  await shows(page, '#flow-note', 'Held up by sink x');
  assert.equal(await page.locator('#flow .node[data-level=bad]').count(), 1);
});

test('a lost connection is shown, and found again', async (t) => {
  const page = await open(t);
  await shows(page, '#banner-state', '^Ready', LIVE_MS);
  await page.route(`${BASE}/api/v1/status`, (route) => route.abort());
  await shows(page, '#banner-state', '^Connection lost since');
  assert.ok((await page.locator('#partitions tbody tr').count()) > 0, 'what is known stays');
  await page.unroute(`${BASE}/api/v1/status`);
  await shows(page, '#banner-state', '^Ready', 30_000);
});

test('what the engine does not serve leaves the rest alone', async (t) => {
  const page = await open(t, '#/rules', {
    routes: { '/rules': (route) => route.fulfill(problem(501, 'rules are elsewhere')), '/alerts?*': (route) => route.fulfill(problem(404, 'no alerts here')) },
  });
  await shows(page, '#rules-notice', 'Unavailable: rules are elsewhere');
  await page.locator('nav a[data-view=alerts]').click();
  await shows(page, '#alerts-notice', 'Unavailable: no alerts here');
  await shows(page, '#pill-text', '^Ready', LIVE_MS);
});

test('a token is asked for, kept in the tab and sent', async (t) => {
  const seen = [];
  const guard = async (route) => {
    const given = route.request().headers().authorization;
    seen.push(given);
    if (given !== 'Bearer right') await route.fulfill(problem(401, 'the token is wrong'));
    else await route.continue({ headers: { ...route.request().headers(), ...(TOKEN ? { authorization: `Bearer ${TOKEN}` } : {}) } });
  };
  const page = await open(t, '#/', { routes: { '/**': guard }, token: null });
  await page.locator('#token-dialog[open] input').fill('wrong');
  await page.keyboard.press('Enter');
  await page.locator('#token-error:not([hidden])').waitFor();
  await page.locator('#token-dialog[open] input').fill('right');
  await page.keyboard.press('Enter');
  await shows(page, '#pill-text', '^Ready', LIVE_MS);
  assert.equal(await page.evaluate(() => sessionStorage.getItem('headwater.token')), 'right');
  assert.equal(await page.evaluate(() => localStorage.length + document.cookie.length), 0);
  assert.ok(seen.includes('Bearer right'));
});

test('updates can be paused and resumed', async (t) => {
  const page = await open(t);
  await shows(page, '#banner-state', '^Ready', LIVE_MS);
  let polls = 0;
  page.on('request', (request) => {
    if (request.url().endsWith('/status')) polls += 1;
  });
  await page.locator('#pause').click();
  await page.waitForTimeout(1500);
  polls = 0;
  await page.waitForTimeout(2500);
  assert.equal(polls, 0);
  await page.locator('#pause').click();
  await until(page, () => document.getElementById('pause').getAttribute('aria-pressed') === 'false');
  await page.waitForTimeout(1500);
  assert.ok(polls > 0);
});

test('the keyboard reaches the content and every view', async (t) => {
  const page = await open(t);
  await settled(page);
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'skip');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'main');
  for (const view of ['alerts', 'keys', 'dead-letters', 'rules', 'overview']) {
    await page.locator(`nav a[data-view=${view}]`).focus();
    await page.keyboard.press('Enter');
    await until(page, (name) => !document.getElementById(`view-${name}`).hidden, view);
    assert.equal(await page.evaluate(() => document.activeElement.tagName), 'H1', 'the heading of the view has the focus');
    assert.equal(await page.locator('nav a[aria-current=page]').getAttribute('data-view'), view);
  }
});

for (const theme of ['light', 'dark']) {
  test(`axe finds no violations in the ${theme} theme`, async (t) => {
    const alert = await anAlert();
    const { dead_letters: letters } = await answer('/dead-letters?limit=1').catch(() => ({ dead_letters: [] }));
    const details = [`#/alerts/${encodeURIComponent(alert.alert_id)}`, `#/keys/${alert.key_kind}/${encodeURIComponent(alert.key)}`];
    if (letters.length) details.push(`#/dead-letters/${encodeURIComponent(letters[0].id)}`);
    for (const [width, height] of [[1280, 900], [390, 844]]) {
      const page = await open(t, '#/', { theme, width, height });
      await settled(page);
      await page.evaluate(AXE);
      for (const hash of [...VIEWS, ...details]) {
        await page.evaluate((wanted) => { window.location.hash = wanted; }, hash);
        await page.waitForTimeout(800);
        const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
        const found = violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join('; ')}`);
        assert.deepEqual(found, [], `${hash}, ${width} pixels`);
      }
    }
  });
}

test('a phone needs no sideways scrolling', async (t) => {
  const alert = await anAlert();
  const page = await open(t, '#/', { width: 360, height: 740 });
  await settled(page);
  for (const hash of [...VIEWS, `#/keys/${alert.key_kind}/${encodeURIComponent(alert.key)}`, `#/alerts/${encodeURIComponent(alert.alert_id)}`]) {
    await page.evaluate((wanted) => { window.location.hash = wanted; }, hash);
    await page.waitForTimeout(800);
    const wide = await page.evaluate(() => [document.documentElement, document.getElementById('detail-body')].map((one) => one.scrollWidth - one.clientWidth));
    assert.deepEqual(wide, [0, 0], hash);
  }
  const small = await page.locator('nav a:visible, button:visible').evaluateAll((all) => all
    .map((one) => [one.textContent, one.getBoundingClientRect()]).filter(([, box]) => box.height < 40 || box.width < 40).map(([name]) => name));
  assert.deepEqual(small, [], 'targets are large enough for a thumb');
});

test('no page asked another place or logged an error', () => {
  assert.deepEqual(foreign, []);
  assert.deepEqual(errors, []);
});
