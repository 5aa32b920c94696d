// Tables of pulls, each of which opens its waterfall, and the repositories pulled most.

import * as as from "./format.js";
import { byId, el, imageName, keyed, part, parts, setAttribute, setText, setTime, show } from "./dom.js";
import { More } from "./more.js";

export const OUTCOMES = {
  hit: "all of it was here",
  joined: "part of it was just being downloaded for somebody else",
  miss: "part of it came from an upstream",
  near: "part of it came from another node, the bucket or another region",
  unchanged: "the client had it all, and only asked whether it is current",
  broken: "something failed, or was not read to its end",
};
const COLUMNS = [
  ["Image", "image"], ["Outcome", "outcome"], ["Took", "took number"], ["Sent", "sent number"],
  ["Layers had", "had number"], ["Client", "client"], ["Ended", "when number"],
];

export class Pulls {
  constructor() {
    this.recent = new PullTable(byId("recent"), "Recent pulls, the newest first", 12);
    this.slowest = new PullTable(byId("slowest"), "Slowest pulls of the last hour", 6);
  }

  update({ pulls }) {
    show(byId("recent-part"), pulls.recent.length > 0);
    show(byId("slowest-part"), pulls.slowest.length > 0);
    this.recent.update([...pulls.recent].sort((a, b) => ended(b) - ended(a)));
    this.slowest.update(pulls.slowest);
    show(byId("repositories-part"), pulls.repositories.length > 0);
    const top = pulls.repositories.slice(0, 10);
    const most = Math.max(1, ...top.map((one) => one.pulls));
    keyed(byId("repositories"), top, (one) => one.repository, makeRepository, (row, one) => updateRepository(row, one, most));
  }
}

class PullTable {
  constructor(place, caption, few) {
    this.body = el("tbody");
    const head = el("tr", {}, ...COLUMNS.map(([title, kind]) => el("th", { scope: "col", class: kind }, title)));
    const table = el("table", { class: "pulls" }, el("caption", { class: "unseen" }, caption), el("thead", {}, head), this.body);
    place.append(table);
    this.more = new More(table, few, () => this.update(this.pulls));
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (row && !event.target.closest("a") && String(getSelection()) === "") row.querySelector("a").click();
    });
  }

  update(pulls) {
    this.pulls = pulls;
    keyed(this.body, this.more.of(pulls), (pull) => pull.id, makeRow, updateRow);
  }
}

function ended(pull) {
  return pull.started_at + pull.seconds;
}

function makeRow(pull) {
  const cells = Object.fromEntries(COLUMNS.map(([, kind]) => [kind.split(" ")[0], el("td", { class: kind })]));
  cells.image.append(el("a", { href: `#pull=${encodeURIComponent(pull.id)}`, "aria-label": as.name(pull.image) }, imageName(pull.image)));
  cells.outcome.append(part("outcome", "span", { class: "outcome" }));
  for (const one of ["took", "sent", "had", "client"]) cells[one].append(part(one));
  cells.when.append(part("when", "time"));
  return el("tr", {}, ...Object.values(cells));
}

function updateRow(row, pull) {
  const { outcome, took, sent, had, client, when } = parts(row);
  setOutcome(outcome, pull);
  setText(took, as.duration(pull.seconds));
  setText(sent, as.bytes(pull.sent));
  setText(had, pull.layers > 0 ? `${pull.had} of ${pull.layers}` : "–");
  setText(client, as.name(pull.agent));
  setTime(when, ended(pull));
}

/** Show how a pull went: its outcome, or that it broke or changed nothing. */
function setOutcome(element, pull) {
  const outcome = pull.state === "broken" || pull.state === "unchanged" ? pull.state : pull.outcome;
  setText(element, as.name(outcome));
  setAttribute(element, "data-outcome", outcome);
  setAttribute(element, "title", OUTCOMES[outcome]);
}

function makeRepository(one) {
  return el("li", { class: "ranked" }, part("bar", "div", { class: "rank" }),
    el("div", { class: "line" }, imageName(one.repository), part("pulls", "span", { class: "figure" })),
    part("sent", "div", { class: "sub" }));
}

function updateRepository(row, one, most) {
  const { bar, pulls, sent } = parts(row);
  bar.style.width = `${(100 * one.pulls) / most}%`;
  setText(pulls, as.counted(one.pulls, "pull"));
  setText(sent, `${as.bytes(one.sent)} sent`);
}
