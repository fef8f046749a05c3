//! Which flips the facts allow, else why not. Pure.

use std::collections::HashSet;

use crate::routing::{Coverage, Phase, RouteName, Table};

/// One route going from one phase to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flip {
    pub route: RouteName,
    pub from: Phase,
    pub to: Phase,
}

/// What is known of a route when a flip of it is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteFacts {
    /// Where its phase is a dual one.
    pub coverage: Option<Coverage>,
    pub divergence: u64,
    pub in_doubt: bool,
    /// Nobody has written to it yet.
    pub untouched: bool,
}

/// Why a flip is refused; the text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("only neighbouring phases flip (standalone, dual-standalone, dual-cluster, cluster); go to `{next}` first")]
    NotNeighbours { next: Phase },
    #[error(
        "{keys} keys may differ between the stores; they are repaired by themselves when both stores answer (see `cutover status`), or run `cutover verify {route} --repair`"
    )]
    Divergence { keys: u64, route: RouteName },
    #[error(
        "the route is in doubt since an unclean stop, a store that was restarted or replaced, or an earlier stay on the cluster; wait for the backfill that runs (`cutover status`), or run `cutover backfill {route}`"
    )]
    InDoubt { route: RouteName },
    #[error("the cluster is not known to hold every key; run `cutover backfill {route}`")]
    NotSynced { route: RouteName },
    #[error("the standalone is not known to hold every key again; run `cutover backfill {route}`")]
    NotSyncedBack { route: RouteName },
}

/// A flip that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("route {} cannot go from {} to {}: {reason}", flip.route, flip.from, flip.to)]
pub struct RefusedFlip {
    pub flip: Flip,
    pub reason: Reason,
}

/// The routes whose phase differs between two tables. A line that appears or vanishes is a flip where the line that
/// covered it before, or covers it after, has another phase.
pub fn flips(old: &Table, new: &Table) -> Vec<Flip> {
    let mut found = Vec::new();
    for route in new.routes() {
        let Some(before) = old.covering(&route.name) else { continue };
        if before.phase != route.phase {
            found.push(Flip { route: route.name.clone(), from: before.phase, to: route.phase });
        }
    }
    let known: HashSet<&RouteName> = new.routes().iter().map(|route| &route.name).collect();
    for route in old.routes().iter().filter(|route| !known.contains(&route.name)) {
        let Some(after) = new.covering(&route.name) else { continue };
        if after.phase != route.phase {
            found.push(Flip { route: route.name.clone(), from: route.phase, to: after.phase });
        }
    }
    found
}

/// Judges them; a table is adopted only if all are allowed. `forced` overrides a refusal for a route.
pub fn judge(
    flips: &[Flip],
    facts: impl Fn(&RouteName) -> RouteFacts,
    forced: impl Fn(&RouteName) -> bool,
) -> Result<(), Vec<RefusedFlip>> {
    let refuse = |flip: &Flip| {
        let reason = reason(flip, facts(&flip.route))?;
        (!forced(&flip.route)).then(|| RefusedFlip { flip: flip.clone(), reason })
    };
    let refused: Vec<_> = flips.iter().filter_map(refuse).collect();
    if refused.is_empty() { Ok(()) } else { Err(refused) }
}

fn reason(flip: &Flip, facts: RouteFacts) -> Option<Reason> {
    let route = || flip.route.clone();
    if facts.untouched {
        return None;
    }
    if !flip.from.is_neighbour(flip.to) {
        let step = if flip.to > flip.from { 1 } else { -1 };
        return Some(Reason::NotNeighbours { next: Phase::ALL[(flip.from as i8 + step) as usize] });
    }
    // Into a dual phase from a single one, and back to the standalone that leads, nothing can be lost.
    let trusts_the_follower = flip.from.is_dual() && (flip.to.is_dual() || flip.to == Phase::Cluster);
    if !trusts_the_follower {
        return None;
    }
    if facts.divergence > 0 {
        return Some(Reason::Divergence { keys: facts.divergence, route: route() });
    }
    if facts.in_doubt {
        return Some(Reason::InDoubt { route: route() });
    }
    match (flip.to, facts.coverage) {
        (Phase::Cluster, Some(Coverage::Both)) => None,
        (Phase::Cluster, _) => Some(Reason::NotSynced { route: route() }),
        (Phase::DualStandalone, Some(Coverage::ClusterOnly)) => Some(Reason::NotSyncedBack { route: route() }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(from: Phase, to: Phase, facts: RouteFacts) -> Result<(), Reason> {
        let flip = Flip { route: RouteName::Provider("42".into()), from, to };
        judge(&[flip], |_| facts, |_| false).map_err(|refused| refused[0].reason.clone())
    }

    #[test]
    fn every_pair_of_phases_is_judged_by_the_contract() {
        let synced = RouteFacts { coverage: Some(Coverage::Both), ..RouteFacts::default() };
        let unsynced = RouteFacts { coverage: Some(Coverage::StandaloneOnly), ..RouteFacts::default() };
        let diverged = RouteFacts { divergence: 3, ..synced };
        use Phase::*;
        for from in Phase::ALL {
            for to in Phase::ALL.into_iter().filter(|to| *to != from) {
                assert_eq!(judged(from, to, synced).is_ok(), from.is_neighbour(to), "{from} to {to}");
            }
        }
        assert!(judged(DualStandalone, DualCluster, unsynced).is_ok(), "lazy backfill fills the rest");
        assert!(judged(DualCluster, Cluster, unsynced).is_err());
        assert!(judged(DualCluster, DualStandalone, unsynced).is_ok(), "the standalone got every write");
        let back = RouteFacts { coverage: Some(Coverage::ClusterOnly), ..RouteFacts::default() };
        assert!(judged(DualCluster, DualStandalone, back).is_err());
        for (from, to) in [(DualStandalone, DualCluster), (DualCluster, Cluster), (DualCluster, DualStandalone)] {
            assert!(judged(from, to, diverged).is_err(), "{from} to {to}");
        }
        assert!(judged(DualStandalone, Standalone, diverged).is_ok());
    }

    #[test]
    fn force_overrides_for_the_named_route_only() {
        let flip =
            |id: &str| Flip { route: RouteName::Provider(id.into()), from: Phase::Standalone, to: Phase::Cluster };
        let facts = |_: &RouteName| RouteFacts::default();
        let forced = |route: &RouteName| route.to_string() == "1";
        assert!(judge(&[flip("1")], facts, forced).is_ok());
        assert!(judge(&[flip("1"), flip("2")], facts, forced).is_err());
    }
}
