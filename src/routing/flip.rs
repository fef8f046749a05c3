//! Which flips the facts allow, else why not. Pure.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::routing::piece::{Piece, pieces};
use crate::routing::{Coverage, Phase, Route, RouteName, Table};

/// Keys going from one phase to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flip {
    /// The line, or the part of it that flips.
    pub route: RouteName,
    /// The line that covers it before, and the one that covers it after.
    pub before: RouteName,
    pub after: RouteName,
    pub from: Phase,
    pub to: Phase,
}

impl Flip {
    /// A flip of a whole line.
    pub fn of(route: RouteName, from: Phase, to: Phase) -> Self {
        Self { before: route.clone(), after: route.clone(), route, from, to }
    }

    /// Whether the route, or a line that covers it, is one of these.
    fn is_one_of(&self, routes: impl Fn(&RouteName) -> bool) -> bool {
        [&self.route, &self.before, &self.after].into_iter().any(routes)
    }
}

/// What keeps its phase but joins a line of which the leader may lack keys: requests that went straight to the leader would
/// meet such as bring the same key over first. Closed like a flip, and judged by nobody.
pub fn unlearnt(old: &Table, new: &Table) -> Vec<Flip> {
    let joins = |piece: &Piece<'_, '_>| {
        let is_led_alone = |route: &Route| route.coverage() == Coverage::StandaloneOnly;
        piece.before.phase == Phase::DualCluster
            && piece.after.phase == Phase::DualCluster
            && !is_led_alone(piece.before)
            && is_led_alone(piece.after)
    };
    flips_of(pieces(old, new).filter(joins))
}

/// What is known of a route when a flip of it is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteFacts {
    /// Where its phase is a dual one.
    pub coverage: Option<Coverage>,
    pub divergence: u64,
    pub in_doubt: bool,
    /// No key of it is on either store.
    pub untouched: bool,
}

impl From<Piece<'_, '_>> for Flip {
    fn from(piece: Piece<'_, '_>) -> Self {
        let Piece { before, after, .. } = piece;
        let (route, from, to) = (piece.name().clone(), before.phase, after.phase);
        Self { route, before: before.name.clone(), after: after.name.clone(), from, to }
    }
}

/// By the names of what flips.
fn flips_of<'o, 'n>(pieces: impl Iterator<Item = Piece<'o, 'n>>) -> Vec<Flip> {
    let mut flips: Vec<Flip> = pieces.map(Flip::from).collect();
    flips.sort_by(|one, other| one.route.cmp(&other.route));
    flips
}

/// Why a flip is refused; the text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error(
        "only neighbouring phases flip (standalone, dual-standalone, dual-cluster, cluster), unless no key of the route is there yet; go to `{next}` first"
    )]
    NotNeighbours { next: Phase },
    #[error(
        "{keys} keys may differ between the stores; they are repaired by themselves when both stores answer (see `cutover status`), or run `cutover verify {route} --repair`"
    )]
    Divergence { keys: u64, route: RouteName },
    #[error(
        "the route is in doubt since an unclean stop, a store that was restarted or replaced, a script that writes what it does not declare, or an earlier stay on the cluster; wait for the backfill that runs (`cutover status`), or run `cutover backfill {route}`"
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

/// What differs in its phase between two tables, also where a line appears, vanishes or changes its ends.
pub fn flips(old: &Table, new: &Table) -> Vec<Flip> {
    flips_of(pieces(old, new).filter(|piece| piece.before.phase != piece.after.phase))
}

/// What a gate closes for flips.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closing {
    /// [`Plan::route_hash`](crate::routing::Plan) or `line_hash`, under either table.
    pub hashes: HashSet<u64>,
    /// Whether requests of the routes were counted in under hashes that are not named.
    pub is_many: bool,
}

/// What has to be closed for these flips and for what is [`unlearnt`].
pub fn closing<'f>(flips: impl IntoIterator<Item = &'f Flip>) -> Closing {
    let mut closing = Closing::default();
    for flip in flips {
        closing.hashes.insert(flip.route.route_hash());
        // An id is known by its own hash, whichever line covers it; all else by its line's.
        if !matches!(flip.route, RouteName::Provider(_)) {
            closing.hashes.extend([flip.before.route_hash(), flip.after.route_hash()]);
        }
        closing.is_many |= matches!(flip.route, RouteName::Range(..) | RouteName::NewProviders | RouteName::Share(_));
    }
    closing
}

/// A line of the new table that would bring together keys of which only the standalone, and keys of which only the cluster
/// is known to have all: one of the two would be looked for, and brought over, on the wrong store.
pub fn mixed(old: &Table, new: &Table) -> Option<String> {
    let mut lines: BTreeMap<&RouteName, [Option<RouteName>; 2]> = BTreeMap::new();
    for piece in pieces(old, new).filter(|piece| piece.after.phase.is_dual()) {
        let [standalone, cluster] = lines.entry(&piece.after.name).or_default();
        match piece.before.coverage() {
            Coverage::StandaloneOnly => standalone.get_or_insert_with(|| piece.name().clone()),
            Coverage::ClusterOnly => cluster.get_or_insert_with(|| piece.name().clone()),
            Coverage::Both => continue,
        };
    }
    lines.into_iter().find_map(|(line, kinds)| match kinds {
        [Some(standalone), Some(cluster)] => Some(format!(
            "route {line} would join {standalone}, of which the cluster may lack keys, with {cluster}, of which the standalone may; give one of them a line of its own until both are backfilled"
        )),
        _ => None,
    })
}

