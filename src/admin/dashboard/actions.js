// What is done to routes: asked, confirmed, sent to the proxy, which judges by the same rules as for the command line. Its
// reasons are shown word by word. Force is not offered here.

import { onChange, seen, state } from "./feed.js";
import { button, byId, count, el, MEANING, milliseconds, names, phase, PHASES, plural, reason, say } from "./words.js";

const dialog = byId("dialog"), drawer = byId("drawer");
const TOKEN = "cutover admin token";

// Calls -------------------------------------------------------------------------------------------------------------------

class Refused extends Error {}

async function call(method, path, body) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(token && { Authorization: `Bearer ${token}` }) };
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Refused("The proxy does not answer. Whether it did what was asked shows in the table when it is back.");
  }
  const text = await answer.text();
  if (answer.ok) return JSON.parse(text);
  if (answer.status === 401) {
    await askToken(token ? "The proxy does not know this token." : "The proxy asks for its admin token before it changes anything.");
    return call(method, path, body);
  }
  let why = text;
  try { why = JSON.parse(text).error ?? text; } catch { /* a plain text */ }
  throw new Refused(why.trim());
}

export function toast(text, kind = "") {
  const shown = el("p", { class: `toast ${kind}` }, el("span", {}, text));
  const gone = () => shown.remove();
  shown.append(button("×", gone, "plain", { "aria-label": "Dismiss" }));
  byId("toasts").append(shown);
  if (kind !== "bad") setTimeout(gone, 8_000);
  while (byId("toasts").children.length > 4) byId("toasts").firstChild.remove();
}

const ids = rows => rows.map(row => row.id);

/** Backfill or verify: harmless, so it begins at once. */
export async function walk(kind, rows, repair = false) {
  try {
    const job = await call("POST", `/api/${kind}`, { routes: ids(rows), ...(repair && { repair }) });
    toast(`${repair ? "verify and repair" : kind} ${job.id} runs: ${names(job.routes)}`, "good");
  } catch (error) {
    tell(error);
  }
}

export async function cancel(id) {
  try {
    await call("POST", `/api/jobs/${id}/cancel`);
    toast(`job ${id} ends; what it has copied stays copied`);
  } catch (error) {
    tell(error);
  }
}

function tell(error) {
  if (error?.name === "AbortError") return;
  if (!(error instanceof Refused)) throw error;
  toast(error.message, "bad");
}

// Dialogs -----------------------------------------------------------------------------------------------------------------


/** A question with a way out, which is where the focus is where the answer is dangerous. */
function ask({ title, body, label, kind = "primary", isReady = () => true, act }) {
  const outcome = el("div", { class: "outcome" });
  const out = button("Cancel", () => dialog.close());
  const go = el("button", { type: "submit", class: kind }, label());
  const update = () => { say(go, label()); go.disabled = !isReady(); };
  const form = el("form", { method: "dialog", onchange: update }, el("h2", { id: "dialog-title" }, title), body, outcome, el("p", { class: "buttons" }, out, go));
  form.addEventListener("submit", async event => {
    event.preventDefault();
    outcome.replaceChildren(el("p", { class: "busy", role: "status" }, "Waiting for the proxy …"));
    go.disabled = true;
    try {
      if (await act() !== "stay") dialog.close();
      else outcome.replaceChildren();
    } catch (error) {
      if (error?.name === "AbortError") return outcome.replaceChildren();
      if (!(error instanceof Refused)) throw error;
      outcome.replaceChildren(el("p", { class: "verdict" }, "Refused; proxy.toml is as it was before."), reason(error.message, { role: "alert" }));
    } finally {
      update();
      if (!outcome.children.length) go.focus();
    }
  });
  show(form);
  update();
  (kind === "danger" ? out : form.querySelector("[autofocus]") ?? go).focus();
}

function show(content) {
  dialog.replaceChildren(content);
  if (!dialog.open) dialog.showModal();
}

const byPhase = rows => PHASES.map(name => [name, rows.filter(row => row.phase === name)]).filter(([, those]) => those.length);

