// The drawer beside the view: one detail at a time, opened and closed by the page's address.

import { byId } from './dom.js';

export class Drawer {
  constructor() {
    this.dialog = byId('detail');
    this.title = byId('detail-title');
    this.body = byId('detail-body');
    byId('detail-close').addEventListener('click', () => this.dialog.close());
    this.dialog.addEventListener('click', (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
    this.dialog.addEventListener('close', () => {
      if (this.back) window.location.hash = this.back;
      this.#leave();
    });
  }

  /**
   * Opens with a title, in place of what was open before, whose `onLeave` is called first. Closing leads to the address
   * `back`. Returns the place for the content.
   */
  open(title, back, onLeave = () => {}) {
    this.#leave();
    Object.assign(this, { back, onLeave });
    this.title.replaceChildren(...[title].flat());
    this.body.replaceChildren();
    this.body.scrollTop = 0;
    if (!this.dialog.open) this.dialog.showModal();
    this.title.focus();
    return this.body;
  }

  /** Closes because the address has changed already. */
  hide() {
    this.back = null;
    if (this.dialog.open) this.dialog.close();
    this.#leave();
  }

  #leave() {
    this.onLeave?.();
    this.onLeave = null;
  }
}
