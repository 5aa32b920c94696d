// A long list shows its first entries, and a button for the rest.

import { el, setAttribute, setText, show } from "./dom.js";

export class More {
  constructor(list, few, changed) {
    this.few = few;
    this.all = false;
    this.button = el("button", { type: "button", class: "more" });
    this.button.addEventListener("click", () => {
      this.all = !this.all;
      changed();
    });
    list.after(this.button);
  }

  /** Return those of `items` that are shown now. */
  of(items) {
    const rest = items.length - this.few;
    show(this.button, rest > 0);
    setAttribute(this.button, "aria-expanded", String(this.all));
    setText(this.button, this.all ? "Show fewer" : `Show ${rest.toLocaleString("en")} more`);
    return this.all ? items : items.slice(0, this.few);
  }
}
