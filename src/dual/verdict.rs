//! What is in the way of a table, and how it is told.

use crate::routing::flip::{self, Flip, Reason, RefusedFlip, RouteFacts};
use crate::routing::{ClusterKeys, Phase, RouteName, Table};

/// Why a table was not adopted: one text a refused flip, each naming the route and what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Refused(pub Vec<String>);

/// Why the running table stays.
pub(super) enum Unadopted {
    /// Flips of it are not allowed by what is known of their routes.
    Judged(Vec<RefusedFlip>),
    /// Something did not end, or could not be written.
    Refused(Refused),
}

impl Unadopted {
    /// Whether nothing else is in the way than what is repaired by itself: by what was judged, since it may be repaired by now.
    pub(super) fn may_pass(&self) -> bool {
        let is_divergence = |refused: &RefusedFlip| matches!(refused.reason, Reason::Divergence { .. });
        matches!(self, Self::Judged(refused) if refused.iter().all(is_divergence))
    }
}

impl From<Refused> for Unadopted {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Unadopted> for Refused {
    fn from(unadopted: Unadopted) -> Self {
        match unadopted {
            Unadopted::Judged(refused) => Self(told(&refused)),
            Unadopted::Refused(refused) => refused,
        }
    }
}

/// Judges flips by what is known of the running table, none of them for having no key.
pub fn judge(flips: &[Flip], old: &Table, forced: impl Fn(&RouteName) -> bool) -> Result<(), Refused> {
    flip::judge(flips, facts_of(old, &[]), forced).map_err(|refused| Refused(told(&refused)))
}

/// What is known of a route, by its own line or the one that covers it.
pub fn facts(table: &Table, route: &RouteName) -> RouteFacts {
    let dual = table.covering(route).and_then(|route| route.dual.clone());
    RouteFacts {
        coverage: dual.as_ref().map(|dual| dual.coverage()),
        divergence: dual.as_ref().map_or(0, |dual| dual.divergence()),
        in_doubt: dual.as_ref().is_some_and(|dual| dual.is_in_doubt()),
        ..RouteFacts::default()
    }
}

/// The facts by which flips are judged. `untouched`: those of which no key is there.
pub(super) fn facts_of(old: &Table, untouched: &[Flip]) -> impl Fn(&Flip) -> RouteFacts {
    |flip| RouteFacts { untouched: untouched.contains(flip), ..facts(old, &flip.before) }
}

/// Why a table cannot be adopted although no route flips: keys that are on the cluster would be looked for by other names.
pub(super) fn renames(old: &Table, new: &Table) -> Option<String> {
    if old.routes().iter().all(|route| route.phase == Phase::Standalone) {
        return None;
    }
    if old.cluster_keys() != new.cluster_keys() {
        return Some("cluster_keys cannot be changed while any route has keys on the cluster, where they would be looked for by other names; put it back, or first bring every route to phase standalone".into());
    }
    let (before, after) = (old.databases(), new.databases());
    if before.main != after.main {
        return Some(format!(
            "database {} is the one that moves, and any route has keys of it on the cluster; put it back into the standalone's URL, or first bring every route to phase standalone",
            before.main
        ));
    }
    if before.prefixes != after.prefixes {
        return Some("[databases] cannot be changed while any route has keys on the cluster: the keys of a database that is added are not there yet, and those of one that is removed or renamed would not be found; put it back, or first bring every route to phase standalone".into());
    }
    (old.cluster_keys() == ClusterKeys::Tagged && old.patterns() != new.patterns()).then(|| {
        "routing.keys cannot be changed with cluster_keys = \"tagged\" while any route has keys on the cluster: the provider that the patterns find in a key is part of its name there; put them back".into()
    })
}

/// A text each; parts of the share that are refused for the same reason have one together.
fn told(refused: &[RefusedFlip]) -> Vec<String> {
    let (parts, others): (Vec<_>, Vec<_>) =
        refused.iter().partition(|refused| matches!(refused.flip.route, RouteName::Share(_)));
    let mut alike: Vec<(&RefusedFlip, usize)> = Vec::new();
    let kind = |refused: &RefusedFlip| (refused.flip.from, refused.flip.to, std::mem::discriminant(&refused.reason));
    for part in parts {
        match alike.iter_mut().find(|(first, _)| kind(first) == kind(part)) {
            Some((_, more)) => *more += 1,
            None => alike.push((part, 0)),
        }
    }
    let of_parts = alike.into_iter().map(|(first, more)| match more {
        0 => first.to_string(),
        more => format!("{first} (and {more} more parts of the share)"),
    });
    others.into_iter().map(ToString::to_string).chain(of_parts).collect()
}

pub(super) fn unwritten(error: &std::io::Error) -> Refused {
    Refused(vec![format!(
        "the state file cannot be written ({error}), and a flip that a crash forgets could lose data; free the disk or mend the directory and save proxy.toml again"
    )])
}