/** `12 in standalone, 3 in cluster` */
const where = rows => el("p", { class: "where" }, byPhase(rows).map(([name, those], at) => [at ? ", " : "", `${count(those.length)} in `, phase(name)]));

const subject = rows => rows.length === 1 ? rows[0].id : plural(rows.length, "route");

export function openMove(rows, preset) {
  const phases = byPhase(rows).map(([name]) => name);
  const next = phases.length === 1 ? PHASES[PHASES.indexOf(phases[0]) + 1] : undefined;
  let to = preset ?? next;
  const hint = el("p", { class: "hint", role: "status" });
  const sure = el("input", { type: "checkbox" });
  const care = el("label", { class: "care", hidden: true }, sure, `The standalone gets no more writes of ${rows.length === 1 ? "it" : "them"}. The way back is open, but needs a copy first.`);
  const update = () => {
    const far = rows.filter(row => row.phase !== to && Math.abs(PHASES.indexOf(row.phase) - PHASES.indexOf(to)) !== 1);
    say(hint, !to || !far.length ? "" : `${far.length === rows.length ? "That is" : `For ${names(ids(far))} that is`} more than one step: the proxy refuses the whole change, unless nobody has written there.`);
    care.hidden = to !== "cluster";
  };
  const options = PHASES.map(name => {
    const isThere = phases.length === 1 && phases[0] === name;
    const radio = el("input", { type: "radio", name: "to", value: name, checked: name === to, disabled: isThere, autofocus: name === to, onchange: () => { to = name; update(); } });
    return el("label", { class: "option" }, radio, el("span", {}, phase(name), isThere && el("em", {}, " is there now"), el("small", {}, MEANING[name])));
  });
  update();
  ask({
    title: `Move ${subject(rows)}`,
    body: [rows.length > 1 && el("p", { class: "who" }, names(ids(rows), rows.length, 12)), rows.length > 1 && where(rows),
      el("fieldset", {}, el("legend", {}, "To the phase"), options), hint, care],
    label: () => to ? `Move to ${to}` : "Move",
    isReady: () => Boolean(to) && (to !== "cluster" || sure.checked),
    act: async () => {
      const moved = await call("POST", "/api/move", { routes: ids(rows), to });
      await seen(() => rows.every(row => state.rows.get(row.key)?.phase === to));
      const who = names(moved.routes);
      toast(moved.adopted_ms === null ? `${who}: in phase ${to} already` : `${who} → ${to}, adopted in ${milliseconds(moved.adopted_ms)}`, "good");
    },
  });
}

export function openRollback(rows) {
  const back = byPhase(rows).filter(([name]) => name !== "standalone");
  if (!back.length) return toast(`${names(ids(rows))}: in phase standalone, which has none before it`, "bad");
  const going = back.flatMap(([, those]) => those);
  const says = {
    "dual-standalone": "The cluster gets no more writes.",
    "dual-cluster": "The standalone answers again; it has every write.",
    "cluster": "The standalone is first given what it lacks. The next step back is open when that is done.",
  };
  ask({
    title: `Roll back ${subject(going)}`,
    body: [going.length > 1 && el("p", { class: "who" }, names(ids(going), going.length, 12)),
      el("ul", { class: "wayback" }, back.map(([name, those]) => el("li", {}, el("p", { class: "ways" }, going.length > 1 && el("b", {}, count(those.length)), phase(name), el("span", { class: "to" }, "→"), phase(PHASES[PHASES.indexOf(name) - 1])), el("small", {}, says[name]))))],
    label: () => "Roll back",
    kind: "danger",
    act: async () => {
      const done = await call("POST", "/api/rollback", { routes: ids(going) });
      const to = new Map(done.routes.map(flip => [flip.route, flip.to]));
      await seen(() => going.every(row => !to.has(row.id) || state.rows.get(row.key)?.phase === to.get(row.id)));
      toast(`${names(done.routes.map(flip => flip.route))} back, adopted in ${milliseconds(done.adopted_ms)}`, "good");
      for (const why of done.refused.slice(0, 3)) toast(why, "bad");
    },
  });
}

