//! Tables as the state file and the lease remember them, and the one to start with.

use crate::dual::lease::Phases;
use crate::dual::state::{Naming, RouteRecord, Snapshot};
use crate::dual::verdict::{Refused, judge, renames};
use crate::routing::flip::{self, Flip};
use crate::routing::{Coverage, Pattern, Patterns, Phase, Route, RouteName, RoutingSpec, Table};

/// What the state file remembers of a table. Routes in phase `standalone` are left out where nothing could cover them
/// that is not, so that a large table makes a small file.
pub fn snapshot_of(table: &Table, clean: bool) -> Snapshot {
    let covers_many = |route: &Route| !matches!(route.name, RouteName::Provider(_)) && route.phase != Phase::Standalone;
    let needs_all = table.routes().iter().any(covers_many);
    let routes = table.routes().iter().filter(|route| needs_all || route.phase != Phase::Standalone);
    let records = routes.map(|route| RouteRecord {
        route: route.name.clone(),
        phase: route.phase,
        coverage: route.dual.as_ref().map(|dual| dual.coverage()),
        // Diverged keys of a mirrored route are known to this run only.
        in_doubt: route.dual.as_ref().is_some_and(|dual| dual.is_in_doubt() || dual.divergence() > 0),
    });
    Snapshot { version: table.version(), clean, routes: records.collect(), naming: Some(naming_of(table)) }
}

pub(super) fn naming_of(table: &Table) -> Naming {
    Naming {
        cluster_keys: table.cluster_keys(),
        keys: table.patterns().0.iter().map(ToString::to_string).collect(),
        databases: Some(table.databases().clone()),
    }
}

/// A table as other proxies of its lease are told of it.
pub fn phases_of(table: &Table) -> Phases {
    Phases { snapshot: snapshot_of(table, true), pubsub: table.pubsub() }
}

/// The table that another proxy tells of, beside one of this proxy's.
pub(super) fn table_of(phases: &Phases, own: &Table, previous: Option<&Table>) -> Table {
    let spec = RoutingSpec {
        keys: own.patterns().clone(),
        new_providers: Phase::Standalone,
        other_keys: Phase::Standalone,
        pubsub: phases.pubsub,
        ack: own.ack(),
        cluster_keys: own.cluster_keys(),
        databases: own.databases().clone(),
        prefixes: Vec::new(),
        providers: Vec::new(),
        ranges: Vec::new(),
        share: Vec::new(),
        force: Vec::new(),
    };
    Table::build(&with_routes(spec, &phases.snapshot), own.version() + 1, previous)
}

/// The same with the routes that are remembered.
fn with_routes(mut spec: RoutingSpec, snapshot: &Snapshot) -> RoutingSpec {
    for record in &snapshot.routes {
        match &record.route {
            RouteName::Provider(id) => spec.providers.push((id.clone(), record.phase)),
            RouteName::Prefix(prefix) => spec.prefixes.push((prefix.clone(), record.phase)),
            RouteName::Range(first, last) => spec.ranges.push((*first, *last, record.phase)),
            RouteName::NewProviders => spec.new_providers = record.phase,
            RouteName::Share(share) => spec.share.push((*share, record.phase)),
            RouteName::OtherKeys => spec.other_keys = record.phase,
        }
    }
    spec
}

/// The table that a state file remembers, with what was known of its dual routes. What is not remembered, because nothing
/// depends on it, is taken from `spec`.
pub fn last_table(snapshot: &Snapshot, spec: &RoutingSpec) -> Table {
    let mut old = RoutingSpec {
        prefixes: Vec::new(),
        providers: Vec::new(),
        ranges: Vec::new(),
        share: Vec::new(),
        ..spec.clone()
    };
    (old.new_providers, old.other_keys) = (Phase::Standalone, Phase::Standalone);
    if let Some(naming) = &snapshot.naming {
        old.cluster_keys = naming.cluster_keys;
        old.databases = naming.databases.clone().unwrap_or(old.databases);
        // What could be read once can be read again; a pattern of another version is one that finds nothing.
        old.keys = Patterns(naming.keys.iter().filter_map(|text| Pattern::parse(text).ok()).collect());
    }
    let table = Table::build(&with_routes(old, snapshot), snapshot.version, None);
    for record in &snapshot.routes {
        let Some(dual) = table.find(&record.route).and_then(|route| route.dual.as_ref()) else { continue };
        dual.set_coverage(record.coverage.unwrap_or(Coverage::StandaloneOnly));
        // Effects that had not reached the follower when the program was killed are known to nobody.
        dual.set_in_doubt(record.in_doubt || !snapshot.clean);
    }
    table
}

/// The table to start with: the file's, judged as flips against what the state file remembers; where they are not
/// allowed, the remembered one, and why. `is_stale`: whether the cluster may hold old keys of a route.
pub fn first_table(
    snapshot: Option<&Snapshot>,
    is_stale: impl Fn(&RouteName) -> bool,
    spec: &RoutingSpec,
) -> (Table, Option<Refused>) {
    let Some(snapshot) = snapshot else { return (Table::build(spec, 1, None), None) };
    let old = last_table(snapshot, spec);
    let new = Table::build(spec, snapshot.version + 1, Some(&old));
    if let Some(reason) = renames(&old, &new).or_else(|| flip::mixed(&old, &new)) {
        return (old, Some(Refused(vec![reason])));
    }
    let flips = flip::flips(&old, &new);
    match judge(&flips, &old, |route| spec.is_forced(route)) {
        Ok(()) => {
            begin_phases(&flips, &new, is_stale);
            (new, None)
        }
        Err(refused) => (old, Some(refused)),
    }
}

/// What a new phase begins with. A route that was on the cluster before may have left stale keys there, which only a whole
/// backfill finds: it is in doubt until then.
pub fn begin_phases(flips: &[Flip], new: &Table, is_stale: impl Fn(&RouteName) -> bool) {
    for flip in flips.iter().filter(|flip| flip.from == Phase::Standalone && is_stale(&flip.route)) {
        let Some(dual) = new.find(&flip.after).and_then(|route| route.dual.clone()) else { continue };
        tracing::warn!(route = %flip.route, "the cluster may hold old keys of this route; it is in doubt until `cutover backfill` has gone through it");
        dual.set_in_doubt(true);
    }
}
