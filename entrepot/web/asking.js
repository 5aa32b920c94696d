// Asking the mirror's /api: with the admin token where one was given, and the document of /api/live as a stream.

const TOKEN = "entrepot-admin-token";
const SILENCE = 8000;
const WAITS = [500, 1000, 2000, 4000, 8000, 15000];

/** The mirror refused: 401 without a good token, 403 where it has none, 404, 429. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  get wantsToken() {
    return this.status === 401 || this.status === 403;
  }
}

export function keepToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}

export function hasToken() {
  return Boolean(sessionStorage.getItem(TOKEN));
}

async function asked(path, signal) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${octets(token)}` } : {};
  const answer = await fetch(path, { headers, signal, cache: "no-store", redirect: "error" });
  if (answer.ok) return answer;
  let message = `the mirror answers ${answer.status}`;
  try {
    message = (await answer.json()).errors[0].message;
  } catch {
    // Whoever answered was not the mirror: the status has to do.
  }
  throw new Refused(answer.status, message);
}

/** A header's value is bytes: those of UTF-8, one a character. */
function octets(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

export async function getJson(path, signal) {
  return (await asked(path, signal)).json();
}

/**
 * Follows /api/live while the page is seen. Calls back with each document, when the connection is lost, and when it is
 * refused; it asks again until it is told to pause.
 */
export class LiveStream {
  constructor({ onDocument, onLost, onRefused }) {
    this.onDocument = onDocument;
    this.onLost = onLost;
    this.onRefused = onRefused;
    this.failures = 0;
    this.running = null;
    this.retry = null;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.pause() : this.start()));
  }

  /** Begin, or begin again at once. */
  start() {
    this.pause();
    if (document.hidden) return;
    this.running = new AbortController();
    this.follow(this.running);
  }

  pause() {
    clearTimeout(this.retry);
    this.running?.abort();
    this.running = null;
  }

  async follow(mine) {
    let watchdog = null;
    const heard = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => mine.abort(new Error(`nothing came for ${SILENCE / 1000} s`)), SILENCE);
    };
    let why = "the mirror ended the connection";
    let refused = null;
    try {
      heard();
      const answer = await asked("../api/live", mine.signal);
      for await (const line of lines(answer.body)) {
        heard();
        if (mine !== this.running) return;
        this.failures = 0;
        this.onDocument(JSON.parse(line));
      }
    } catch (error) {
      if (mine !== this.running) return;
      refused = error instanceof Refused && error.wantsToken ? error : null;
      why = error instanceof Refused ? error.message : mine.signal.aborted ? mine.signal.reason.message : "it does not answer";
    } finally {
      clearTimeout(watchdog);
      mine.abort();
    }
    if (mine !== this.running) return;
    const wait = WAITS[Math.min(this.failures, WAITS.length - 1)] * (0.75 + Math.random() / 2);
    this.failures += 1;
    this.retry = setTimeout(() => this.start(), wait);
    if (refused) this.onRefused(refused);
    else this.onLost(why);
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const found = (rest + value).split("\n");
      rest = found.pop();
      for (const line of found) if (line) yield line;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
