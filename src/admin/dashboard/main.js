"use strict";
const $ = id => document.getElementById(id), SHOWN = 500;
const row = cells => { const tr = document.createElement("tr");
  for (const [text, kind] of cells) { const td = tr.insertCell(); td.textContent = text; if (kind) td.className = kind; } return tr; };
const up = (name, store) => `${name} ${store.up ? "answers" : "does not answer"}`;
async function refresh() {
  try {
    const [table, jobs] = await Promise.all(["/api/table", "/api/jobs"].map(async path => (await fetch(path)).json()));
    $("summary").textContent = `table ${table.table_version} · ${up("standalone", table.stores.standalone)} · ${up("cluster", table.stores.cluster)} · ${table.clients} clients · ${table.requests_total} requests`;
    $("refused").hidden = !table.refused;
    $("refused").textContent = table.refused ? `The newest proxy.toml is refused; the running table stays.\n${table.refused}` : "";
    const word = $("search").value.trim(), found = table.routes.filter(r => !word || r.id.includes(word) || r.phase.includes(word));
    $("routes").replaceChildren(...found.slice(0, SHOWN).map(r => row([[r.id], [r.phase], [r.leader],
      r.follower ? [r.synced ? "yes" : r.in_doubt ? "in doubt" : "no", r.synced ? "good" : ""] : ["–"],
      [r.open_divergence, r.open_divergence ? "bad" : ""]])));
    $("more").textContent = found.length > SHOWN ? `${found.length - SHOWN} more: search for them` : "";
    $("jobs").replaceChildren(...jobs.jobs.reverse().map(j => row([[`${j.kind} ${j.id}`], [j.routes.join(", ")], [j.state, j.state === "failed" ? "bad" : ""],
      [`${j.scanned} of about ${j.keys_total}`], [j.copied], [j.differing, j.differing ? "bad" : ""], [Math.round(j.keys_per_second)], [j.message]])));
  } catch (error) { $("summary").textContent = `The proxy does not answer: ${error}`; }
}
$("search").addEventListener("input", refresh);
refresh(); setInterval(refresh, 1000);
