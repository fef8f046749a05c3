// Words, numbers and elements: what the other files say things with. No text from the proxy is ever read as HTML.

export const PHASES = ["standalone", "dual-standalone", "dual-cluster", "cluster"];

export const MEANING = {
  "standalone": "The standalone answers. The cluster gets nothing.",
  "dual-standalone": "The standalone answers. Every write goes to both; the cluster is being filled.",
  "dual-cluster": "The cluster answers. The standalone still gets every write, so the way back loses nothing.",
  "cluster": "The cluster answers alone. The standalone gets no more writes.",
};

/** An element: attributes, `on…` listeners, children (elements or text). */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = id => document.getElementById(id);

/** Sets a text only where it differs, so that a screen reader is not told again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const count = number => whole.format(number);
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** A rate in few digits: 0.4, 12, 1,240, 12.4k. */
export function rate(number) {
  if (number >= 100_000) return `${Math.round(number / 1000)}k`;
  if (number >= 10_000) return `${(number / 1000).toFixed(1)}k`;
  return number < 10 && number % 1 ? number.toFixed(1) : count(number);
}

export function milliseconds(number) {
  if (number === null || number === undefined) return "–";
  if (number >= 10_000) return `${(number / 1000).toFixed(1)} s`;
  return `${number >= 100 ? count(number) : number.toFixed(number >= 10 ? 1 : 2)} ms`;
}

export function span(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds % 3600 / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor(seconds % 86_400 / 3600)} h`;
}

export const clock = at => new Date(at).toLocaleTimeString("en-GB");
export const date = at => `${new Date(at).toLocaleDateString("en-CA")} ${clock(at)}`;

/** Many names in a few: `1, 2, 3 and 97 more`. */
export function names(routes, total = routes.length, shown = 3) {
  const few = routes.slice(0, total <= shown + 1 ? total : shown);
  return total > few.length ? `${few.join(", ")} and ${count(total - few.length)} more` : few.join(", ");
}

/** The phase, also for those who do not see its colour: as many bars as it is steps on the way. */
export function phase(name) {
  const step = PHASES.indexOf(name);
  const bars = PHASES.map((_, index) => el("i", { class: index <= step ? "on" : "" }));
  return el("span", { class: `phase p${step}` }, el("span", { class: "ladder", "aria-hidden": "true" }, bars), name);
}

/** Why something was refused, word by word: one line a route, or a place in the file with its caret. */
export function reason(text, more = {}) {
  const isFile = text.includes("\n");
  return el("pre", { class: isFile ? "reason code" : "reason", tabindex: "0", ...more }, text.split("; route ").join("\nroute "));
}

export const button = (label, onclick, kind = "", more = {}) => el("button", { type: "button", class: kind, onclick, ...more }, label);

/** Whether a pointer is on an element, and `left` when it has gone. A finger is there while it touches; its click comes after. */
export function watchPointer(element, left) {
  const pointer = { isOn: false };
  let leaving;
  element.addEventListener("pointerenter", () => { clearTimeout(leaving); pointer.isOn = true; });
  element.addEventListener("pointerleave", () => { leaving = setTimeout(() => { pointer.isOn = false; left(); }, 300); });
  return pointer;
}
