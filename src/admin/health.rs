//! Whether the proxy can serve, and its metrics.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::admin::routes::Traffic;
use crate::admin::{Parts, uptime};
use crate::dual::desk::Desk;
use crate::jobs::bypass::FoundBy;
use crate::metrics::{self, Kind, Page, label};
use crate::process;
use crate::routing::{Phase, Table};

/// Routes that have series of their own; beyond, only the totals. Prometheus suffers from more.
const ROUTE_SERIES_MAX: usize = 1_000;

/// 200 only with both stores reachable as the table needs them.
pub async fn ready(State(parts): State<Parts>) -> Response {
    let table = parts.adopter.table();
    let mut missing = Vec::new();
    if metrics::get(&parts.totals.standalone.up) == 0 {
        missing.push("the standalone does not answer");
    }
    if needs_cluster(&table) && metrics::get(&parts.totals.cluster.up) == 0 {
        missing.push("the cluster does not answer on every primary");
    }
    match missing.is_empty() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join("; "))).into_response(),
    }
}

fn needs_cluster(table: &Table) -> bool {
    !table.all_standalone() || table.pubsub() != Phase::Standalone
}

/// Prometheus text.
pub async fn metrics(State(parts): State<Parts>) -> Response {
    let mut page = Page::default();
    metrics::totals(&mut page, &parts.totals);
    let table = parts.adopter.table();
    page.add("table_version", Kind::Gauge, "Number of the adopted table.", table.version());
    let refused = u8::from(parts.adopter.refused().is_some());
    page.add(
        "table_refused",
        Kind::Gauge,
        "Whether the newest proxy.toml was refused; GET /api/table says why.",
        refused,
    );
    page.add("uptime_seconds", Kind::Gauge, "Since the proxy was started.", uptime(&parts).as_secs());
    let build = label(&[("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)]);
    page.family("build_info", Kind::Gauge, "Always 1; its labels say what runs.", [(build, 1)]);
    let phases = Phase::ALL.map(|phase| {
        let routes = table.routes().iter().filter(|route| route.phase == phase).count();
        (label(&[("phase", &phase.to_string())]), routes)
    });
    page.family("routes", Kind::Gauge, "Routes of the table in each phase.", phases);
    let dual: Vec<_> = table.routes().iter().filter_map(|route| Some((route, route.dual.clone()?))).collect();
    let open: u64 = dual.iter().map(|(_, dual)| dual.divergence()).sum();
    page.add("open_divergence", Kind::Gauge, "Keys of all dual routes that may differ and are to be repaired.", open);
    let shown = dual.iter().take(ROUTE_SERIES_MAX);
    let of = |name: &dyn std::fmt::Display| label(&[("route", &name.to_string())]);
    let divergence = shown.clone().map(|(route, dual)| (of(&route.name), dual.divergence()));
    page.family(
        "route_open_divergence",
        Kind::Gauge,
        "The same of one route, for the first 1,000 dual routes.",
        divergence,
    );
    let synced = shown.map(|(route, dual)| (of(&route.name), u8::from(dual.is_synced())));
    page.family(
        "route_synced",
        Kind::Gauge,
        "Whether both stores of a dual route are known to hold every key.",
        synced,
    );
    let traffic = Traffic::now(&parts, &table);
    let shown: Vec<_> =
        table.routes().iter().map(|route| (of(&route.name), traffic.of(route))).take(ROUTE_SERIES_MAX).collect();
    let requests = shown.iter().map(|(labels, rate)| (labels.clone(), rate.requests));
    page.family(
        "route_requests_total",
        Kind::Counter,
        "Requests for a route's keys, estimated from samples where there are many; for the first 1,000 routes.",
        requests,
    );
    let refusals = shown.iter().map(|(labels, rate)| (labels.clone(), rate.refusals));
    page.family(
        "route_refusals_total",
        Kind::Counter,
        "Requests refused because their keys are in different slots or on different stores.",
        refusals,
    );
    let bypass = parts.jobs.bypass();
    page.add(
        "bypass_writers",
        Kind::Gauge,
        "Connections that were seen writing to a store around the proxy, since the start; up to 100.",
        bypass.found_by(FoundBy::Connection),
    );
    let (companions, strangers) = parts.jobs.bypass().proxies();
    page.add(
        "other_proxies",
        Kind::Gauge,
        "Other cutover processes that are connected to a store while a route is dual, and do not share this one's lease.",
        strangers.len(),
    );
    page.add(
        "lease_proxies",
        Kind::Gauge,
        "Other cutover processes that share this one's lease and are connected to a store while a route is dual.",
        companions.len(),
    );
    lease(&mut page, parts.adopter.desk());
    page.add(
        "bypass_sightings_total",
        Kind::Counter,
        "How often a look found somebody who writes to a store around the proxy, by whatever it was found.",
        bypass.sightings(),
    );
    page.add(
        "bypass_commands_total",
        Kind::Counter,
        "Commands that write which a store has run and no proxy sent, as far as that is proven (INFO commandstats).",
        bypass.counted(FoundBy::Count),
    );
    page.add(
        "bypass_changes_total",
        Kind::Counter,
        "Changes of keys of dual routes that the proxy did not make, as stores tell of them (notify-keyspace-events).",
        bypass.counted(FoundBy::Notification),
    );
    let mut routes: Vec<_> = bypass.writers().into_iter().filter_map(|writer| writer.route).collect();
    routes.sort();
    routes.dedup();
    page.family(
        "bypass_route",
        Kind::Gauge,
        "Dual routes of which a store told such a change, since the start; up to 100.",
        routes.iter().map(|route| (label(&[("route", route)]), 1)),
    );
    page.add(
        "bypass_listening_nodes",
        Kind::Gauge,
        "Nodes whose notifications of changed keys are listened to: while a route is dual, where their settings tell them.",
        bypass.listening(),
    );
    page.add(
        "shadow_reads_total",
        Kind::Counter,
        "Reads of synced routes that were repeated on the follower and compared (routing.shadow_reads).",
        parts.shadowing.compared(),
    );
    page.add(
        "shadow_reads_differing_total",
        Kind::Counter,
        "Those of them that differed twice; their keys are copied again.",
        parts.shadowing.differing(),
    );
    let copies = parts.copying.copies();
    page.add("copied_keys_total", Kind::Counter, "Keys copied from store to store.", copies.keys);
    page.add("copied_bytes_total", Kind::Counter, "Bytes sent for copies.", copies.bytes);
    page.add(
        "copied_in_pieces_total",
        Kind::Counter,
        "Copies made by type, piece by piece, some more than once.",
        copies.in_pieces,
    );
    page.add("found_equal_total", Kind::Counter, "Keys that a backfill found equal and did not copy.", copies.equal);
    page.add(
        "copies_refused_total",
        Kind::Counter,
        "Copies by type that were refused because only a module can read the key, tries included.",
        copies.refused,
    );
    let omitted = table.routes().len().saturating_sub(ROUTE_SERIES_MAX);
    page.add("routes_without_series", Kind::Gauge, "Routes beyond the 1,000 that have series of their own.", omitted);
    let running = parts.jobs.list().iter().filter(|job| job.is_running()).count();
    page.add("jobs_running", Kind::Gauge, "Backfills and verifications that are running.", running);
    page.add(
        "event_listeners",
        Kind::Gauge,
        "Dashboards and others that listen to GET /api/events.",
        parts.feed.listeners(),
    );
    page.add(
        "event_listeners_dropped_total",
        Kind::Counter,
        "Listeners that were let go because they were behind.",
        parts.feed.dropped(),
    );
    process::metrics(&mut page);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], page.finish()).into_response()
}

/// Who holds the lease of the dual routes.
fn lease(page: &mut Page, desk: &Desk) {
    let view = desk.view();
    let is = |role: &str| u8::from(view.role == role);
    page.add(
        "lease_held",
        Kind::Gauge,
        "Whether this proxy holds the lease of the dual routes, and so does their writes.",
        is("holds"),
    );
    page.add(
        "lease_missing",
        Kind::Gauge,
        "Whether a route is dual and no proxy is known to hold the lease: commands of such routes wait, and are then refused.",
        is("waits"),
    );
    page.add(
        "lease_ends_total",
        Kind::Counter,
        "How often this proxy lost the lease while it was needed; what was queued then was not sent.",
        desk.fence.ends(),
    );
    page.add(
        "lease_forwarded_total",
        Kind::Counter,
        "Requests that were sent to the proxy that holds the lease.",
        desk.forwarded(),
    );
    page.add(
        "lease_tables_differ",
        Kind::Gauge,
        "Routes whose phase in this proxy's proxy.toml is another than at the proxy that holds the lease.",
        view.differs.len(),
    );
}
