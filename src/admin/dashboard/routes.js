// The table of routes: search, filters, sorting, selection, keys. Only the rows that are seen exist as elements, so that ten
// thousand cost as much as forty.

import { openDrawer, openMove, openRepair, openRollback, walk } from "./actions.js";
import { state } from "./feed.js";
import { button, byId, count, el, phase, PHASES, plural, rate, say, watchPointer } from "./words.js";

const OVERSCAN = 8;

const isTroubled = row => row.open_divergence > 0 || row.in_doubt || row.refusals > 0;
const rank = name => PHASES.indexOf(name);
/** How far a row's copy is: in doubt, not synced, being walked, synced, nothing to sync. */
const progress = row => row.in_doubt ? 0 : !row.phase.startsWith("dual") ? 4 : row.synced ? 3 : row.job ? 2 : 1;

/** Name, title, what it is sorted by, whether the biggest come first. */
const COLUMNS = [
  { name: "id", title: "Route", by: null, isBigFirst: false },
  { name: "phase", title: "Phase", by: row => rank(row.phase), isBigFirst: false },
  { name: "progress", title: "Copy", by: progress, isBigFirst: false },
  { name: "divergence", title: "Divergence", by: row => row.open_divergence, isBigFirst: true, hint: "Keys that may differ between the stores and are being repaired" },
  { name: "traffic", title: "Req/s", by: row => row.ops_per_second, isBigFirst: true, hint: "Requests a second, of the last five seconds" },
  { name: "copied", title: "Copied", by: row => row.keys_copied ?? -1, isBigFirst: true, hint: "Keys that the last backfill has copied" },
  { name: "refusals", title: "Refused", by: row => row.refusals, isBigFirst: true, hint: "Requests refused because their keys are in different slots or on different stores" },
];

const view = {
  word: "",
  filter: "",
  column: COLUMNS[0],
  isTurned: false,
  rows: [],
  active: -1,
  anchor: -1,
  selected: new Set(),
};

const [grid, scroll, canvas] = ["grid", "scroll", "canvas"].map(byId);
const pool = [];
let rowHeight = 31;
/** While it is on the rows they stay where they are: nobody presses what has just moved there. */
const pointer = watchPointer(scroll, () => { list(); draw(); });

// What is in the list -----------------------------------------------------------------------------------------------------

const byName = (a, b) => a.group - b.group || a.number - b.number || (a.word < b.word ? -1 : a.word > b.word ? 1 : 0);

const FILTERS = [
  ...PHASES.map((name, step) => ({ name, label: name, is: row => row.phase === name, kind: `p${step}` })),
  { name: "attention", label: "attention", is: isTroubled, kind: "attention" },
];

function list() {
  const word = view.word.trim().toLowerCase();
  const filter = FILTERS.find(filter => filter.name === view.filter);
  const isFound = row => (!word || row.word.includes(word) || row.kind.includes(word)) && (!filter || filter.is(row));
  const activeKey = view.rows[view.active]?.key;
  const { by } = view.column, turn = (view.isTurned ? -1 : 1) * (view.column.isBigFirst ? -1 : 1);
  const order = by ? (a, b) => turn * (by(a) - by(b)) || byName(a, b) : (a, b) => a.group - b.group || turn * byName(a, b);
  view.rows = [...state.rows.values()].filter(isFound).sort(order);
  view.active = activeKey ? view.rows.findIndex(row => row.key === activeKey) : -1;
  for (const key of view.selected) if (!state.rows.has(key)) view.selected.delete(key);
}

/** After a tick. Under the pointer even a route that is gone keeps its place, so that the one below it does. */
export function refresh({ isWhole, hasMoved }) {
  const isHeld = pointer.isOn && view.rows.length > 0;
  if (!isHeld && (isWhole || hasMoved || view.column.by || view.filter)) list();
  else view.rows = view.rows.map(row => state.rows.get(row.key) ?? row);
  showChips();
  draw();
}

function relist() {
  list();
  scroll.scrollTop = 0;
  showChips();
  draw();
}

// Pressing ----------------------------------------------------------------------------------------------------------------

// An element shows one route after the other. A press counts where it went down and came up on the same route, and the rows
// had not just been moved by what appeared above them.
const SETTLED = 400; // milliseconds: longer than it takes to see that something has moved
let pressed = null, movedAt = -Infinity;

const shownAt = element => pool.find(made => made.row.contains(element))?.key ?? null;

