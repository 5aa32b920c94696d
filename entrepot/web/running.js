// What runs now: pulls by clients, and downloads from upstreams with those who read along.

import * as as from "./format.js";
import { byId, el, imageName, keyed, meter, part, parts, setMeter, setText, setTime, show } from "./dom.js";
import { More } from "./more.js";

const MANIFESTS = 65536;
/** A client that asks for nothing for so many seconds has perhaps all that it wanted: the mirror waits a little longer. */
const QUIET = 1.5;

export class Running {
  constructor() {
    this.pulls = new More(byId("running-pulls"), 6, () => this.update(this.live));
    this.fills = new More(byId("fills"), 8, () => this.update(this.live));
  }

  update(live) {
    this.live = live;
    const pulls = live.pulls.running.filter((pull) => transfers(pull, live.now));
    const quiet = live.pulls.running.filter((pull) => wantsLayers(pull) && isQuiet(pull, live.now)).length;
    const asking = live.pulls.running.length - pulls.length - quiet;
    show(byId("running-none"), live.pulls.running.length + live.fills.length === 0);
    show(byId("running-pulls-part"), pulls.length > 0);
    show(byId("fills-part"), live.fills.length > 0);
    setText(byId("running-pulls-count"), as.count(pulls.length));
    const more = live.pulls.more_running;
    show(byId("running-asking"), asking + quiet + more > 0);
    setText(byId("running-asking"), [
      asking > 0 && `${as.counted(asking, "client")} asked for a manifest just now, and for no layer yet.`,
      quiet > 0 && `${as.counted(quiet, "pull")} ${quiet === 1 ? "pauses" : "pause"}: done if nothing more is asked for.`,
      more > 0 && `${as.counted(more, "pull")} that began before ${more === 1 ? "is" : "are"} not told of.`,
    ].filter(Boolean).join(" "));
    setText(byId("fills-count"), as.count(live.fills.length));
    keyed(byId("running-pulls"), this.pulls.of(pulls), (pull) => pull.id, makePull, updatePull);
    keyed(byId("fills"), this.fills.of(live.fills), (fill) => fill.digest, makeFill, updateFill);
  }
}

/** Whether layers go to a client just now. */
export function transfers(pull, now) {
  return wantsLayers(pull) && !isQuiet(pull, now);
}

/** A pull that has asked for manifests alone may be one that finds nothing new. */
function wantsLayers(pull) {
  return pull.layers > 0 ? pull.had < pull.layers : pull.sent > MANIFESTS;
}

function isQuiet(pull, now) {
  return now - pull.started_at - pull.seconds > QUIET;
}

function makePull(pull) {
  const bar = meter(`Progress of the pull of ${as.name(pull.image)}`, "progressbar");
  bar.dataset.part = "bar";
  return el("li", {},
    el("div", { class: "line" }, el("a", { href: `#pull=${encodeURIComponent(pull.id)}`, "aria-label": as.name(pull.image) }, imageName(pull.image)), part("time", "span", { class: "figure" })),
    bar,
    el("div", { class: "line sub" }, part("words"), part("since", "time")));
}

function updatePull(row, pull) {
  const { bar, time, words, since } = parts(row);
  const share = pull.layer_bytes > 0 ? Math.min(1, pull.sent / pull.layer_bytes) : null;
  const of = pull.layer_bytes > 0 ? ` of at most ${as.bytes(pull.layer_bytes)}` : "";
  setMeter(bar, share, `${as.bytes(pull.sent)}${of}`);
  setText(time, as.duration(pull.seconds));
  const layers = pull.layers > 0 ? ` · ${as.counted(pull.layers, "layer")}` : "";
  setText(words, `${as.bytes(pull.sent)}${of}${layers} · ${as.name(pull.outcome)} · ${as.name(pull.agent)}`);
  setTime(since, pull.started_at);
}

function makeFill(fill) {
  const bar = meter(`Progress of the download ${as.digest(fill.digest)}`, "progressbar");
  bar.dataset.part = "bar";
  return el("li", {},
    el("div", { class: "line" }, imageName(fill.repository), part("share", "span", { class: "figure" })),
    bar,
    el("div", { class: "line sub" }, part("words"), el("code", { title: as.name(fill.digest) }, as.digest(fill.digest))));
}

function updateFill(row, fill) {
  const { bar, share, words } = parts(row);
  const done = fill.size ? fill.received / fill.size : null;
  const of = fill.size == null ? "size not known yet" : `of ${as.bytes(fill.size)}`;
  setMeter(bar, done, `${as.bytes(fill.received)} ${of}`);
  setText(share, as.percent(done));
  const readers = fill.readers === 0 ? "nobody waits" : fill.readers === 1 ? "1 reader" : `${as.count(fill.readers)} readers share it`;
  setText(words, `${as.bytes(fill.received)} ${of} · ${readers}${fill.source ? ` · from ${as.name(fill.source)}` : ""}`);
}
