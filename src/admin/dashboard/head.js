// The head of the page: is it live, do the stores answer and how fast, how much is asked, what is refused.

import { state } from "./feed.js";
import { byId, clock, count, el, milliseconds, names, PHASES, plural, rate, reason, say, span } from "./words.js";

const WIDTH = 240, HEIGHT = 36;
const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** A small plot of the last five minutes; a gap where nothing is known. */
class Plot {
  constructor(kind) {
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line" });
    this.element = svg("svg", { class: `plot ${kind}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.element.append(this.area, this.line);
  }

  /** `points`: pairs of time and value or null. Five minutes, or what there is of them. */
  draw(points) {
    const end = points.at(-1)?.[0] ?? 0, seconds = Math.max(60, (end - (points[0]?.[0] ?? end)) / 1000);
    const known = points.map(([, value]) => value).filter(value => value !== null);
    // Above the highest point some air, and never a mountain out of a twitch.
    const top = Math.max(...known, 0) * 1.15 || 1;
    const x = at => (WIDTH * (1 - (end - at) / 1000 / seconds)).toFixed(1);
    const y = value => (HEIGHT - 1.5 - (HEIGHT - 3) * value / top).toFixed(1);
    let line = "", area = "", run = [];
    const flush = () => {
      if (run.length) {
        const path = run.map(([at, value]) => `${x(at)} ${y(value)}`).join("L");
        line += `M${path}`;
        area += `M${x(run[0][0])} ${HEIGHT}L${path}L${x(run.at(-1)[0])} ${HEIGHT}Z`;
      }
      run = [];
    };
    for (const point of points) point[1] === null ? flush() : run.push(point);
    flush();
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
    return known.length ? Math.max(...known) : null;
  }
}

class Tile {
  constructor(title, kind) {
    this.title = title;
    this.value = el("strong", { class: "value" }, "–");
    this.note = el("span", { class: "note" });
    this.top = el("span", { class: "most" });
    this.plot = new Plot(kind);
    this.element = el("article", { class: `tile ${kind}`, "aria-label": title },
      el("h2", {}, el("span", { class: "dot", "aria-hidden": "true" }), title), this.value, this.note, this.plot.element, this.top);
  }

  show(value, note, points, format, isBad = false) {
    say(this.value, value);
    say(this.note, note);
    this.element.classList.toggle("bad", isBad);
    const most = this.plot.draw(points);
    say(this.top, most === null ? "" : `most in 5 min ${format(most)}`);
  }
}

const requests = new Tile("Requests", "requests"), standalone = new Tile("Standalone", "standalone"), cluster = new Tile("Cluster", "cluster");
const way = el("article", { class: "tile way", "aria-label": "Providers by phase" },
  el("h2", {}, "On the cluster"), el("strong", { class: "value" }), el("span", { class: "note" }, el("span"), el("span", { class: "what" })),
  el("div", { class: "bar", "aria-hidden": "true" }, PHASES.map((_, step) => el("i", { class: `p${step}` }))), el("span", { class: "most" }));

export function build() {
  byId("tiles").append(requests.element, standalone.element, cluster.element, way);
}

const store = (tile, side, column) => {
  const known = state.head.stores[side];
  const points = state.samples.map(sample => [sample[0], sample[column]]);
  tile.show(known.up ? milliseconds(known.latency_ms) : "down", known.up ? "answers" : "does not answer", points, milliseconds, !known.up);
};

export function show() {
  const banners = [...troubles(), ...notes()];
  showLive(banners.some(([kind]) => kind !== "note"));
  showBanners(banners);
  if (!state.head) return;
  const { clients, table_version, uptime_seconds, version, refused_requests } = state.head;
  const turned = refused_requests.crossslot + refused_requests.not_supported;
  requests.show(`${rate(state.samples.at(-1)?.[1] ?? 0)}/s`, plural(clients, "client"), state.samples.map(sample => [sample[0], sample[1]]), most => `${rate(most)}/s`);
  store(standalone, "standalone", 2);
  store(cluster, "cluster", 3);
  showWay();
  say(byId("facts"), [`table ${table_version}`, `up ${span(uptime_seconds)}`, turned ? `${plural(turned, "request")} refused for the cluster's sake` : "", `v${version}`].filter(Boolean).join("  ·  "));
}

function showWay() {
  const providers = [...state.rows.values()].filter(row => row.kind === "provider" || row.kind === "range");
  const at = PHASES.map(name => providers.filter(row => row.phase === name).length);
  const [value, note, bar, most] = [...way.children].slice(1);
  say(value, count(at[2] + at[3]));
  say(note.firstChild, `of ${count(providers.length)}`);
  say(note.lastChild, providers.length === 1 ? " provider" : " providers");
  [...bar.children].forEach((part, step) => { part.style.flexGrow = at[step]; part.hidden = !at[step]; });
  const rows = [...state.rows.values()], diverged = rows.filter(row => row.open_divergence > 0), doubtful = rows.filter(row => row.in_doubt);
  const keys = diverged.reduce((sum, row) => sum + row.open_divergence, 0);
  say(most, [keys ? `${plural(keys, "key")} diverged in ${plural(diverged.length, "route")}` : "no open divergence", doubtful.length ? `${plural(doubtful.length, "route")} in doubt` : ""].filter(Boolean).join(" · "));
  most.classList.toggle("warn", keys + doubtful.length > 0);
}

function showLive(isTroubled) {
  const live = byId("live");
  live.dataset.state = state.isLive ? "live" : state.problem ? "lost" : "waiting";
  say(live, state.isLive ? "live" : state.problem ? "not live" : "connecting");
  document.body.classList.toggle("stale", !state.isLive && Boolean(state.problem));
  document.title = `${isTroubled ? "! " : ""}cutover`;
}

const banner = (kind, title, text, more) =>
  el("div", { class: `banner ${kind}` }, el("strong", {}, title), text && el("span", {}, text), more);

/** What a person must look at: kind, title, text, and a reason word by word, or lines. */
function troubles() {
  if (!state.isLive && state.problem) {
    const since = state.staleSince ? clock(state.staleSince) : "the beginning";
    return [["bad", "No connection to the proxy.", state.head ? `What is shown is of ${since}; ${state.problem}. Trying again.` : `Nothing is known yet; ${state.problem}. Trying again.`]];
  }
  if (!state.isLive || !state.head) return [];
  const { stores, refused, table_version, other_proxies, lease } = state.head;
  const found = [];
  for (const [side, leads] of [["standalone", ["standalone", "dual-standalone"]], ["cluster", ["dual-cluster", "cluster"]]]) {
    if (stores[side].up) continue;
    const led = [...state.rows.values()].filter(row => leads.includes(row.phase) && row.kind !== "channels").sort((a, b) => a.group - b.group || a.number - b.number).map(row => row.id);
    const what = led.length ? `It leads ${names(led)}: their requests are refused when its patience is over.` : "It leads no route; what it misses as a follower is counted and repaired when it answers.";
    found.push(["bad", `The ${side} does not answer.`, what]);
  }
  if (refused) found.push(["warn", `The newest proxy.toml is refused; table ${table_version} goes on.`, "", refused]);
  for (const [name, address] of Object.entries(other_proxies)) {
    found.push(["bad", "Another cutover is connected to these stores.", `${name}, from ${address}: two without a lease in common break the order of writes in dual phases. Give both the same lease.name, or stop one.`]);
  }
  if (lease.role === "waits") found.push(["bad", "No proxy holds the lease of the dual routes, whose commands wait.", `${lease.reason ?? "The stores have not been asked yet"}.`]);
  // What refuses the file names the differences as well.
  if (lease.differs.length && !refused) found.push(["warn", "This proxy.toml differs from the holder's table.", "The holder's counts, and this file flips nothing meanwhile.", lease.differs]);
  const now = writers().filter(isWriting);
  const connected = now.filter(writer => writer.found_by === "connection"), named = [...new Set(now.map(writer => writer.route).filter(Boolean))];
  const who = connected.length ? `${plural(connected.length, "connection")} ${connected.length === 1 ? "writes" : "write"} around the proxy.` : "Somebody writes around the proxy.";
  const which = named.length === 0 || now.some(writer => !writer.route) ? "Every dual route is" : `${named.length === 1 ? "Route" : "Routes"} ${names(named)} ${named.length === 1 ? "is" : "are"}`;
  if (now.length) found.push(["warn", who, `${which} in doubt until ${connected.length === 1 && now.length === 1 ? "it has" : "they have"} stopped and a backfill has gone through.`, told(now)]);
  return found;
}

/** What is good to know and asks for nothing. */
function notes() {
  if (!state.isLive || !state.head) return [];
  const { lease, lease_proxies } = state.head;
  const found = [], others = Object.values(lease_proxies);
  if (lease.role === "holds" && others.length) found.push(["note", "This proxy holds the lease of the dual routes.", `${plural(others.length, "more proxy", "more proxies")} (${names(others)}) ${others.length === 1 ? "sends" : "send"} it their traffic.`]);
  if (lease.role === "follows") found.push(["note", `The proxy at ${lease.holder} holds the lease of the dual routes,`, "and gets their traffic from this one. Flips, backfills and verifications are made there."]);
  const before = writers().filter(writer => !isWriting(writer));
  if (before.length) found.push(["note", before.every(writer => writer.found_by === "connection") ? `${plural(before.length, "connection")} wrote around the proxy before.` : "Somebody wrote around the proxy before.", "Where a route is in doubt, a backfill ends it.", told(before)]);
  return found;
}

const writers = () => [...state.head.bypass].sort((a, b) => b.last_seen - a.last_seen);
const isWriting = writer => state.head.now_ms / 1000 - writer.last_seen < 60;

/** A line each, as in `cutover status`. */
function told(writers) {
  const until = last_seen => isWriting({ last_seen }) ? "" : ` until ${clock(last_seen * 1000)}`;
  const line = ({ found_by, address, name, store, node, command, route, key, writes, last_seen }) =>
    found_by === "count" ? `${plural(writes, "command")} on the ${store} ${node} came from connections that no look has seen${until(last_seen)}`
    : found_by === "notification" ? `route ${route}: ${plural(writes, "change")} on the ${store} ${node}${until(last_seen)}, such as ${command} of ${key}`
    : `${address}${name ? ` (${name})` : ""} ${isWriting({ last_seen }) ? "writes" : `wrote until ${clock(last_seen * 1000)}`} to the ${store} ${node} (${command})`;
  const lines = writers.slice(0, 5).map(line);
  return [...lines, writers.length > lines.length && `and ${writers.length - lines.length} more; \`cutover status\` lists them`].filter(Boolean);
}

let shown = "";

function showBanners(banners) {
  // An alert is read out: it is built anew only when it says something else.
  const text = JSON.stringify(banners);
  if (text === shown) return;
  shown = text;
  byId("banners").replaceChildren(...banners.map(([kind, title, what, why]) => banner(kind, title, what, Array.isArray(why) ? el("ul", {}, why.map(line => el("li", {}, line))) : why && reason(why))));
}
