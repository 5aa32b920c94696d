// Where images come from and go to: upstreams, the disk, other regions, the fleet, the bucket, the workers.

import * as as from "./format.js";
import { byId, el, keyed, meter, part, parts, setAttribute, setMeter, setText, show } from "./dom.js";
import { diskLevel, quotaLevel } from "./headline.js";

const PEER_LEVELS = { current: "good", fetching: "good", starting: "idle", stopped: "idle", held: "warn", failing: "bad" };

export function updatePlaces(live) {
  keyed(byId("upstreams"), live.upstreams, (one) => one.name, makeUpstream, updateUpstream);
  updateSpace(live);
  updateRegions(live.regions);
  updateFleet(live.fleet);
  updateBucket(live.bucket);
  const crowded = live.regions != null || live.fleet != null || live.workers.length > 0;
  const place = document.querySelector(crowded ? ".column:not(.side)" : ".side");
  if (byId("repositories-part").parentElement !== place) place.append(byId("repositories-part"));
  show(byId("workers-part"), live.workers.length > 0);
  keyed(byId("workers"), live.workers, (one) => one.number, makeEntry, updateWorker);
}

/** An entry of a list: a sign and a name, a word of how it is, and lines of words below. */
function makeEntry() {
  return el("li", { class: "entry" },
    el("div", { class: "line" }, el("span", { class: "named" }, part("sign", "span", { class: "sign", "aria-hidden": "true" }), part("name", "bdi", { dir: "ltr" })),
      part("word", "span", { class: "word" })),
    part("lines", "div", { class: "sub" }));
}

function setEntry(row, level, name, word, lines) {
  const found = parts(row);
  setAttribute(row, "data-level", level);
  setText(found.name, name);
  setAttribute(found.name, "title", name);
  setText(found.word, word);
  const told = lines.filter(Boolean);
  keyed(found.lines, told.map((text, index) => ({ text, index })), ({ index }) => index, () => el("div"), (one, { text }) => {
    setText(one, text);
    setAttribute(one, "title", text.length > 80 ? text : null);
  });
}

function makeUpstream(upstream) {
  const row = makeEntry();
  const bar = meter(`Requests that ${as.name(upstream.name)} still allows`);
  bar.dataset.part = "quota";
  row.insertBefore(bar, row.lastChild);
  return row;
}

function updateUpstream(row, upstream) {
  const { hosts } = upstream;
  const stopped = hosts.some((host) => host.breaker !== "closed");
  const held = hosts.flatMap((host) => Object.entries(host.held).map(([kind, seconds]) =>
    `${as.name(host.host)} asks to wait ${as.duration(seconds)} with ${as.name(kind)} requests`));
  const refused = hosts.filter((host) => host.credential_refused || host.credential_error);
  const answered = hosts.some((host) => host.answered);
  const troubled = stopped || held.length > 0 || refused.length > 0 || hosts.some((host) => !host.reachable);
  const [level, word] = !upstream.reachable ? ["bad", "fails"] : troubled ? ["warn", "answers in part"] : answered ? ["good", "answers"] : ["idle", "not asked yet"];
  const quota = hosts.map((host) => host.quota).filter((one) => one && one.limit > 0).sort((a, b) => a.remaining / a.limit - b.remaining / b.limit)[0];
  const bar = parts(row).quota;
  show(bar, quota != null);
  if (quota) setMeter(bar, quota.remaining / quota.limit, `${quota.remaining} of ${quota.limit} requests left`, quotaLevel(quota));
  setEntry(row, level, as.name(upstream.name), word, [
    quota && `${as.count(quota.remaining)} of ${as.counted(quota.limit, "request")} left${quota.window ? ` (window ${as.duration(quota.window)})` : ""}`,
    ...held,
    ...hosts.filter((host) => host.breaker === "open").map((host) => `${as.name(host.host)} is not asked for now: it failed too often`),
    ...hosts.filter((host) => host.breaker === "half-open").map((host) => `${as.name(host.host)} is being tried again`),
    ...refused.map((host) => `${as.name(host.host)} ${host.credential_refused ? "refuses our credential: renew it" : `: our credential cannot be read: ${as.name(host.credential_error)}`}`),
    ...hosts.filter((host) => host.error && !host.reachable).map((host) => `${as.name(host.host)}: ${as.name(host.error)}`),
  ]);
}