/// Flips past a neighbour, from one store alone to where the other one leads or is written too: allowed for what has no key
/// yet, by the lines before and after.
#[derive(Clone, Debug)]
pub struct Jumps {
    old: Arc<Table>,
    new: Arc<Table>,
    flips: Vec<Flip>,
}

impl Jumps {
    /// Those of the flips between two tables that are not forced.
    pub fn of(old: &Arc<Table>, new: &Arc<Table>, flips: &[Flip], forced: impl Fn(&RouteName) -> bool) -> Self {
        let is_jump =
            |flip: &&Flip| !flip.from.is_dual() && !flip.from.is_neighbour(flip.to) && !flip.is_one_of(&forced);
        Self { old: old.clone(), new: new.clone(), flips: flips.iter().filter(is_jump).cloned().collect() }
    }

    /// The flips.
    pub fn flips(&self) -> &[Flip] {
        &self.flips
    }

    /// Which of them a key would make.
    pub fn flip_of(&self, name: &[u8]) -> Option<&Flip> {
        let (before, after) = (&self.old.route_of(name).0.name, &self.new.route_of(name).0.name);
        self.flips.iter().find(|flip| (&flip.before, &flip.after) == (before, after))
    }

    /// The table by which keys on the cluster are named.
    pub fn table(&self) -> &Table {
        &self.new
    }
}

/// Judges them; a table is adopted only if all are allowed. `forced` overrides a refusal for a route, or for all that its
/// line, before or after, covers.
pub fn judge(
    flips: &[Flip],
    facts: impl Fn(&Flip) -> RouteFacts,
    forced: impl Fn(&RouteName) -> bool,
) -> Result<(), Vec<RefusedFlip>> {
    let refuse = |flip: &Flip| {
        let reason = reason(flip, facts(flip))?;
        (!flip.is_one_of(&forced)).then(|| RefusedFlip { flip: flip.clone(), reason })
    };
    let refused: Vec<_> = flips.iter().filter_map(refuse).collect();
    if refused.is_empty() { Ok(()) } else { Err(refused) }
}