function watchPresses() {
  document.addEventListener("pointerdown", event => { pressed = { key: shownAt(event.target), at: performance.now() }; }, true);
  canvas.addEventListener("click", event => {
    // Without a pointer (assistive technology) nothing can have moved under it.
    const isMeant = !pressed || pressed.key === shownAt(event.target) && pressed.at - movedAt > SETTLED;
    pressed = null;
    if (!isMeant) {
      event.stopPropagation();
      event.preventDefault();
    }
  }, true);
  let top = null;
  const moved = new ResizeObserver(() => {
    const now = scroll.getBoundingClientRect().top;
    if (top !== null && now !== top) movedAt = performance.now();
    top = now;
  });
  for (const above of [byId("banners"), byId("chips").parentElement]) moved.observe(above);
}

function press(key, event) {
  const index = view.rows.findIndex(row => row.key === key);
  if (index < 0) return;
  if (event.target.closest(".check") || event.ctrlKey || event.metaKey || event.shiftKey) return select(index, event.shiftKey);
  view.active = index;
  draw();
  openDrawer(key);
}

// Drawing -----------------------------------------------------------------------------------------------------------------

function newRow() {
  const check = el("input", { type: "checkbox", tabindex: "-1" });
  const cells = Object.fromEntries(COLUMNS.map(({ name }) => [name, el("div", { role: "gridcell", class: `cell ${name}` })]));
  const row = el("div", { class: "row", role: "row" }, el("div", { role: "gridcell", class: "cell check" }, check), Object.values(cells));
  const made = { row, check, cells, key: null, told: "" };
  row.addEventListener("click", event => press(made.key, event));
  return made;
}

function copyCell(row) {
  const job = row.job ? state.jobs.get(row.job) : null;
  if (job?.state === "running") {
    const share = Math.min(job.scanned / Math.max(job.keys_total, 1), 1);
    const bar = el("i");
    bar.style.transform = `scaleX(${share})`;
    return [el("span", { class: "walk", "aria-hidden": "true" }, bar), `${job.kind} ${Math.floor(share * 100)}%`];
  }
  if (row.in_doubt) return [el("span", { class: "mark warn", title: "Any key may differ until a backfill has gone through it" }, "in doubt")];
  if (!row.phase.startsWith("dual")) return [el("span", { class: "none" }, "–")];
  return [row.synced ? el("span", { class: "mark good" }, "synced") : el("span", { class: "mark" }, "not synced")];
}

function fill(made, row, index) {
  const isSelected = view.selected.has(row.key), isActive = index === view.active;
  const job = row.job ? state.jobs.get(row.job) : null, isGone = !state.rows.has(row.key);
  made.key = row.key;
  made.row.style.transform = `translateY(${index * rowHeight}px)`;
  const told = JSON.stringify([row, job?.scanned, isSelected, isActive, isGone, index]);
  if (made.told === told) return;
  made.told = told;
  const { cells } = made;
  made.row.id = `row-${index}`;
  made.row.setAttribute("aria-rowindex", index + 2);
  made.row.setAttribute("aria-selected", isSelected);
  made.row.classList.toggle("active", isActive);
  made.row.classList.toggle("gone", isGone);
  made.check.checked = isSelected;
  made.check.setAttribute("aria-label", `Select ${row.id}`);
  const isPlain = row.kind === "provider" && !row.covered_by;
  cells.id.replaceChildren(el("span", { class: "name", title: row.id }, row.id), isPlain ? "" : el("span", { class: "kind" }, row.covered_by ? `by ${row.covered_by}` : row.kind));
  cells.phase.replaceChildren(phase(row.phase));
  cells.progress.replaceChildren(...copyCell(row));
  number(cells.divergence, row.phase.startsWith("dual") ? row.open_divergence : undefined, count, "bad", "diverged");
  number(cells.traffic, row.ops_per_second, rate, "", "req/s");
  number(cells.copied, row.keys_copied, count, "", "copied");
  number(cells.refusals, row.refusals, count, "warn", "refused");
}

function number(cell, value, format, kind, unit) {
  cell.classList.toggle("zero", !value);
  cell.classList.toggle(kind || "plainly", Boolean(value));
  if (cell.firstChild === null) cell.append("", el("span", { class: "unit" }, ` ${unit}`));
  cell.firstChild.nodeValue = value === undefined ? "–" : value ? format(value) : "0";
}

let isDue = false;

