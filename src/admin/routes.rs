//! Routes and providers as the API shows them: what the table says of each, and what was seen of it in traffic.

use std::collections::HashMap;
use std::time::Instant;

use serde::Serialize;

use crate::admin::Parts;
use crate::dual::traffic::Seen;
use crate::routing::{Coverage, Phase, Route, RouteName, Table};

/// One route, as shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteView {
    /// A provider's id, a range, a prefix, a part of the share (`share_0`), `new_providers` or `other_keys`.
    pub id: String,
    pub kind: &'static str,
    pub phase: Phase,
    pub leader: String,
    pub follower: Option<String>,
    pub synced: bool,
    /// `standalone-only`, `cluster-only` or `both`; none in a phase with one store.
    pub coverage: Option<Coverage>,
    pub in_doubt: bool,
    pub open_divergence: u64,
    /// Reads that were repeated on the follower since the phase began, and those of them that differed there twice.
    pub shadow_reads: u64,
    pub shadow_reads_differing: u64,
    /// By the last backfill that went through the route; none since the proxy was started.
    pub keys_copied: Option<u64>,
    /// Of the last seconds; estimated where there is much traffic.
    pub ops_per_second: f64,
    /// Requests that were refused because their keys are in different slots or on different stores.
    pub refusals: u64,
    /// The line of the table that covers it, where it has none of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covered_by: Option<String>,
}

/// Traffic of one route.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// Since the proxy was started; estimated where there is much traffic.
    pub requests: u64,
    pub per_second: f64,
    pub refusals: u64,
}

/// Traffic of every line of a table, and of each provider that a range or a default covers.
pub struct Traffic {
    lines: HashMap<RouteName, Rate>,
    others: Vec<(String, Rate)>,
}

impl Traffic {
    /// As it is now.
    pub fn now(parts: &Parts, table: &Table) -> Self {
        let mut traffic = Self { lines: HashMap::new(), others: Vec::new() };
        for seen in parts.traffic.seen(Instant::now()) {
            let Some(line) = table.covering(&seen.name) else { continue };
            let sum = traffic.lines.entry(line.name.clone()).or_default();
            sum.requests += seen.requests;
            sum.per_second += seen.per_second;
            sum.refusals += seen.refusals;
            if let RouteName::Provider(id) = &*seen.name
                && line.name != *seen.name
            {
                let Seen { requests, per_second, refusals, .. } = seen;
                traffic.others.push((id.clone(), Rate { requests, per_second, refusals }));
            }
        }
        traffic.others.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        traffic
    }

    /// Of one line.
    pub fn of(&self, route: &Route) -> Rate {
        self.lines.get(&route.name).copied().unwrap_or_default()
    }
}

/// The lines of the table that `is` names.
pub fn lines(parts: &Parts, table: &Table, traffic: &Traffic, is: impl Fn(&Route) -> bool) -> Vec<RouteView> {
    let copied = parts.jobs.copied();
    let shown = table.routes().iter().filter(|route| is(route));
    shown.map(|route| view(route, traffic.of(route), copied.get(&route.name).copied())).collect()
}

/// Providers that were seen in traffic and have no line of their own.
pub fn others(table: &Table, traffic: &Traffic) -> Vec<RouteView> {
    let other = |(id, rate): &(String, Rate)| {
        let line = table.provider_route(id.as_bytes());
        let covered_by = Some(line.name.to_string());
        RouteView { id: id.clone(), kind: "provider", covered_by, ..view(line, *rate, None) }
    };
    traffic.others.iter().map(other).collect()
}

/// The channels, which flip like a route.
pub fn channels(table: &Table) -> RouteView {
    let route =
        Route { name: RouteName::Provider("pubsub".into()), phase: table.pubsub(), since: 0, dual: None, hash: 0 };
    RouteView { kind: "channels", ..view(&route, Rate::default(), None) }
}

fn view(route: &Route, rate: Rate, keys_copied: Option<u64>) -> RouteView {
    let dual = route.dual.as_deref();
    RouteView {
        id: route.name.to_string(),
        kind: match route.name {
            RouteName::Provider(_) => "provider",
            RouteName::Range(..) => "range",
            RouteName::Prefix(_) => "prefix",
            RouteName::Share(_) => "share",
            RouteName::NewProviders | RouteName::OtherKeys => "default",
        },
        phase: route.phase,
        leader: route.phase.leader().to_string(),
        follower: route.phase.follower().map(|side| side.to_string()),
        synced: dual.is_some_and(|dual| dual.is_synced()),
        coverage: dual.map(|dual| dual.coverage()),
        in_doubt: dual.is_some_and(|dual| dual.is_in_doubt()),
        open_divergence: dual.map_or(0, |dual| dual.divergence()),
        shadow_reads: dual.map_or(0, |dual| dual.shadows().0),
        shadow_reads_differing: dual.map_or(0, |dual| dual.shadows().1),
        keys_copied,
        ops_per_second: (rate.per_second * 10.0).round() / 10.0,
        refusals: rate.refusals,
        covered_by: None,
    }
}
