// The live feed: everything at first, then what changed, once a second. Holds what the page shows, and says when it is stale.

const SILENCE_MAX = 6_000; // milliseconds: ticks come each second; a proxy that is stopped or cut off sends none
const AGAIN_AFTER = 2_000;
const HIDDEN_MAX = 20_000; // a page that nobody sees gives its place back
const HISTORY_MAX = 100;
const SAMPLES_MAX = 300;
const JOBS_MAX = 60;

export const state = {
  head: null,
  rows: new Map(),
  jobs: new Map(),
  history: [],
  samples: [],
  isLive: false,
  staleSince: null,
  problem: "",
};

const listeners = [];
/** Calls `hear(what)` after each change; `what.isWhole`: everything may differ; `what.hasMoved`: rows came or went. */
export const onChange = hear => listeners.push(hear);

const NUMBER = /^\d+/;

function put(row) {
  const number = NUMBER.exec(row.id);
  const kinds = { provider: 0, range: 0, prefix: 1, share: 2, default: 2, channels: 3 };
  row.key = `${row.kind} ${row.id}`;
  // What it is sorted by: numbers by their value, words behind them.
  row.group = kinds[row.kind] ?? 4;
  row.number = number ? Number(number[0]) : Infinity;
  row.word = row.id.toLowerCase();
  row.synced ??= false;
  row.in_doubt ??= false;
  row.open_divergence ??= 0;
  row.ops_per_second ??= 0;
  row.refusals ??= 0;
  state.rows.set(row.key, row);
}

function take(message, isWhole) {
  const before = state.rows.size;
  let hasMoved = isWhole || message.gone.length > 0;
  if (isWhole) for (const known of [state.rows, state.jobs]) known.clear();
  for (const row of message.rows) put(row);
  for (const key of message.gone) state.rows.delete(key);
  hasMoved ||= state.rows.size !== before;
  for (const job of message.jobs) state.jobs.set(job.id, job);
  for (const id of [...state.jobs.keys()].sort((a, b) => a - b)) {
    if (state.jobs.size <= JOBS_MAX) break;
    if (state.jobs.get(id).state !== "running") state.jobs.delete(id);
  }
  // A proxy that was restarted counts anew, so what was kept goes with the whole.
  if (isWhole) [state.history, state.samples] = [[], []];
  const newest = state.history.at(-1)?.number ?? 0, sampled = state.samples.at(-1)?.[0] ?? 0;
  state.history.push(...message.history.filter(entry => entry.number > newest));
  state.samples.push(...message.samples.filter(([at]) => at > sampled));
  state.history = state.history.slice(-HISTORY_MAX);
  state.samples = state.samples.slice(-SAMPLES_MAX);
  state.head = message.head;
  state.head.heard = Date.now();
  tell({ isWhole, hasMoved });
}

function tell(what) {
  for (const hear of [...listeners]) hear(what);
}

/** Waits until the feed shows something, or for a while: what was just done is to be seen before one goes on. */
export function seen(holds, patience = 4_000) {
  return new Promise(resolve => {
    const done = () => { listeners.splice(listeners.indexOf(look), 1); clearTimeout(over); resolve(); };
    const look = () => { if (holds()) done(); };
    const over = setTimeout(done, patience);
    listeners.push(look);
    look();
  });
}

let source, watchdog, again, hiding;

function stale(problem) {
  if (state.isLive || !state.problem) {
    state.staleSince = state.isLive ? Date.now() : state.staleSince ?? Date.now();
    state.isLive = false;
    state.problem = problem;
    tell({ isWhole: false, hasMoved: false });
  }
}

function heard(event, isWhole) {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => reopen("it sends nothing"), SILENCE_MAX);
  [state.isLive, state.staleSince, state.problem] = [true, null, ""];
  take(JSON.parse(event.data), isWhole);
}

function close() {
  source?.close();
  clearTimeout(watchdog);
  clearTimeout(again);
}

function reopen(problem) {
  close();
  stale(problem);
  again = setTimeout(open, AGAIN_AFTER);
}

export function open() {
  close();
  source = new EventSource("/api/events");
  source.addEventListener("full", event => heard(event, true));
  source.addEventListener("tick", event => heard(event, false));
  source.addEventListener("error", async () => {
    // The browser would try again by itself, but not after an answer such as 503, of which it does not say a word.
    close();
    reopen(await reason());
  });
  watchdog = setTimeout(() => reopen("it does not answer"), SILENCE_MAX);
}

async function reason() {
  try {
    await fetch("/healthz", { signal: AbortSignal.timeout(1_000) });
    return "it answers, but lets nobody listen now: too many dashboards may be open";
  } catch {
    return "it does not answer";
  }
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) {
    hiding = setTimeout(() => { close(); stale("the page was hidden"); }, HIDDEN_MAX);
  } else if (!state.isLive) {
    open();
  }
});