export function openRepair(rows) {
  ask({
    title: `Verify and repair ${subject(rows)}`,
    body: [el("p", {}, "Both stores are compared key by key, and what differs is copied from the leader to the follower."), where(rows)],
    label: () => "Verify and repair",
    act: () => walk("verify", rows, true),
  });
}

/** Asks until there is one, or the operator gives up. Comes before what another dialog shows, and puts that back. */
function askToken(why) {
  const before = dialog.open ? [...dialog.childNodes] : null;
  return new Promise((resolve, reject) => {
    const input = el("input", { type: "password", autocomplete: "off", required: true, "aria-label": "Admin token" });
    let isGiven = false;
    const leave = () => {
      dialog.removeEventListener("close", given);
      if (before && isGiven) dialog.replaceChildren(...before);
      else dialog.close();
    };
    const given = () => { leave(); isGiven ? resolve() : reject(new DOMException("no token", "AbortError")); };
    const form = el("form", { method: "dialog" }, el("h2", { id: "dialog-title" }, "Admin token"), el("p", {}, why),
      el("p", {}, "It stands in proxy.toml as ", el("code", {}, "token"), " under [admin], and is kept in this tab only."), input,
      el("p", { class: "buttons" }, button("Cancel", () => dialog.close()), el("button", { type: "submit", class: "primary" }, "Use it")));
    form.addEventListener("submit", event => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, input.value);
      isGiven = true;
      showToken();
      given();
    });
    dialog.addEventListener("close", given);
    show(form);
    input.focus();
  });
}

export function showToken() {
  const control = byId("token");
  control.hidden = !state.head?.needs_token;
  say(control, sessionStorage.getItem(TOKEN) ? "Forget token" : "Enter token");
}

export function toggleToken() {
  if (sessionStorage.getItem(TOKEN)) {
    sessionStorage.removeItem(TOKEN);
    showToken();
  } else {
    askToken("Calls that change something need it.").catch(tell);
  }
}

export async function showDifferences(id) {
  const job = await call("GET", `/api/jobs/${id}`).catch(tell);
  if (!job) return;
  const rest = job.differing - job.differences.length;
  show(el("form", { method: "dialog" }, el("h2", { id: "dialog-title" }, `What differs: ${job.kind} ${id}`), el("p", {}, job.message),
    el("ul", { class: "differences", tabindex: "0" }, job.differences.map(({ key, what }) => el("li", {}, el("code", {}, key), el("span", {}, what)))),
    rest > 0 && el("p", {}, `and ${count(rest)} more`), el("p", { class: "buttons" }, el("button", { class: "primary" }, "Close"))));
}

export function showHelp() {
  const keys = [["/", "search"], ["↑ ↓  Page  Home End", "go through the routes"], ["Enter", "open a route"], ["Space", "select; with Shift a range"], ["Ctrl A", "select all that are listed"],
    ["m", "move"], ["b", "backfill"], ["v", "verify"], ["e", "verify and repair"], ["r", "roll back"], ["Esc", "close, clear"], ["?", "this"]];
  show(el("form", { method: "dialog" }, el("h2", { id: "dialog-title" }, "Keys and phases"),
    el("dl", { class: "keys" }, keys.map(([key, what]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)))),
    el("dl", { class: "phases" }, PHASES.map(name => el("div", {}, el("dt", {}, phase(name)), el("dd", {}, MEANING[name])))),
    el("p", { class: "buttons" }, el("button", { class: "primary" }, "Close"))));
}

// One route ---------------------------------------------------------------------------------------------------------------

let opened = null;

