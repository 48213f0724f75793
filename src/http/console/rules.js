// The view of rules: what each looks for, and how many alerts it raises and revokes.

import { get } from './api.js';
import { severityBadge, shadowBadge } from './alert_list.js';
import { spark } from './chart.js';
import { breakable, byId, el, makeScrollable, notice, reconcile, row, setText, table } from './dom.js';
import { decimal, number, plain, seconds, timeText } from './format.js';
import { Poller, explain } from './poll.js';

const EVERY_MS = 5_000;
const SPAN_MS = 5 * 60_000;
/** The number of bars of time in the small line. */
const STEPS = 20;
/** The severities with a badge; others are expressions. */
const LEVELS = new Set(['low', 'medium', 'high', 'critical']);

const percent = new Intl.NumberFormat(undefined, { style: 'percent', maximumFractionDigits: 0 });

function settingsText(settings) {
  return Object.entries(settings ?? {}).map(([name, value]) => `${name} = ${plain(value)}`).join(', ') || '–';
}

/** Returns what must be shown anew if it differs: a rule can change while the run goes on. */
function identity(rule) {
  const { raised, revoked, ...shown } = rule;
  return JSON.stringify(shown);
}

/** Returns from when on the alerts of a rule are complete, if not of all events. */
function completeness(rule) {
  if (rule.complete_from) return `; complete from ${timeText(rule.complete_from)} on`;
  return rule.knows_since ? `; knows events after ${timeText(rule.knows_since)}` : '';
}

/** Returns which rules wait until their past has been read, if any do. */
function waitingText(waiting) {
  if (!waiting.length) return null;
  const { progress } = waiting[0];
  return `Reading the past of ${waiting.map((rule) => rule.id).join(', ')}${progress ? `: ${progress}` : ''}`;
}

export class Rules {
  constructor(onRules) {
    this.onRules = onRules;
    this.samples = [];
    const { node, body } = table('Rules with their alerts', [
      'Rule', { text: 'Severity', class: 'severity-head' }, { text: 'Settings', class: 'wide' }, { text: 'Raised', number: true }, { text: 'Revoked', number: true },
      { text: 'Per min', number: true }, { text: 'Last minutes', class: 'wide' },
    ]);
    this.body = body;
    this.node = node;
    node.hidden = true;
    byId('rules').append(node);
    makeScrollable(byId('rules'), 'Rules');
    this.poller = new Poller(EVERY_MS, () => get('/rules'), ({ rules, waiting }) => this.#show(rules, waiting), (error) => this.#fail(error));
    this.poller.start();
  }

  #fail(error) {
    notice(byId('rules-notice'), 'warn', explain(error));
  }

  #show(rules, waiting) {
    const at = Date.now();
    const totals = new Map(rules.map((rule) => [rule.id, rule.raised]));
    const last = this.samples.at(-1);
    // Totals count since the start: after a restart they are less, and rates begin anew.
    if (last && rules.some((rule) => rule.raised < last.totals.get(rule.id))) this.samples = [];
    this.samples.push({ at, totals });
    while (this.samples.length > 2 && at - this.samples[0].at > SPAN_MS) this.samples.shift();
    this.onRules(rules.map((rule) => rule.id));
    notice(byId('rules-notice'), 'info', waitingText(waiting) ?? (rules.length ? null : 'No rules are configured.'));
    this.node.hidden = rules.length === 0;
    const span = (at - this.samples[0].at) / 1000;
    setText(byId('rules-note'), span ? `Totals since the start; rates of the last ${seconds(Math.round(span))}.` : 'Totals since the start.');
    reconcile(this.body, rules, identity, (rule) => this.#create(rule), (line, rule) => this.#update(line, rule));
  }

  #create(rule) {
    const back = typeof rule.look_back_ms === 'number' ? `, looks back ${seconds(rule.look_back_ms / 1000)}` : '';
    const by = rule.by && rule.by !== 'key' ? `, by ${rule.by}` : '';
    const emission = rule.emit === 'final' ? 'when final' : rule.emit === 'immediate' ? 'at once, revised later' : rule.emit;
    return row(
      el('div', {}, el('span', { class: 'rule-id' }, ...breakable(rule.id)), shadowBadge(rule), rule.description ? el('span', { class: 'rule-text' }, rule.description) : null),
      LEVELS.has(rule.severity) ? severityBadge(rule.severity) : el('code', {}, rule.severity),
      { content: `${settingsText(rule.settings)}${by}; alerts ${emission}${back}${completeness(rule)}`, class: 'wide details' },
      { content: '', number: true }, { content: '', number: true, class: 'share' }, { content: '', number: true },
      { content: '', class: 'wide' },
    );
  }

  #update(line, rule) {
    const share = rule.raised > 0 && rule.revoked > 0 ? ` (${percent.format(rule.revoked / rule.raised)})` : '';
    const first = this.samples[0];
    const now = this.samples.at(-1);
    const minutes = (now.at - first.at) / 60_000;
    const raised = rule.raised - (first.totals.get(rule.id) ?? rule.raised);
    setText(line.children[3], number(rule.raised));
    setText(line.children[4], `${number(rule.revoked)}${share}`);
    setText(line.children[5], minutes > 0 ? decimal(raised / minutes) : '–');
    line.children[6].replaceChildren(spark(this.#steps(rule.id), `${number(raised)} raised in the last minutes`));
  }

  /** Returns the number of alerts in each step of the remembered time. */
  #steps(id) {
    const end = this.samples.at(-1).at;
    const steps = new Array(STEPS).fill(0);
    for (let i = 1; i < this.samples.length; i += 1) {
      const raised = (this.samples[i].totals.get(id) ?? 0) - (this.samples[i - 1].totals.get(id) ?? 0);
      const step = STEPS - 1 - Math.floor(((end - this.samples[i].at) / SPAN_MS) * STEPS);
      if (step >= 0) steps[step] += raised;
    }
    return steps;
  }
}