/** At the next frame, however often it is asked for. */
export function draw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => { isDue = false; drawNow(); });
}

function drawNow() {
  rowHeight = parseFloat(getComputedStyle(grid).getPropertyValue("--row")) || 31;
  const first = Math.max(0, Math.floor(scroll.scrollTop / rowHeight) - OVERSCAN);
  const last = Math.min(view.rows.length, Math.ceil((scroll.scrollTop + scroll.clientHeight) / rowHeight) + OVERSCAN);
  canvas.style.height = `${view.rows.length * rowHeight}px`;
  while (pool.length < last - first) {
    pool.push(newRow());
    canvas.append(pool.at(-1).row);
  }
  pool.forEach((made, at) => {
    const index = first + at;
    made.row.hidden = index >= last;
    if (index < last) fill(made, view.rows[index], index);
    else [made.key, made.told] = [null, ""];
  });
  grid.setAttribute("aria-rowcount", view.rows.length + 1);
  byId("columns").style.paddingRight = `${scroll.offsetWidth - scroll.clientWidth}px`;
  const isSeen = view.active >= first && view.active < last;
  if (isSeen) grid.setAttribute("aria-activedescendant", `row-${view.active}`);
  else grid.removeAttribute("aria-activedescendant");
  showEmpty();
  showSelection();
  const all = state.rows.size;
  say(byId("count"), view.rows.length === all ? plural(all, "route") : `${count(view.rows.length)} of ${plural(all, "route")}`);
  byId("columns").querySelector("input").checked = view.selected.size > 0 && view.rows.every(row => view.selected.has(row.key));
}

function showEmpty() {
  const empty = byId("empty");
  const named = [...state.rows.values()].some(row => row.kind !== "default" && row.kind !== "channels");
  const kind = !state.head ? "waiting" : !view.rows.length ? "nothing" : !named && !view.word && !view.filter ? "new" : "";
  empty.hidden = !kind;
  empty.classList.toggle("below", kind === "new");
  if (empty.dataset.kind === kind + view.word + view.filter) return;
  empty.dataset.kind = kind + view.word + view.filter;
  const clear = button("Show all", () => setFilter("", ""), "plain");
  const told = {
    waiting: [el("p", {}, state.problem ? "Nothing is known of the proxy yet." : "Asking the proxy …")],
    nothing: [el("p", {}, view.word ? `No route fits “${view.word}”${view.filter ? ` in ${view.filter}` : ""}.` : view.filter === "attention" ? "Nothing needs attention: no divergence, no doubt, no refused request." : `No route is in ${view.filter}.`), clear],
    new: [el("p", {}, "No provider yet. One shows here when the application asks for a key of it, or proxy.toml has a line for it under [providers]."), el("p", {}, "See what the standalone holds with ", el("code", {}, "cutover inventory"), ".")],
  };
  empty.replaceChildren(...(told[kind] ?? []));
}

// Toolbar -----------------------------------------------------------------------------------------------------------------

function setFilter(filter, word = view.word) {
  [view.filter, view.word] = [filter, word];
  byId("search").value = word;
  relist();
}

function showChips() {
  const rows = [...state.rows.values()];
  const wanted = FILTERS.filter(filter => filter.name !== "attention" || rows.some(filter.is) || view.filter === "attention");
  const holder = byId("chips");
  if (holder.children.length !== wanted.length) {
    holder.replaceChildren(...wanted.map(({ name, label, kind }) =>
      button([el("span", {}, label), el("b")], () => setFilter(view.filter === name ? "" : name), `chip ${kind}`, { "data-name": name })));
  }
  wanted.forEach(({ name, is }, at) => {
    const chip = holder.children[at];
    say(chip.querySelector("b"), count(rows.filter(is).length));
    chip.setAttribute("aria-pressed", view.filter === name);
  });
}

function sortBy(column, isTurned = view.column === column && !view.isTurned) {
  [view.column, view.isTurned] = [column, isTurned];
  for (const head of byId("columns").querySelectorAll("[role=columnheader][data-name]")) {
    const isOwn = head.dataset.name === column.name;
    head.setAttribute("aria-sort", !isOwn ? "none" : column.isBigFirst !== isTurned ? "descending" : "ascending");
  }
  byId("sorter").value = column.name;
  relist();
}

// Selection and keys ------------------------------------------------------------------------------------------------------

