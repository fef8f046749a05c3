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
  el("h2", {}, "On the way"), el("strong", { class: "value" }), el("span", { class: "note" }),
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
  showLive();
  showBanners();
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
  say(note, `of ${plural(providers.length, "provider")} on the cluster`);
  [...bar.children].forEach((part, step) => { part.style.flexGrow = at[step]; });
  const rows = [...state.rows.values()], diverged = rows.filter(row => row.open_divergence > 0), doubtful = rows.filter(row => row.in_doubt);
  const keys = diverged.reduce((sum, row) => sum + row.open_divergence, 0);
  say(most, [keys ? `${plural(keys, "key")} diverged in ${plural(diverged.length, "route")}` : "no open divergence", doubtful.length ? `${plural(doubtful.length, "route")} in doubt` : ""].filter(Boolean).join(" · "));
  most.classList.toggle("warn", keys + doubtful.length > 0);
}

function showLive() {
  const live = byId("live");
  live.dataset.state = state.isLive ? "live" : state.problem ? "lost" : "waiting";
  say(live, state.isLive ? "live" : state.problem ? "not live" : "connecting");
  document.body.classList.toggle("stale", !state.isLive && Boolean(state.problem));
  const trouble = !state.isLive && state.problem || state.head?.refused || state.head && !(state.head.stores.standalone.up && state.head.stores.cluster.up);
  document.title = `${trouble ? "! " : ""}cutover`;
}

const banner = (kind, title, text, more) =>
  el("div", { class: `banner ${kind}` }, el("strong", {}, title), text && el("span", {}, text), more);

let shown = "";

function showBanners() {
  const banners = [];
  if (!state.isLive && state.problem) {
    const since = state.staleSince ? clock(state.staleSince) : "the beginning";
    banners.push(["bad", "No connection to the proxy.", state.head ? `What is shown is of ${since}; ${state.problem}. Trying again.` : `Nothing is known yet; ${state.problem}. Trying again.`]);
  }
  if (state.isLive && state.head) {
    for (const [side, leads] of [["standalone", ["standalone", "dual-standalone"]], ["cluster", ["dual-cluster", "cluster"]]]) {
      if (state.head.stores[side].up) continue;
      const led = [...state.rows.values()].filter(row => leads.includes(row.phase) && row.kind !== "channels").sort((a, b) => a.group - b.group || a.number - b.number).map(row => row.id);
      const what = led.length ? `It leads ${names(led)}: their requests are refused when its patience is over.` : "It leads no route; what it misses as a follower is counted and repaired when it answers.";
      banners.push(["bad", `The ${side} does not answer.`, what]);
    }
    if (state.head.refused) {
      banners.push(["warn", `The newest proxy.toml is refused; table ${state.head.table_version} goes on.`, "", state.head.refused]);
    }
  }
  // An alert is read out: it is built anew only when it says something else.
  const text = JSON.stringify(banners);
  if (text === shown) return;
  shown = text;
  byId("banners").replaceChildren(...banners.map(([kind, title, what, why]) => banner(kind, title, what, why && reason(why))));
}