fn reason(flip: &Flip, facts: RouteFacts) -> Option<Reason> {
    let route = || flip.before.clone();
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
        let flip = Flip::of(RouteName::Provider("42".into()), from, to);
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
    fn what_has_no_key_yet_goes_anywhere_from_one_store_alone() {
        let untouched = RouteFacts { untouched: true, ..RouteFacts::default() };
        assert!(judged(Phase::Standalone, Phase::Cluster, untouched).is_ok());
        let old = Arc::new(table(&[(100, 149, Phase::DualCluster)], None));
        let new = Arc::new(table(&[(100, 149, Phase::Standalone), (200, 299, Phase::Cluster)], Some(&old)));
        let jumps = Jumps::of(&old, &new, &flips(&old, &new), |_| false);
        let names = |jumps: &Jumps| jumps.flips().iter().map(|flip| flip.route.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&jumps), ["200..299"], "a store that is written too may have keys on their way");
        assert_eq!(jumps.flip_of(b"provider:250:a").map(|flip| flip.to), Some(Phase::Cluster));
        assert_eq!(
            [jumps.flip_of(b"provider:120:a"), jumps.flip_of(b"provider:300:a"), jumps.flip_of(b"a")],
            [None; 3]
        );
        let forced = Jumps::of(&old, &new, &flips(&old, &new), |route| *route == RouteName::Range(200, 299));
        assert!(forced.flips().is_empty());
    }

    #[test]
    fn force_overrides_for_the_named_route_only() {
        let flip = |id: &str| Flip::of(RouteName::Provider(id.into()), Phase::Standalone, Phase::Cluster);
        let facts = |_: &Flip| RouteFacts::default();
        let forced = |route: &RouteName| route.to_string() == "1";
        assert!(judge(&[flip("1")], facts, forced).is_ok());
        assert!(judge(&[flip("1"), flip("2")], facts, forced).is_err());
    }

    fn table(ranges: &[(u64, u64, Phase)], previous: Option<&Table>) -> Table {
        let spec = crate::routing::RoutingSpec { ranges: ranges.to_vec(), ..crate::routing::sample_spec() };
        Table::build(&spec, 1, previous)
    }

    #[test]
    fn a_share_that_grows_flips_those_that_it_takes_and_a_range_flips_those_of_each_share() {
        let table = |share: &[(u8, Phase)], ranges: &[(u64, u64, Phase)], previous: Option<&Table>| {
            let (share, ranges) = (share.to_vec(), ranges.to_vec());
            Table::build(&crate::routing::RoutingSpec { share, ranges, ..crate::routing::sample_spec() }, 1, previous)
        };
        let texts = |old: &Table, new: &Table| -> Vec<String> {
            flips(old, new)
                .iter()
                .map(|flip| format!("{} {} {} {}", flip.route, flip.before, flip.from, flip.to))
                .collect()
        };
        let none = table(&[], &[], None);
        let small = table(&[(0, Phase::DualStandalone)], &[], Some(&none));
        assert_eq!(texts(&none, &small), ["share_0 new_providers standalone dual-standalone"]);
        let grown = table(&[(0, Phase::DualCluster), (1, Phase::DualStandalone)], &[], Some(&small));
        assert_eq!(
            texts(&small, &grown),
            ["share_0 share_0 dual-standalone dual-cluster", "share_1 new_providers standalone dual-standalone"]
        );
        // Ids without a line are spread over all shares, so a range that takes them takes from each.
        let ranged =
            table(&[(0, Phase::DualCluster), (1, Phase::DualStandalone)], &[(1, 9, Phase::Standalone)], Some(&grown));
        assert_eq!(
            texts(&grown, &ranged),
            ["1..9 share_0 dual-cluster standalone", "1..9 share_1 dual-standalone standalone"]
        );
        assert_eq!(texts(&ranged, &grown).len(), 2);
        // A share that leaves, and one that is all and whose place is taken by the default.
        assert_eq!(texts(&small, &none), ["share_0 share_0 dual-standalone standalone"]);
        let all: Vec<(u8, Phase)> = (0..100).map(|part| (part, Phase::Cluster)).collect();
        let mut spec = crate::routing::RoutingSpec { share: all, ..crate::routing::sample_spec() };
        let all = Table::build(&spec, 1, None);
        (spec.share, spec.new_providers) = (Vec::new(), Phase::Cluster);
        assert_eq!(texts(&all, &Table::build(&spec, 2, Some(&all))), [""; 0]);
        assert!(closing(&flips(&none, &small)).is_many);
    }

    #[test]
    fn a_range_that_becomes_longer_or_shorter_flips_what_it_takes_and_what_it_leaves() {
        let texts = |old: &Table, new: &Table| -> Vec<String> {
            flips(old, new).iter().map(|flip| format!("{} {} {}", flip.route, flip.from, flip.to)).collect()
        };
        let short = table(&[(100, 199, Phase::Cluster)], None);
        let long = table(&[(100, 299, Phase::Cluster)], Some(&short));
        assert_eq!(texts(&short, &long), ["200..299 standalone cluster"]);
        assert_eq!(texts(&long, &short), ["200..299 cluster standalone"]);
        assert!(judge(&flips(&short, &long), |_| RouteFacts::default(), |_| false).is_err());
    }

    #[test]
    fn what_flips_is_closed_under_both_tables() {
        let old = table(&[], None);
        let new = table(&[(100, 199, Phase::DualStandalone)], Some(&old));
        let closing = closing(&flips(&old, &new));
        for table in [&old, &new] {
            assert!(closing.hashes.contains(&crate::routing::Plan::of(table, 0, b"provider:160:a").line_hash));
        }
        assert!(closing.is_many);
        let one = super::closing(&[Flip::of(RouteName::Provider("42".into()), Phase::Cluster, Phase::DualCluster)]);
        assert_eq!((one.hashes.len(), one.is_many), (1, false), "its neighbours go on");
    }

    #[test]
    fn a_line_that_joins_one_of_which_the_leader_may_lack_keys_is_closed() {
        let old = table(&[(100, 149, Phase::DualCluster), (150, 199, Phase::DualCluster)], None);
        let joined = |old: &Table| table(&[(100, 199, Phase::DualCluster)], Some(old));
        assert_eq!(unlearnt(&old, &joined(&old)), [], "neither was known");
        old.provider_route(b"170").dual.as_ref().unwrap().set_coverage(Coverage::Both);
        let unlearnt = unlearnt(&old, &joined(&old));
        assert_eq!(unlearnt.iter().map(|flip| flip.route.to_string()).collect::<Vec<_>>(), ["150..199"]);
        assert!(flips(&old, &joined(&old)).is_empty());
    }

    #[test]
    fn keys_that_only_one_store_has_are_not_joined_with_keys_that_only_the_other_has() {
        let old = table(&[(100, 149, Phase::Cluster), (150, 199, Phase::DualCluster)], None);
        let joined = table(&[(100, 199, Phase::DualCluster)], Some(&old));
        assert!(mixed(&old, &joined).unwrap().contains("150..199, of which the cluster may lack keys, with 100..149"));
        old.provider_route(b"170").dual.as_ref().unwrap().set_coverage(Coverage::Both);
        assert_eq!(mixed(&old, &joined), None);
        assert_eq!(mixed(&old, &old), None);
    }
}
