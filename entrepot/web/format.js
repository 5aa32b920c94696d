// Numbers, sizes, durations, times and names as people read them. Pure: no document here.

const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const NOTHING = "–";
// Controls, and what turns the direction of text or is not seen: a name that a client made up shows them as codes.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** A number and its unit, which stay on one line. */
function joined([number, unit]) {
  return unit ? `${number}\u00a0${unit}` : number;
}

/** Three digits that count: 0.12, 3.4, 56, 789. */
function short(number) {
  const size = Math.abs(number);
  if (size >= 99.95 || Number.isInteger(number)) return GROUPED.format(number);
  return number.toFixed(size >= 9.995 ? 1 : 2).replace(/\.?0+$/, "");
}

export function count(number) {
  return number == null ? NOTHING : GROUPED.format(number);
}

/** A number that may be small: 0, 0.004, 3.45, 120. */
export function decimal(number) {
  if (number == null) return NOTHING;
  if (number >= 10 || Number.isInteger(number)) return GROUPED.format(number);
  return number < 0.001 ? "< 0.001" : String(Number(number.toPrecision(number < 1 ? 2 : 3)));
}

/** "1 pull", "2 pulls". */
export function counted(number, one, many = `${one}s`) {
  return joined([GROUPED.format(number), number === 1 ? one : many]);
}

/** Bytes in binary units, as [number, unit]. */
export function byteParts(bytes) {
  if (bytes == null) return [NOTHING, ""];
  let unit = 0;
  while (Math.abs(bytes) >= 1000 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return [unit === 0 ? GROUPED.format(bytes) : short(bytes), UNITS[unit]];
}

export function bytes(number) {
  return joined(byteParts(number));
}

export function rate(bytesPerSecond) {
  return bytesPerSecond == null ? NOTHING : `${bytes(Math.round(bytesPerSecond))}/s`;
}

/** Seconds, as [number, unit]: 12 ms, 3.4 s, 2 min, 5.1 h, 3 days. */
export function durationParts(seconds) {
  if (seconds == null) return [NOTHING, ""];
  if (seconds < 0.001) return [seconds > 0 ? "< 1" : "0", "ms"];
  if (seconds < 0.9995) return [String(Math.round(seconds * 1000)), "ms"];
  if (seconds < 99.5) return [short(Number(seconds.toFixed(seconds < 9.95 ? 1 : 0))), "s"];
  if (seconds < 5970) return [String(Math.round(seconds / 60)), "min"];
  if (seconds < 171000) return [short(Number((seconds / 3600).toFixed(1))), "h"];
  return [String(Math.round(seconds / 86400)), "days"];
}

export function duration(seconds) {
  return joined(durationParts(seconds));
}

/** A share from 0 to 1, as the number of [number, "%"]; what is not whole is never shown as 100. */
export function percentParts(share) {
  if (share == null) return [NOTHING, ""];
  const hundredth = share * 100;
  if (hundredth === 0 || hundredth === 100) return [String(hundredth), "%"];
  if (hundredth > 99.9) return ["> 99.9", "%"];
  return [hundredth < 0.1 ? "< 0.1" : hundredth.toFixed(hundredth >= 9.95 && hundredth < 90 ? 0 : 1), "%"];
}

export function percent(share) {
  return joined(percentParts(share));
}

const two = (number) => String(number).padStart(2, "0");

/** Local time of day: 14:03:59. */
export function clock(unix) {
  const at = new Date(unix * 1000);
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** Local time of day, or the day too where that is not the day of `now`: 14:03:59, 11-21 14:03. */
export function when(unix, now) {
  const at = new Date(unix * 1000);
  if (at.toDateString() === new Date(now * 1000).toDateString()) return clock(unix);
  return `${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock(unix).slice(0, 5)}`;
}

/** Local date and time with what they are before UTC, for titles. */
export function moment(unix) {
  const at = new Date(unix * 1000);
  const ahead = -at.getTimezoneOffset();
  const offset = `${ahead < 0 ? "-" : "+"}${two(Math.floor(Math.abs(ahead) / 60))}:${two(Math.abs(ahead) % 60)}`;
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock(unix)} (UTC${offset})`;
}

/** What others named, with nothing in it that is not seen. */
export function name(text) {
  return String(text).replace(UNSEEN, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** sha256:0123456789ab… as 0123456789ab. */
export function digest(text) {
  const [algorithm, hex] = String(text).split(":");
  return hex === undefined ? name(algorithm) : name(hex.slice(0, 12));
}

/** A reference as [where, what]: docker.io/library/ and nginx:1.27. A digest is shortened. */
export function image(reference) {
  const text = name(reference).replace(/@(sha256|sha512):([0-9a-f]{12})[0-9a-f]+$/, "@$1:$2…");
  const at = text.lastIndexOf("/", text.includes("@") ? text.indexOf("@") : text.length) + 1;
  return [text.slice(0, at), text.slice(at)];
}
