// The view of dead letters: groups by reason, then the letters of one group or of all.

import { get, segment } from './api.js';
import { badge, byId, childrenByKey, el, makeScrollable, notice, reconcile, setAttribute, setText, table } from './dom.js';
import { count, number, plain, time } from './format.js';
import { LetterDetail, READ_MS } from './letter_detail.js';
import { visible } from './payload.js';
import { Poller, explain } from './poll.js';

/** Letters may have to be read from a topic: that is not done often. */
const EVERY_MS = 15_000;
const PAGE = 50;
/** The length of a value in the list. */
const EXCERPT = 120;

const sameGroup = (a, b) => a && b && a.reason === b.reason && a.field === b.field && a.producer === b.producer;
const groupKey = (group) => JSON.stringify([group.reason, group.field, group.producer]);

export class DeadLetters {
  constructor(drawer) {
    this.detail = new LetterDetail(drawer, (ids) => this.#sent(ids));
    this.filter = null;
    this.letters = new Map();
    this.limit = PAGE;
    this.#build();
    const failIn = (slot) => (error) => notice(byId(slot), 'warn', explain(error));
    this.groups = new Poller(EVERY_MS, () => get('/dead-letters/groups', {}, READ_MS), (answer) => this.#showGroups(answer.groups), failIn('groups-notice'));
    this.list = new Poller(EVERY_MS, () => this.#load(), (answer) => this.#showLetters(answer), failIn('letters-notice'));
  }

  #build() {
    const groups = table('Dead letters by reason', [
      'Reason', 'Field and producer', { text: 'Count', number: true }, { text: 'First', class: 'wide' }, { text: 'Last', class: 'wide' },
      { text: 'Actions', class: 'actions' },
    ]);
    const letters = table('Dead letters, the newest first', ['Letter', 'Reason', 'Message', { text: 'Value', class: 'wide' }, 'Rejected']);
    this.groupTable = groups;
    this.letterTable = letters;
    byId('groups').append(groups.node);
    byId('letters').append(letters.node);
    makeScrollable(byId('groups'), 'Groups');
    makeScrollable(byId('letters'), 'Letters');
    byId('more-letters').addEventListener('click', () => {
      this.limit += PAGE;
      this.list.again();
    });
  }

  open(id) {
    this.groups.start();
    this.list.start();
    if (id) this.detail.open(id, this.letters.get(id));
  }

  close() {
    this.groups.stop();
    this.list.stop();
  }

  async #load() {
    const { filter } = this;
    const query = filter ? { reason: filter.reason, field: filter.field, producer: filter.producer } : {};
    return { filter, ...(await get('/dead-letters', { ...query, limit: Math.min(this.limit, 1000) }, READ_MS)) };
  }

  #choose(group) {
    this.filter = group;
    this.limit = PAGE;
    this.list.again();
    this.#showFilter();
    byId('letters').scrollIntoView({ block: 'nearest' });
  }

  #showFilter() {
    const { filter } = this;
    const parts = filter && [filter.reason, filter.field && `field ${filter.field}`, filter.producer && `producer ${filter.producer}`];
    const node = byId('letters-filter');
    if (!filter) node.replaceChildren();
    else {
      const clear = el('button', { type: 'button', class: 'small', onclick: () => this.#choose(null) }, 'Show all');
      node.replaceChildren(`${parts.filter(Boolean).join(', ')} `, clear);
    }
    for (const [key, line] of childrenByKey(this.groupTable.body)) {
      const chosen = filter && key === groupKey(filter);
      setAttribute(line, 'data-chosen', chosen ? 'yes' : null);
      setAttribute(line.querySelector('button'), 'aria-pressed', chosen ? 'true' : 'false');
    }
  }

  #showGroups(groups) {
    notice(byId('groups-notice'), 'info', groups.length ? null : 'No dead letters.');
    this.groupTable.node.hidden = groups.length === 0;
    const sorted = [...groups].sort((a, b) => b.count - a.count || groupKey(a).localeCompare(groupKey(b)));
    reconcile(this.groupTable.body, sorted, groupKey, (group) => this.#group(group), (line, group) => {
      setText(line.children[2], number(group.count));
      line.children[4].replaceChildren(time(group.last_seen));
    });
    this.#showFilter();
  }

  #group(group) {
    const name = [group.reason, group.field, group.producer].filter(Boolean).join(', ');
    const show = el('button', { type: 'button', class: 'small', 'aria-label': `Show ${name}` }, 'Show');
    const send = el('button', { type: 'button', class: 'small', 'aria-label': `Send again: ${name}` }, 'Send again …');
    show.addEventListener('click', () => this.#choose(sameGroup(group, this.filter) ? null : group));
    send.addEventListener('click', () => this.detail.openGroup(group));
    return el(
      'tr', {},
      el('th', { scope: 'row' }, badge('reason', group.reason)),
      el('td', {}, plain(group.field), group.producer && el('span', { class: 'rule-text' }, group.producer)),
      el('td', { class: 'num' }),
      el('td', { class: 'wide nowrap' }, time(group.first_seen)),
      el('td', { class: 'wide nowrap' }),
      el('td', { class: 'actions' }, show, send),
    );
  }

  #showLetters({ filter, dead_letters: letters, next_cursor: next }) {
    if (filter !== this.filter) return;
    this.letters = new Map(letters.map((letter) => [letter.id, letter]));
    notice(byId('letters-notice'), 'info', letters.length ? null : 'No dead letters.');
    this.letterTable.node.hidden = letters.length === 0;
    byId('more-letters').hidden = !next || this.limit >= 1000;
    setText(byId('letters-count'), letters.length ? `${count(letters.length, 'letter')} shown` : '');
    reconcile(
      this.letterTable.body, letters, (letter) => letter.id, (letter) => this.#letter(letter),
      (line, letter) => {
        setAttribute(line, 'data-sent', letter.sent_again ? 'yes' : null);
        const status = line.querySelector('.sent');
        status.hidden = !letter.sent_again;
      },
    );
  }

  #letter(letter) {
    const text = letter.value ?? (letter.bytes ? `${letter.bytes} bytes that are not UTF-8` : 'no value');
    const sent = badge('ok', 'sent again');
    sent.classList.add('sent');
    return el(
      'tr', {},
      el('th', { scope: 'row' }, el('a', { href: `#/dead-letters/${segment(letter.id)}` }, letter.id)),
      el('td', {}, badge('reason', letter.reason), ' ', sent),
      el('td', { class: 'message' }, letter.message),
      el('td', { class: 'wide excerpt' }, el('code', {}, ...visible([...text].slice(0, EXCERPT).join('')))),
      el('td', { class: 'nowrap' }, time(letter.time)),
    );
  }

  /** Shows at once that letters were sent again. */
  #sent(ids) {
    for (const id of ids) {
      const letter = this.letters.get(id);
      if (letter) letter.sent_again = true;
    }
    this.groups.again();
    this.list.again();
  }
}
