// One pull, opened: each request as a bar on one time axis. It is at #pull=ID, so that it can be linked.

import * as as from "./format.js";
import { byId, el, imageName, keyed, part, parts, setAttribute, setText, show } from "./dom.js";
import { getJson, Refused } from "./asking.js";
import { setFacts } from "./places.js";
import { OUTCOMES } from "./pulls.js";

const PREFIX = "#pull=";
const STEPS = [1, 2, 5];

export class Waterfall {
  constructor() {
    this.dialog = byId("pull");
    this.id = null;
    this.asked = null;
    addEventListener("hashchange", () => this.follow());
    byId("pull-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => this.closed());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    const bars = byId("pull-bars");
    bars.addEventListener("keydown", (event) => walk(event, bars));
    for (const event of ["focusin", "pointerover"]) {
      bars.addEventListener(event, ({ target }) => this.tell(target.closest("button")?.bar));
    }
  }

  /** Open what the address names, or close. */
  follow() {
    const id = location.hash.startsWith(PREFIX) ? decoded(location.hash.slice(PREFIX.length)) : null;
    if (id === null) {
      if (this.dialog.open) this.dialog.close();
      return;
    }
    if (id !== this.id) this.clear();
    this.id = id;
    if (!this.dialog.open) this.dialog.showModal();
    this.ask();
  }

  /** The mirror said how its pulls are: one that runs has gone on. */
  update() {
    if (this.dialog.open && this.running && this.asked === null) this.ask();
  }

  async ask() {
    this.asked?.abort();
    const asked = new AbortController();
    this.asked = asked;
    try {
      const detail = await getJson(`../api/pulls/${encodeURIComponent(this.id)}`, asked.signal);
      if (asked === this.asked) this.show(detail);
    } catch (error) {
      if (asked !== this.asked || asked.signal.aborted) return;
      const gone = error instanceof Refused && error.status === 404;
      setText(byId("pull-note"), gone ? "This pull is not known any more: the mirror keeps the latest ones, in memory." : `It cannot be shown: ${as.name(error.message)}`);
      this.running = false;
    } finally {
      if (asked === this.asked) this.asked = null;
    }
  }

  clear() {
    byId("pull-title").replaceChildren("Pull");
    setText(byId("pull-note"), "");
    byId("pull-facts").replaceChildren();
    byId("pull-bars").replaceChildren();
    byId("pull-detail").replaceChildren();
    show(byId("pull-waterfall"), false);
    this.told = null;
  }

  closed() {
    this.asked?.abort();
    this.id = null;
    this.running = false;
    if (location.hash.startsWith(PREFIX)) history.replaceState(null, "", location.pathname + location.search);
  }

  show({ pull, bars, more }) {
    this.running = pull.state === "running";
    const title = byId("pull-title");
    if (title.dataset.image !== pull.image || title.childElementCount === 0) title.replaceChildren(imageName(pull.image));
    title.dataset.image = pull.image;
    setText(byId("pull-note"), summary(pull));
    setFacts(byId("pull-facts"), [
      ["Took", `${as.duration(pull.seconds)}${this.running ? " so far" : ""}`],
      ["Sent", as.bytes(pull.sent)],
      pull.layers > 0 && ["Layers the client had", `${pull.had} of ${pull.layers}, ${as.bytes(pull.had_bytes)} of ${as.bytes(pull.layer_bytes)}`],
      ["Client", as.name(pull.agent)],
      pull.platform && ["Platform", as.name(pull.platform)],
      ["Started", as.moment(pull.started_at)],
      pull.digest && ["Digest", as.name(pull.digest)],
    ]);
    const span = Math.max(0.001, pull.seconds, ...bars.map(end));
    const step = stepOf(span);
    const place = byId("pull-waterfall");
    place.style.setProperty("--step", `${(100 * step) / span}%`);
    show(place, bars.length > 0);
    const ticks = Array.from({ length: Math.floor(span / step) + 1 }, (_, index) => index * step).filter((at) => at <= span * 0.97);
    keyed(byId("pull-axis"), ticks, (at) => at, () => el("span"), (tick, at) => {
      tick.style.left = `${(100 * at) / span}%`;
      setText(tick, at === 0 ? "0" : as.duration(Number(at.toPrecision(6))));
    });
    keyed(byId("pull-bars"), bars.map((bar, index) => ({ bar, index })), ({ index }) => index, makeBar, (row, { bar }) => updateBar(row, bar, span));
    setText(byId("pull-more"), more > 0 ? `${as.counted(more, "request")} more ${more === 1 ? "was" : "were"} too many to keep.` : "");
    this.tell(this.told ?? bars[0]);
  }

  tell(bar) {
    if (!bar) return;
    this.told = bar;
    setFacts(byId("pull-detail"), [
      ["Request", `${bar.role} ${as.name(bar.reference || bar.digest)}`],
      bar.digest && bar.digest !== bar.reference && ["Digest", as.name(bar.digest)],
      ["Starts at", as.duration(bar.start)],
      ["Wait", as.duration(bar.wait)],
      ["Upstream", as.duration(bar.upstream)],
      ["Transfer", as.duration(bar.transfer)],
      ["Sent", bar.size > 0 && bar.size !== bar.sent ? `${as.bytes(bar.sent)} of ${as.bytes(bar.size)}` : as.bytes(bar.sent)],
      ["Answer", `${bar.status || "none yet"}, ${wentAs(bar)}`],
    ]);
  }
}

function end(bar) {
  return bar.start + bar.wait + bar.upstream + bar.transfer;
}

function summary(pull) {
  if (pull.state === "running") return `Running: ${as.name(pull.outcome)} so far.`;
  const outcome = pull.state === "done" ? pull.outcome : pull.state;
  return `${as.name(outcome)}${OUTCOMES[outcome] ? `: ${OUTCOMES[outcome]}` : ""}.`;
}

/** The distance of ticks, so that there are four to nine of them. */
function stepOf(span) {
  let power = 10 ** Math.floor(Math.log10(span / 4));
  for (const factor of [...STEPS, 10]) if (span / (power * factor) <= 6) return power * factor;
  return power * 10;
}

function makeBar() {
  const segments = ["wait", "upstream", "transfer"].map((kind) => part(kind, "span", { class: `segment ${kind}` }));
  const button = el("button", { type: "button", "data-part": "button" },
    part("role", "span", { class: "role" }), part("digest", "code"), part("size", "span", { class: "number" }),
    part("outcome", "span", { class: "outcome" }), el("span", { class: "track" }, ...segments));
  return el("li", {}, button);
}

/** How a request went: what was left, or failed, before it was known where its content is has no outcome. */
function wentAs(bar) {
  if (bar.outcome !== "none") return as.name(bar.outcome);
  return bar.status === 0 ? "begun" : bar.status === 499 ? "left" : bar.status >= 400 ? "failed" : "none";
}

/** The tag that was asked for, or the digest. */
function called(bar) {
  const tag = bar.role === "manifest" && !bar.reference.includes(":");
  return tag || !bar.digest ? as.name(bar.reference) : as.digest(bar.digest);
}

function updateBar(row, bar, span) {
  const found = parts(row);
  found.button.bar = bar;
  setText(found.role, bar.role);
  setText(found.digest, called(bar));
  setText(found.size, as.bytes(bar.size || bar.sent));
  setText(found.outcome, wentAs(bar));
  setAttribute(found.outcome, "data-outcome", bar.status >= 400 ? "broken" : bar.outcome);
  let at = bar.start;
  for (const kind of ["wait", "upstream", "transfer"]) {
    const segment = found[kind];
    show(segment, bar[kind] > 0);
    segment.style.left = `${(100 * at) / span}%`;
    segment.style.width = `${(100 * bar[kind]) / span}%`;
    at += bar[kind];
  }
  setAttribute(found.button, "aria-label",
    `${bar.role} ${called(bar)}, ${as.bytes(bar.size || bar.sent)}, ${wentAs(bar)}: ` +
    `starts at ${as.duration(bar.start)}, waits ${as.duration(bar.wait)}, upstream ${as.duration(bar.upstream)}, ` +
    `transfer ${as.duration(bar.transfer)}, answer ${bar.status || "none yet"}`);
}

function walk(event, bars) {
  const here = event.target.closest("li");
  const next = { ArrowDown: here?.nextElementSibling, ArrowUp: here?.previousElementSibling, Home: bars.firstElementChild, End: bars.lastElementChild }[event.key];
  if (!next) return;
  event.preventDefault();
  next.firstElementChild.focus();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