function updateSpace({ space, store, totals }) {
  const place = byId("space");
  if (place.childElementCount === 0) {
    place.dataset.level = "";
    const bar = meter("Disk used, of what may be used");
    bar.dataset.part = "bar";
    bar.append(part("low", "span", { class: "mark", "aria-hidden": "true" }));
    place.append(bar, part("facts", "dl", { class: "facts" }));
  }
  const { bar, low, facts } = parts(place);
  const used = space == null ? null : space.stored + space.reserved;
  show(bar, space != null && space.high > 0);
  if (space != null && space.high > 0) {
    setMeter(bar, used / space.high, `${as.bytes(used)} of ${as.bytes(space.high)}`, diskLevel(space));
    low.style.left = `${(100 * space.low) / space.high}%`;
  }
  setFacts(facts, space == null ? [["Disk", "does not answer"]] : [
    ["Used", `${as.bytes(used)} of ${as.bytes(space.high)}`],
    space.reserved > 0 && ["Of it for downloads", as.bytes(space.reserved)],
    ["Evicts down to", as.bytes(space.low)],
    ["Free on the volume", as.bytes(space.free)],
    store && ["Stored", `${as.counted(store.manifests, "manifest")}, ${as.counted(store.blobs, "blob")}, ${as.counted(store.tags, "tag")}`],
    ["Evicted since the start", `${as.counted(totals.evicted, "image")}, ${as.bytes(totals.evicted_bytes)}`],
    totals.verification_failures > 0 && ["Did not fit their digest", as.counted(totals.verification_failures, "download")],
  ]);
}

/** Show pairs of a name and a text. */
export function setFacts(list, facts) {
  keyed(list, facts.filter(Boolean), ([term]) => term,
    ([term]) => el("div", {}, el("dt", {}, term), part("told", "dd")), (row, [, text]) => setText(parts(row).told, text));
}

function updateRegions(regions) {
  show(byId("regions-part"), regions != null);
  if (regions == null) return;
  keyed(byId("regions"), regions.peers, (one) => one.name, makeEntry, (row, peer) => {
    const late = peer.seconds_behind > 0 ? ` · ${as.duration(peer.seconds_behind)} behind` : "";
    setEntry(row, PEER_LEVELS[peer.state] ?? "warn", as.name(peer.name), `${as.name(peer.state)}${late}`, [
      (peer.seconds_behind > 0 || peer.images_behind > 0) && `${as.counted(peer.images_behind, "image or tag", "images and tags")} to come${peer.bytes_behind > 0 ? `, ${as.bytes(peer.bytes_behind)}` : ""}${peer.rate > 0 ? `, at ${as.rate(peer.rate)}` : ""}`,
      peer.held && `nothing is fetched now: ${as.name(peer.held)}`,
      peer.error && as.name(peer.error),
      peer.removals_refused && as.name(peer.removals_refused),
      peer.refused_clock > 0 && `${as.counted(peer.refused_clock, "record")} ahead of this clock`,
    ]);
  });
  const readers = regions.grants.map((grant) => as.name(grant.name)).join(", ");
  setText(byId("grants"), readers ? `May read from here: ${readers}` : "");
}

function updateFleet(fleet) {
  show(byId("fleet-part"), fleet != null);
  if (fleet == null) return;
  show(byId("fleet-problem"), Boolean(fleet.problem));
  setText(byId("fleet-problem"), fleet.problem ? `This node works alone, without Redis: ${as.name(fleet.problem)}` : "");
  const ours = { url: fleet.url, version: "", state: "this node", behind: 0 };
  const others = fleet.incompatible.map((url) => ({ url, version: "", state: "speaks another protocol", behind: 0 }));
  keyed(byId("nodes"), [ours, ...fleet.nodes, ...others], (one) => one.url, makeEntry, (row, node) => {
    const level = others.includes(node) ? "bad" : node.state === "ready" || node === ours ? (node.behind > 5 ? "warn" : "good") : "warn";
    setEntry(row, level, as.name(node.url), as.name(node.state), [
      node.behind > 0 && `${as.duration(node.behind)} behind`,
      node.behind == null && "not known yet how far behind",
    ]);
  });
}

function updateBucket(bucket) {
  show(byId("bucket-part"), bucket != null);
  keyed(byId("bucket"), bucket == null ? [] : [bucket], (one) => one.url, makeEntry, (row, one) => {
    setEntry(row, one.problem ? "bad" : "good", as.name(one.url), one.problem ? "out of reach" : "answers", [
      one.problem && as.name(one.problem),
      one.waiting > 0 && `${as.counted(one.waiting, "upload")} to come, the oldest waits for ${as.duration(one.age)}`,
    ]);
  });
}

function updateWorker(row, worker) {
  const restarts = worker.restarts > 0 ? `started again ${worker.restarts === 1 ? "once" : `${as.count(worker.restarts)} times`}` : "";
  const pid = `pid ${worker.pid}`;
  setEntry(row, worker.answers ? "good" : "bad", `Worker ${worker.number}`, worker.answers ? pid : "does not answer", [
    worker.answers ? restarts : [pid, restarts].filter(Boolean).join(" · "),
  ]);
}