export function openDrawer(key) {
  if (!state.rows.has(key)) return;
  opened = { key, facts: el("dl", { class: "sheet" }), ladder: el("div", { class: "steps", role: "group", "aria-label": "Phase" }), past: el("ol", { class: "list" }), lost: el("p", { class: "hint", hidden: true }, "This route is gone from the table.") };
  const row = () => state.rows.get(key);
  const on = act => () => row() && act([row()]);
  drawer.replaceChildren(
    el("header", {}, el("h2", { id: "drawer-title" }, row().id), el("span", { class: "kind" }, row().covered_by ? `provider, by ${row().covered_by}` : row().kind), button("×", () => drawer.close(), "plain", { "aria-label": "Close" })),
    opened.lost, opened.ladder,
    el("p", { class: "buttons" }, button("Move…", on(openMove), "primary"), button("Backfill", on(rows => walk("backfill", rows))), button("Verify", on(rows => walk("verify", rows))), button("Repair…", on(openRepair)), button("Roll back…", on(openRollback))),
    opened.facts, el("h3", {}, "Flips of this route"), opened.past);
  opened.ladder.append(...PHASES.map((name, at) => button([el("i", { "aria-hidden": "true" }), el("span", {}, name)], () => row() && row().phase !== name && openMove([row()], name), `step p${at}`)));
  opened.told = "";
  showDrawer();
  drawer.showModal();
}

function showDrawer() {
  if (!opened) return;
  const row = state.rows.get(opened.key);
  opened.lost.hidden = Boolean(row);
  if (!row) return;
  const told = JSON.stringify([row, state.history.length]);
  if (told === opened.told) return;
  opened.told = told;
  const at = PHASES.indexOf(row.phase);
  [...opened.ladder.children].forEach((step, index) => {
    step.classList.toggle("on", index <= at);
    if (index === at) step.setAttribute("aria-current", "step");
    else step.removeAttribute("aria-current");
  });
  const dual = row.phase.startsWith("dual");
  const coverage = { both: "both stores hold every key", "standalone-only": "the cluster may lack keys", "cluster-only": "the standalone may lack keys" };
  const facts = [
    ["Now", MEANING[row.phase]],
    dual && ["Copy", row.in_doubt ? "in doubt: any key may differ until a backfill has gone through it" : row.synced ? "synced: both stores are known to hold every key" : `not synced: ${coverage[row.coverage] ?? "one store may lack keys"}`],
    dual && ["Open divergence", row.open_divergence ? `${plural(row.open_divergence, "key")} may differ; repaired by themselves when both stores answer` : "none"],
    ["Requests a second", row.ops_per_second ? String(row.ops_per_second) : "none in the last seconds"],
    ["Refused requests", row.refusals ? `${count(row.refusals)} whose keys are in different slots or on different stores: see cutover audit` : "none"],
    ["Keys copied", row.keys_copied === undefined ? "no backfill in this run of the proxy" : count(row.keys_copied)],
  ].filter(Boolean);
  opened.facts.replaceChildren(...facts.map(([name, what]) => el("div", {}, el("dt", {}, name), el("dd", {}, what))));
  const flips = state.history.filter(entry => entry.event === "flipped" && entry.routes.includes(row.id)).reverse().slice(0, 6);
  opened.past.replaceChildren(...flips.map(entry => el("li", { class: "entry" }, el("p", { class: "ways" }, phase(entry.from), el("span", { class: "to" }, "→"), phase(entry.to)),
    el("p", { class: "facts" }, `${new Date(entry.at_ms).toLocaleTimeString("en-GB")} · adopted in ${milliseconds(entry.took_ms)}, paused ${milliseconds(entry.paused_ms)} · table ${entry.table_version}`))));
  if (!flips.length) opened.past.replaceChildren(el("li", { class: "nothing" }, "None in this run of the proxy."));
}

export function build() {
  drawer.addEventListener("close", () => { opened = null; byId("grid").focus(); });
  for (const modal of [dialog, drawer]) {
    // A click beside it closes it, but not one that began inside (selecting a text may end there).
    modal.addEventListener("pointerdown", event => { if (event.target === modal && modal === drawer) modal.close(); });
  }
  onChange(() => { showToken(); showDrawer(); });
}
