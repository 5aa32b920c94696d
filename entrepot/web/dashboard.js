// The entry of the page: follows the mirror, and gives what it says to those who show it.

import * as as from "./format.js";
import { byId, setText, show } from "./dom.js";
import { getJson, hasToken, keepToken, LiveStream, Refused } from "./asking.js";
import { Charts } from "./charts.js";
import { Headline } from "./headline.js";
import { updatePlaces } from "./places.js";
import { Pulls } from "./pulls.js";
import { Running } from "./running.js";
import { Waterfall } from "./waterfall.js";

const AGAIN = 5000;
const WINDOWS = { 900: "1h", 3600: "1h", 21600: "6h", 86400: "24h" };

class Dashboard {
  constructor() {
    this.headline = new Headline();
    this.running = new Running();
    this.pulls = new Pulls();
    this.waterfall = new Waterfall();
    this.charts = null;
    this.heard = null;
    this.started = null;
    this.loaded = null;
    this.failed = false;
    this.history = null;
    this.since = null;
    this.version = null;
    this.stream = new LiveStream({
      onDocument: (live) => this.update(live),
      onLost: (why) => this.lost(why),
      onRefused: (error) => this.closed(error),
    });
    byId("window").addEventListener("change", () => this.load());
    byId("token-form").addEventListener("submit", (event) => this.tokenGiven(event));
    this.stream.start();
  }

  update(live) {
    // A mirror that was upgraded brings a page that understands it.
    this.version ??= live.version;
    if (this.version !== live.version) {
      location.reload();
      return;
    }
    const first = this.heard === null;
    const again = document.body.dataset.stale !== undefined || this.started !== live.started_at;
    this.heard = Date.now();
    this.started = live.started_at;
    this.since = null;
    delete document.body.dataset.stale;
    show(byId("token"), false);
    show(byId("numbers"), true);
    this.headline.update(live);
    this.running.update(live);
    this.pulls.update(live);
    updatePlaces(live);
    welcome(live);
    document.title = live.state === "ready" ? "Entrepot" : `${live.state} – Entrepot`;
    setText(byId("foot"), `Entrepot ${as.name(live.version)}, up ${as.duration(live.uptime)}. Numbers without another time are since the start, ${as.moment(live.started_at)}. All times are local. Nothing is kept on disk.`);
    if (document.body.dataset.fresh === undefined) this.charts ??= new Charts();
    if (first) this.waterfall.follow();
    else this.waterfall.update();
    if (this.charts === null) return;
    if (again || this.loaded === null) this.load();
    else this.advance(live);
  }

  /** Show a new point, or ask for the points again where they are far apart, or did not come. */
  advance(live) {
    const old = Date.now() - this.loaded;
    if (this.failed ? old > AGAIN : this.charts.step > 5 && old > this.charts.step * 1000) this.load();
    else if (live.point) this.charts.add(live.point);
  }

  async load() {
    this.history?.abort();
    const mine = new AbortController();
    this.history = mine;
    this.loaded = Date.now();
    this.failed = false;
    const span = Number(document.querySelector("#window :checked").value);
    try {
      const history = await getJson(`../api/history?window=${WINDOWS[span]}`, mine.signal);
      if (mine === this.history) this.charts.load(history, span);
    } catch (error) {
      if (mine !== this.history) return;
      if (error instanceof Refused && error.wantsToken) this.closed(error);
      this.failed = true;
    }
  }

  lost(why) {
    document.body.dataset.stale = "";
    this.since ??= this.heard;
    this.headline.lost(why, this.since);
  }

  closed(error) {
    const wrong = hasToken() && error.status === 401;
    const again = byId("token").hidden;
    keepToken(null);
    this.headline.closed(error.status === 401 ? "the mirror asks for the admin token" : "the mirror has no admin token that could be asked for");
    show(byId("numbers"), false);
    show(byId("token"), true);
    show(byId("token-form"), error.status === 401);
    setText(byId("token-why"), wrong ? "That token does not open it. Is it the one of this mirror, and whole?" : `${as.name(error.message)}.`);
    if (error.status !== 401) return;
    this.stream.pause();
    if (again || wrong) byId("token-field").focus();
  }

  tokenGiven(event) {
    event.preventDefault();
    keepToken(byId("token-field").value.trim());
    byId("token-field").value = "";
    this.heard = null;
    this.stream.start();
  }
}

/** Tell who has a fresh mirror what to do with it. */
function welcome(live) {
  const { pulls } = live;
  const fresh = pulls.recent.length + pulls.running.length === 0 && Object.values(pulls.outcomes).every((one) => one === 0);
  show(byId("welcome"), fresh);
  show(byId("hours"), !fresh);
  if (fresh) document.body.dataset.fresh = "";
  else delete document.body.dataset.fresh;
  if (!fresh) return;
  const url = reachable(live.listen?.[0]);
  setText(byId("welcome-pull"), `docker pull ${url.host}/library/alpine`);
  setText(byId("welcome-client"), `entrepot client docker --mirror ${url.origin} --write`);
}

/** The mirror's URL, as it can be reached from where this page is seen. */
function reachable(listen) {
  const url = new URL(listen ?? `http://${location.hostname}:5000`);
  if (["0.0.0.0", "[::]"].includes(url.hostname)) url.hostname = location.hostname;
  return url;
}

new Dashboard();
