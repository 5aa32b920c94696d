// Points of the history, joined to as many as a chart can show. Pure: no document here.

const MOST = 180;
const RATES = ["sent", "received", "requests", "errors"];

/**
 * Join the points of the last `span` seconds before `end`, `step` seconds apart, into columns by time.
 *
 * Rates are means; the ratio of requests is weighed by requests, that of bytes made from bytes; p50 is weighed by
 * pulls, p90 and p99 are the worst of their points. undefined is what there is no number for (a line goes on over it),
 * null a time in which nobody counted (a line ends there). A last join of less than half its points is left out.
 */
export function binned(points, step, span, end) {
  const width = step * Math.max(1, Math.ceil(span / step / MOST));
  const bins = new Map();
  for (const point of points) {
    if (point.time <= end - span) continue;
    const place = width > step ? Math.ceil(point.time / width) * width : point.time;
    if (!bins.has(place)) bins.set(place, []);
    bins.get(place).push(point);
  }
  const columns = { times: [], hit_ratio: [], byte_hit_ratio: [], pull_p50: [], pull_p90: [], pull_p99: [] };
  for (const rate of RATES) columns[rate] = [];
  let last = null;
  for (const [place, some] of bins) {
    if (place > end && some.length < width / step / 2) break;
    if (last !== null && place > last + width * 2.5) gap(columns, last + width);
    last = place;
    columns.times.push(Math.min(place, end));
    for (const rate of RATES) columns[rate].push(mean(some, rate));
    columns.hit_ratio.push(weighed(some, "hit_ratio", "requests"));
    columns.byte_hit_ratio.push(ofBytes(some));
    columns.pull_p50.push(weighed(some, "pull_p50", "pulls"));
    columns.pull_p90.push(worst(some, "pull_p90"));
    columns.pull_p99.push(worst(some, "pull_p99"));
  }
  return columns;
}

function gap(columns, time) {
  for (const column of Object.values(columns)) column.push(null);
  columns.times[columns.times.length - 1] = time;
}

function mean(points, field) {
  return points.reduce((sum, point) => sum + point[field], 0) / points.length;
}

function weighed(points, field, weight) {
  const known = points.filter((point) => point[field] != null);
  if (known.length === 0) return undefined;
  const total = known.reduce((sum, point) => sum + point[weight], 0);
  if (total === 0) return mean(known, field);
  return known.reduce((sum, point) => sum + point[field] * point[weight], 0) / total;
}

function ofBytes(points) {
  if (points.every((point) => point.byte_hit_ratio == null)) return undefined;
  const sent = points.reduce((sum, point) => sum + point.sent, 0);
  const received = points.reduce((sum, point) => sum + point.received, 0);
  return sent > 0 ? Math.max(0, 1 - received / sent) : undefined;
}

function worst(points, field) {
  const known = points.map((point) => point[field]).filter((value) => value != null);
  return known.length ? Math.max(...known) : undefined;
}