function select(index, isRange) {
  const row = view.rows[index];
  if (!row) return;
  const isNew = !view.selected.has(row.key);
  const [from, to] = isRange && view.anchor >= 0 ? [Math.min(view.anchor, index), Math.max(view.anchor, index)] : [index, index];
  for (const { key } of view.rows.slice(from, to + 1)) {
    if (isNew || isRange) view.selected.add(key);
    else view.selected.delete(key);
  }
  [view.anchor, view.active] = [index, index];
  draw();
}

function selectAll(isAll) {
  for (const { key } of view.rows) isAll ? view.selected.add(key) : view.selected.delete(key);
  draw();
}

export function clearSelection() {
  view.selected.clear();
  draw();
}

/** The selected routes, or the one that the keys stand on. */
const chosen = () => {
  const keys = view.selected.size ? [...view.selected] : [view.rows[view.active]?.key];
  return keys.map(key => state.rows.get(key)).filter(Boolean);
};

const ACTIONS = [
  { key: "m", label: "Move…", kind: "primary", act: openMove },
  { key: "b", label: "Backfill", act: rows => walk("backfill", rows) },
  { key: "v", label: "Verify", act: rows => walk("verify", rows) },
  { key: "e", label: "Repair…", act: openRepair },
  { key: "r", label: "Roll back…", act: openRollback },
];

function showSelection() {
  const bar = byId("selection");
  bar.hidden = view.selected.size === 0;
  if (!bar.children.length) {
    const buttons = ACTIONS.map(({ key, label, kind, act }) => button(label, () => act(chosen()), `act ${kind ?? ""}`, { "aria-keyshortcuts": key }));
    bar.append(el("strong"), ...buttons, button("Clear", clearSelection, "plain"));
  }
  say(bar.firstChild, `${count(view.selected.size)} selected`);
}

function step(by, isSelecting) {
  if (!view.rows.length) return;
  const from = view.active < 0 && by < Infinity ? -by : Math.max(view.active, 0);
  const next = Math.max(0, Math.min(view.rows.length - 1, by === -Infinity ? 0 : from + by));
  if (isSelecting) {
    if (!view.selected.size && view.active >= 0) select(view.active, false);
    select(next, true);
  }
  view.active = next;
  const top = next * rowHeight;
  if (top < scroll.scrollTop) scroll.scrollTop = top;
  else if (top + rowHeight > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top + rowHeight - scroll.clientHeight;
  draw();
}

function key(event) {
  const page = Math.max(1, Math.floor(scroll.clientHeight / rowHeight) - 1);
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  if (event.key in steps) step(steps[event.key], event.shiftKey);
  else if (event.key === " " && view.active >= 0) select(view.active, event.shiftKey);
  else if (event.key === "Enter" && view.active >= 0) openDrawer(view.rows[view.active].key);
  else if (event.key === "Escape" && view.selected.size) clearSelection();
  else if (event.key === "a" && (event.ctrlKey || event.metaKey)) selectAll(true);
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else {
    const action = ACTIONS.find(action => action.key === event.key);
    if (!action || !chosen().length) return;
    action.act(chosen());
  }
  event.preventDefault();
}

export function build() {
  const all = el("input", { type: "checkbox", "aria-label": "Select all that are listed", onchange: event => selectAll(event.target.checked) });
  byId("columns").append(el("div", { role: "columnheader", class: "cell check" }, all), ...COLUMNS.map(column =>
    el("div", { role: "columnheader", class: `cell ${column.name}`, "data-name": column.name, "aria-sort": "none" },
      button([column.title, el("span", { class: "arrow", "aria-hidden": "true" })], () => sortBy(column), "sort", { title: column.hint }))));
  byId("sorter").append(...COLUMNS.map(({ name, title }) => el("option", { value: name }, title.toLowerCase())));
  byId("sorter").addEventListener("change", event => sortBy(COLUMNS.find(({ name }) => name === event.target.value), false));
  const search = byId("search");
  search.addEventListener("input", () => { view.word = search.value; relist(); });
  search.addEventListener("keydown", event => {
    if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); grid.focus(); step(view.active < 0 ? 0 : 1); }
    if (event.key === "Escape") { event.preventDefault(); setFilter(view.filter, ""); }
  });
  scroll.addEventListener("scroll", draw, { passive: true });
  // Not those of the buttons in it, which have keys of their own.
  grid.addEventListener("keydown", event => event.target === grid && key(event));
  new ResizeObserver(draw).observe(scroll);
  watchPresses();
  sortBy(COLUMNS[0], false);
}
