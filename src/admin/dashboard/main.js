// Joins the parts of the page, and the keys that work everywhere.

import * as actions from "./actions.js";
import { onChange, open } from "./feed.js";
import * as head from "./head.js";
import * as routes from "./routes.js";
import * as side from "./side.js";
import { byId } from "./words.js";

head.build();
routes.build();
actions.build();
onChange(what => {
  head.show();
  routes.refresh(what);
  side.show();
});
byId("help").addEventListener("click", actions.showHelp);
byId("token").addEventListener("click", actions.toggleToken);

const tabs = [...document.querySelectorAll("[role=tab]")];
function choose(tab) {
  for (const one of tabs) {
    one.setAttribute("aria-selected", one === tab);
    one.tabIndex = one === tab ? 0 : -1;
  }
  byId("main").dataset.tab = tab.getAttribute("aria-controls");
  routes.draw();
}
tabs.forEach((tab, at) => {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", event => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const next = tabs[(at + by + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
});

document.addEventListener("keydown", event => {
  const isTyping = event.target.closest("input:not([type=checkbox]), select, textarea, dialog");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    choose(tabs[0]);
    byId("search").focus();
    byId("search").select();
  } else if (event.key === "?") {
    actions.showHelp();
  } else {
    return;
  }
  event.preventDefault();
});

open();
