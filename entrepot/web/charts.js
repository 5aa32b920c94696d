// The four charts of the last hours, drawn by uPlot: from /api/history, then point by point as they come.

import * as as from "./format.js";
import { byId, el, setText, show } from "./dom.js";
import { binned } from "./bins.js";

/** A mirror that has just started fills its charts from here on, in seconds. */
const YOUNG = 120;
/** How far apart lines of a scale may be: so that what is written at them is what they stand for. */
const BINARY = Array.from({ length: 50 }, (_, power) => 2 ** power);
const SECONDS = [
  ...[0.001, 0.01, 0.1, 1, 10].flatMap((one) => [one, 2 * one, 5 * one]).slice(0, -1),
  30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000, 86400,
];
const TIMES = [5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
const DECIMAL = Array.from({ length: 12 }, (_, power) => 10 ** (power - 3)).flatMap((one) => [one, 2 * one, 5 * one]);
const CHARTS = [
  {
    title: "Pull time", unit: as.duration, none: "No pull ended in this time.", incrs: SECONDS,
    lines: [["p50", "pull_p50", "accent", "fill"], ["p90", "pull_p90", "second", ""], ["p99", "pull_p99", "faint", "dots"]],
  },
  {
    title: "Throughput", unit: as.rate, none: "Nothing was sent in this time.", incrs: BINARY,
    lines: [["sent", "sent", "accent", "fill"], ["received", "received", "outside", ""]],
  },
  {
    title: "Hit ratio", unit: as.percent, none: "Nothing was looked up in this time.", range: [0, 1],
    lines: [["of bytes", "byte_hit_ratio", "accent", "fill"], ["of requests", "hit_ratio", "second", ""]],
  },
  {
    title: "Requests per second", unit: as.decimal, none: "No requests in this time.", incrs: DECIMAL,
    lines: [["requests", "requests", "accent", "fill"], ["errors", "errors", "bad", ""]],
  },
];

export class Charts {
  constructor() {
    this.span = 3600;
    this.points = [];
    this.step = 5;
    this.figures = CHARTS.map((chart) => new Figure(chart));
    byId("charts").replaceChildren(...this.figures.map((figure) => figure.element));
    document.addEventListener("themechange", () => this.redraw());
    const changed = new ResizeObserver(() => this.figures.forEach((figure) => figure.fit()));
    this.figures.forEach((figure) => changed.observe(figure.plot));
  }

  /** Show a HistoryView over `span` seconds. */
  load(history, span) {
    this.span = span;
    this.step = history.step;
    this.points = history.points;
    this.draw();
  }

  /** Take the newest point, where points this far apart are shown. */
  add(point) {
    const last = this.points.at(-1);
    if (this.step > 5 || (last && point.time <= last.time)) return;
    this.points = [...this.points, point].filter((one) => one.time > point.time - this.span - this.step);
    this.draw();
  }

  draw() {
    const end = this.points.at(-1)?.time ?? Date.now() / 1000;
    const first = (this.points[0]?.time ?? end) - this.step;
    const from = Math.max(end - this.span, Math.min(first, end - YOUNG));
    const bins = binned(this.points, this.step, end - from, end);
    for (const figure of this.figures) figure.draw(bins, [from, end]);
  }

  redraw() {
    for (const figure of this.figures) figure.forget();
    this.draw();
  }
}

class Figure {
  constructor(chart) {
    this.chart = chart;
    this.values = chart.lines.map(() => el("span", { class: "value" }));
    this.at = el("span", { class: "at quiet" });
    const legend = el("ul", { class: "keys" }, ...chart.lines.map(([label, , colour], index) =>
      el("li", { "data-colour": colour }, el("span", {}, label), this.values[index])));
    this.plot = el("div", { class: "plot", tabindex: 0, role: "img" });
    this.none = el("p", { class: "none quiet" }, chart.none);
    this.element = el("figure", { class: "panel chart" },
      el("figcaption", {}, el("h3", {}, chart.title), this.at, legend), el("div", { class: "frame" }, this.plot, this.none));
    this.plot.addEventListener("keydown", (event) => this.walk(event));
    this.plot.addEventListener("blur", () => this.uplot?.setCursor({ left: -10, top: -10 }));
  }

  draw(bins, [from, to]) {
    this.data = [bins.times, ...this.chart.lines.map(([, field]) => bins[field])];
    this.range = [from, to];
    show(this.none, !this.data.slice(1).some((line) => line.some((value) => value > 0 || (value === 0 && this.chart.range))));
    if (this.uplot === undefined) this.make();
    else this.uplot.setData(this.data);
    this.tell(null);
  }

  forget() {
    this.uplot?.destroy();
    this.uplot = undefined;
  }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.plot;
    if (this.uplot && width && (width !== this.uplot.width || height !== this.uplot.height)) this.uplot.setSize({ width, height });
  }

  make() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: colour("quiet"), font, ticks: { show: false }, grid: { stroke: colour("rule"), width: 1 } };
    const { unit, incrs, range } = this.chart;
    const options = {
      width: this.plot.clientWidth || 300,
      height: this.plot.clientHeight || 150,
      padding: [8, 16, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "hours" }, y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: {
        x: { time: true, range: () => this.range },
        y: { range: range ? () => range : (_, low, high) => [0, high > 0 ? high * 1.08 : 1] },
      },
      axes: [
        { ...axis, grid: { show: false }, size: 28, gap: 7, space: 70, incrs: TIMES, values: (_, splits, _axis, _space, step) => splits.map((one) => as.clock(one).slice(0, step < 60 ? 8 : 5)) },
        { ...axis, size: 64, space: 34, gap: 6, ...(incrs ? { incrs } : {}), values: (_, splits) => splits.map((one) => (this.none.hidden ? unit(one) : "")) },
      ],
      series: [{}, ...this.chart.lines.map(([label, , name, how]) => ({
        label,
        stroke: colour(name),
        width: how === "fill" ? 2 : 1.5,
        dash: how === "dots" ? [3, 3] : undefined,
        fill: how === "fill" ? colour("accent-wash") : undefined,
        points: { size: 4 },
      }))],
      hooks: { setCursor: [(uplot) => this.tell(uplot.cursor.idx)] },
    };
    this.uplot = new uPlot(options, this.data, this.plot);
  }

  /** Show the values at a place of the time axis, or the newest that there are. */
  tell(index) {
    const lines = this.data.slice(1);
    const at = index ?? this.data[0].length - 1;
    const newest = (line) => line.findLast((value) => value != null);
    const told = lines.map((line) => this.chart.unit(index == null ? newest(line) : line[index]));
    this.values.forEach((value, one) => setText(value, told[one]));
    setText(this.at, index == null || this.data[0][at] === undefined ? "" : as.clock(this.data[0][at]));
    if (index == null || document.activeElement === this.plot) {
      const when = index == null ? "newest" : `at ${as.clock(this.data[0][at])}`;
      const words = this.chart.lines.map(([label], one) => `${label} ${told[one]}`).join(", ");
      this.plot.setAttribute("aria-label", `${this.chart.title}, ${when}: ${words}. Arrow keys move in time.`);
    }
  }

  walk(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    const last = this.data[0].length - 1;
    if (move === undefined || last < 0) return;
    event.preventDefault();
    const index = Math.max(0, Math.min(last, (this.uplot.cursor.idx ?? last) + move));
    this.uplot.setCursor({ left: this.uplot.valToPos(this.data[0][index], "x"), top: 10 });
  }
}
