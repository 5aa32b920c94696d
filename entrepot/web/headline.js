// What is asked first: does it serve, and the headline numbers.

import * as as from "./format.js";
import { byId, el, meter, setAttribute, setMeter, setQuantity, setText, show } from "./dom.js";
import { transfers } from "./running.js";

const WORDS = {
  ready: ["good", "Ready", ""],
  degraded: ["warn", "Degraded", "it serves what it can"],
  starting: ["waiting", "Starting", ""],
  draining: ["waiting", "Draining", "it finishes what it began, and takes nothing new"],
  damaged: ["bad", "Damaged", "it cannot serve"],
};

export class Headline {
  constructor() {
    this.disk = byId("disk-meter").appendChild(meter("Disk used, of what may be used"));
    this.quota = byId("quota-meter").appendChild(meter("Requests that the upstream still allows"));
  }

  /** `since` is null where nothing was heard of it so far. */
  lost(why, since) {
    if (since === null) this.state("bad", "No numbers yet", `${as.name(why)}. Asking again, ever less often.`);
    else this.state("bad", "Connection lost", `since ${as.when(since / 1000, Date.now() / 1000)}: ${as.name(why)}. Asking again, ever less often; the numbers are from then.`);
  }

  closed(why) {
    this.state("waiting", "Not shown", why);
    show(byId("reasons"), false);
  }

  state(level, word, words) {
    setAttribute(byId("state"), "data-level", level);
    setText(byId("state-word"), words ? `${word}:` : word);
    setText(byId("state-words"), words);
  }

  update(live) {
    const [level, word, words] = WORDS[live.state] ?? ["bad", as.name(live.state), ""];
    this.state(level, word, live.offline ? `${words ? `${words}; ` : ""}offline: no upstream is asked` : words);
    const reasons = byId("reasons");
    show(reasons, live.reasons.length > 0);
    const told = live.reasons.map(as.name);
    if (reasons.dataset.told !== told.join("\n")) {
      reasons.dataset.told = told.join("\n");
      reasons.replaceChildren(...told.map((reason) => el("li", {}, reason)));
    }
    show(byId("region"), Boolean(live.region));
    setText(byId("region"), as.name(live.region));
    setAttribute(byId("region"), "title", live.region ? `Region ${as.name(live.region)}` : null);
    setText(byId("about"), `${as.name(live.version)} · up ${as.duration(live.uptime)}`);
    setAttribute(byId("about"), "title", `started ${as.moment(live.started_at)}`);
    this.pulls(live);
    this.bytes(live.totals);
    this.space(live);
    this.upstreams(live);
  }

  pulls({ pulls, now }) {
    const { latency } = pulls;
    for (const one of ["p50", "p90", "p99"]) setQuantity(byId(one), as.durationParts(latency[one]));
    setQuantity(byId("pulls"), [as.count(latency.count), ""]);
    const { unchanged = 0, broken = 0, ...done } = pulls.outcomes;
    const ever = Object.values(done).reduce((sum, one) => sum + one, 0);
    setText(byId("pulls-more"), [
      `${as.count(pulls.running.filter((pull) => transfers(pull, now)).length)}${pulls.more_running > 0 ? "+" : ""}\u00a0running`,
      `${as.count(ever)}\u00a0ever`,
      unchanged > 0 && `${as.count(unchanged)}\u00a0unchanged`,
      broken > 0 && `${as.count(broken)}\u00a0broken`,
      pulls.had_share != null && `clients had ${as.percent(pulls.had_share)} of layers`,
    ].filter(Boolean).join(" · "));
  }

  bytes(totals) {
    const told = totals.lookups;
    const looked = ["hit", "joined", "stale", "miss", "neighbour", "bucket", "relayed", "redirected", "error"]
      .reduce((sum, outcome) => sum + (told[outcome] ?? 0), 0);
    const hits = (told.hit ?? 0) + (told.joined ?? 0) + (told.stale ?? 0);
    setQuantity(byId("hits"), as.percentParts(looked ? hits / looked : null));
    const byBytes = totals.sent > 0 ? Math.max(0, 1 - totals.received / totals.sent) : null;
    setText(byId("hits-more"), byBytes == null ? "of requests" : `of requests · ${as.percent(byBytes)} of bytes`);
    setQuantity(byId("saved"), as.byteParts(totals.saved));
    const near = totals.near > 0 ? ` · ${as.bytes(totals.near)} from near` : "";
    setText(byId("saved-more"), `${as.bytes(totals.sent)} sent · ${as.bytes(totals.received)} received${near}`);
  }

  space({ space, totals }) {
    if (space == null) {
      setQuantity(byId("disk"), [as.percent(null), ""]);
      setMeter(this.disk, null, "not known");
      setText(byId("disk-more"), "the disk does not answer");
      return;
    }
    const used = space.stored + space.reserved;
    const share = space.high > 0 ? used / space.high : null;
    setQuantity(byId("disk"), as.percentParts(share));
    setMeter(this.disk, share, `${as.bytes(used)} of ${as.bytes(space.high)}`, diskLevel(space));
    const evicted = totals.evicted ? ` · ${as.counted(totals.evicted, "image")} evicted` : "";
    setText(byId("disk-more"), `${as.bytes(used)} of ${as.bytes(space.high)}${evicted}`);
  }

  upstreams({ upstreams }) {
    const scarcest = upstreams
      .flatMap((upstream) => upstream.hosts.map((host) => ({ upstream, quota: host.quota })))
      .filter(({ quota }) => quota != null && quota.limit > 0)
      .sort((a, b) => a.quota.remaining / a.quota.limit - b.quota.remaining / b.quota.limit)[0];
    const failing = upstreams.filter((upstream) => !upstream.reachable).length;
    const health = failing ? `${failing} of ${as.counted(upstreams.length, "upstream")} ${failing === 1 ? "fails" : "fail"}` : "all upstreams answer";
    show(byId("quota-meter"), scarcest != null);
    if (scarcest == null) {
      setText(byId("quota-title"), "Upstreams");
      if (!upstreams.some((upstream) => upstream.hosts.some((host) => host.answered)) && failing === 0) {
        setQuantity(byId("quota"), [as.count(upstreams.length), ""]);
        setText(byId("quota-more"), "not asked yet");
        return;
      }
      setQuantity(byId("quota"), [`${upstreams.length - failing} of ${upstreams.length}`, ""]);
      setText(byId("quota-more"), failing ? `answer · ${failing} ${failing === 1 ? "fails" : "fail"}` : "answer; none told of a quota");
      return;
    }
    const { limit, remaining } = scarcest.quota;
    setText(byId("quota-title"), "Upstream quota");
    setQuantity(byId("quota"), [as.count(remaining), `of ${as.count(limit)} left`]);
    setMeter(this.quota, remaining / limit, `${remaining} of ${limit} requests left`, quotaLevel(scarcest.quota));
    setText(byId("quota-more"), `${as.name(scarcest.upstream.name)} · ${health}`);
  }
}

export function quotaLevel({ limit, remaining }) {
  return remaining <= limit * 0.1 ? "bad" : remaining <= limit * 0.25 ? "warn" : "";
}

/** A full cache is as it should be, as eviction keeps it below its mark: trouble is only what goes beyond. */
export function diskLevel(space) {
  const used = space.stored + space.reserved;
  return used > space.high || space.high === 0 ? "bad" : used > space.high * 0.99 ? "warn" : "";
}
