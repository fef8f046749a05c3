// The lists beside the table: jobs, and what was flipped or refused.

import { cancel, showDifferences } from "./actions.js";
import { state } from "./feed.js";
import { button, byId, clock, count, date, el, milliseconds, names, phase, plural, rate, reason, say, span, watchPointer } from "./words.js";

const entries = new Map();

/** A list whose items stay the same elements, so that what is focused stays focused. `make` gives an element and how to update it. */
function sync(holder, items, keyOf, make, empty) {
  const known = entries.get(holder) ?? new Map();
  entries.set(holder, known);
  const wanted = new Set(items.map(keyOf));
  for (const [key, made] of known) if (!wanted.has(key)) { made.element.remove(); known.delete(key); }
  items.forEach((item, at) => {
    const key = keyOf(item);
    if (!known.has(key)) known.set(key, make(item));
    const made = known.get(key);
    if (holder.children[at] !== made.element) holder.insertBefore(made.element, holder.children[at] ?? null);
    made.update(item);
  });
  holder.querySelector(".nothing")?.remove();
  if (!items.length) holder.append(el("li", { class: "nothing" }, empty));
}

function newJob(job) {
  const bar = el("i"), word = el("span", { class: "state" }), facts = el("p", { class: "facts" }), message = el("p", { class: "message" });
  const stop = button("Cancel", () => cancel(job.id), "small", { "aria-label": `Cancel ${job.kind} ${job.id}` });
  const more = button("What differs", () => showDifferences(job.id), "small");
  const title = job.repair ? "verify and repair" : job.kind;
  const element = el("li", { class: "job" },
    el("p", { class: "title" }, el("strong", {}, `${title} ${job.id}`), word, stop, more),
    el("p", { class: "of" }, names(job.first_routes, job.route_count)),
    el("div", { class: "walk", "aria-hidden": "true" }, bar), facts, message);
  const update = job => {
    const isRunning = job.state === "running";
    const share = isRunning ? Math.min(job.scanned / Math.max(job.keys_total, 1), 1) : 1;
    const isBad = job.state === "failed" || job.differing > job.repaired;
    element.className = `job ${job.state} ${isBad ? "bad" : ""}`;
    bar.style.transform = `scaleX(${share})`;
    say(word, isRunning ? `${Math.floor(share * 100)}%` : isBad && job.state === "done" ? "done, differs" : job.state);
    const left = isRunning && job.keys_per_second > 0 ? Math.max(0, job.keys_total - job.scanned) / job.keys_per_second : null;
    say(facts, [`${plural(job.matched, "key")} of ${count(job.scanned)} scanned`, job.kind === "backfill" && `${count(job.copied)} copied`,
      job.kind === "verify" && `${count(job.differing)} differ`, job.repaired > 0 && `${count(job.repaired)} repaired`, job.pending > 0 && `${count(job.pending)} to come`,
      isRunning ? `${rate(job.keys_per_second)}/s` : `in ${span(job.seconds)}`, left !== null && `${span(left)} left`].filter(Boolean).join(" · "));
    say(message, job.message);
    message.hidden = !job.message;
    stop.hidden = !isRunning;
    more.hidden = job.differing === 0;
  };
  return { element, update };
}

function newEntry(entry) {
  const when = el("time", { datetime: new Date(entry.at_ms).toISOString(), title: date(entry.at_ms) });
  const element = entry.event === "flipped"
    ? el("li", { class: "entry" },
      el("p", { class: "title" }, el("strong", {}, names(entry.routes, entry.count)), when),
      el("p", { class: "ways" }, phase(entry.from), el("span", { class: "to", "aria-label": "to" }, "→"), phase(entry.to)),
      el("p", { class: "facts" }, `adopted in ${milliseconds(entry.took_ms)}, paused ${milliseconds(entry.paused_ms)} · table ${entry.table_version}`))
    : el("li", { class: "entry refused" },
      el("p", { class: "title" }, el("strong", {}, "table refused"), when),
      reason(entry.reason),
      el("p", { class: "facts" }, `table ${entry.table_version} stayed`));
  const update = () => {
    const seconds = (Date.now() - entry.at_ms - skew()) / 1000;
    say(when, seconds < 5 ? "now" : seconds < 3600 ? `${span(Math.max(0, seconds)).replace(/\.\d/, "")} ago` : clock(entry.at_ms));
  };
  return { element, update };
}

/** The proxy's clock may be another than the browser's. */
const skew = () => state.head ? state.head.heard - state.head.now_ms : 0;

/** While it is on the jobs they stay in their order, and a new one waits: nobody cancels what has just moved there. */
const pointer = watchPointer(byId("job-list"), () => show());
let order = [];

export function show() {
  const jobs = [...state.jobs.values()].sort((a, b) => (b.state === "running") - (a.state === "running") || b.id - a.id);
  const kept = order.map(id => state.jobs.get(id)).filter(Boolean);
  const shown = pointer.isOn && kept.length ? kept : jobs;
  order = shown.map(job => job.id);
  sync(byId("job-list"), shown, job => job.id, newJob, "No backfill or verification in this run of the proxy.");
  sync(byId("activity-list"), [...state.history].reverse(), entry => `${entry.number} ${entry.at_ms}`, newEntry, "Nothing was flipped or refused in this run of the proxy.");
  const running = jobs.filter(job => job.state === "running").length;
  say(byId("tab-jobs"), running ? `Jobs ${running}` : "Jobs");
}
