// Elements from plain values. Data becomes text only, never markup; what has not changed is not touched.

import * as as from "./format.js";

/** Make an element. Attributes of null are left out; children are nodes or text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, key, value) {
  if (value == null) element.removeAttribute(key);
  else if (element.getAttribute(key) !== String(value)) element.setAttribute(key, value);
}

export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

/** Show a number with its unit smaller, as byteParts and its like give them. */
export function setQuantity(element, [number, unit]) {
  if (element.childElementCount !== 2) element.replaceChildren(el("span", { class: "number" }), el("span", { class: "unit" }));
  setText(element.children[0], number);
  setText(element.children[1], unit ? ` ${unit}` : "");
}

/** Show one child of `parent` for each item: those that stay keep their element, and with it the focus. */
export function keyed(parent, items, keyOf, make, update) {
  const keys = items.map((item) => String(keyOf(item)));
  const wanted = new Set(keys);
  const known = new Map();
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  for (const child of Array.from(parent.children)) {
    const { key } = child.dataset;
    if (wanted.has(key) && !known.has(key)) known.set(key, child);
    else child.remove();
  }
  let place = parent.firstElementChild;
  items.forEach((item, index) => {
    let child = known.get(keys[index]);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = keys[index];
    }
    known.delete(keys[index]);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    update(child, item);
  });
  // What was moved has lost the focus.
  if (focused?.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true });
}

/** The parts of an element by their data-part. */
export function parts(element) {
  if (element.partsFound === undefined) {
    element.partsFound = Object.fromEntries(
      Array.from(element.querySelectorAll("[data-part]"), (part) => [part.dataset.part, part]),
    );
  }
  return element.partsFound;
}

export function part(name, tag = "span", attributes = {}) {
  return el(tag, { "data-part": name, ...attributes });
}

/** A bar that is full at 1; `update` it with a share and what it means in words. */
export function meter(label, role = "meter") {
  const bar = el("div", { class: "fill" });
  return el("div", { class: "meter", role, "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, bar);
}

export function setMeter(element, share, words, level = "") {
  const known = share != null;
  const percent = known ? Math.max(0, Math.min(100, share * 100)) : 0;
  element.firstElementChild.style.width = `${percent.toFixed(2)}%`;
  setAttribute(element, "aria-valuenow", known ? Math.round(percent) : null);
  setAttribute(element, "aria-valuetext", words);
  setAttribute(element, "data-level", level || null);
  setAttribute(element, "data-unknown", known ? null : "");
}

/** The name of an image: where it is from, cut where there is no room, and what it is. */
export function imageName(reference) {
  const [where, what] = as.image(reference);
  return el("bdi", { class: "image", title: as.name(reference), dir: "ltr" },
    el("span", { class: "where" }, where), el("span", { class: "what" }, what));
}

export function setTime(element, unix) {
  setText(element, as.when(unix, Date.now() / 1000));
  setAttribute(element, "title", as.moment(unix));
  setAttribute(element, "datetime", new Date(unix * 1000).toISOString());
}
