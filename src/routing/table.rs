//! The adopted routes with their phases: an immutable snapshot with a version.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};

use foldhash::fast::FixedState;
use serde::{Deserialize, Serialize};

use crate::routing::piece::{Piece, pieces};
use crate::routing::{Coverage, Databases, Patterns, Phase, Side};

/// What names a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteName {
    Provider(String),
    /// Numeric ids, both ends included.
    Range(u64, u64),
    /// Providers that no line names.
    NewProviders,
    /// One hundredth of them, by the hash of the id, where [`RoutingSpec::share`] sets it apart.
    Share(u8),
    Prefix(String),
    /// Keys without a provider.
    OtherKeys,
}

/// Names of routes as people read them: numbers and ranges by their value, the rest behind them.
pub fn in_order(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = names.into_iter().collect();
    let number = |name: &str| name.split("..").next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(u64::MAX);
    names.sort_by_cached_key(|name| (number(name), name.clone()));
    names
}

impl RouteName {
    /// The hash under which requests of the route are counted in; the same in every table and every process.
    pub fn route_hash(&self) -> u64 {
        match self {
            Self::Provider(id) => hash_of(b"provider", id.as_bytes()),
            Self::Prefix(prefix) => hash_of(b"prefix", prefix.as_bytes()),
            other => hash_of(b"line", other.to_string().as_bytes()),
        }
    }
}

impl RouteName {
    /// Whether some key may belong to both, under one table or another.
    pub fn may_share_keys(&self, other: &Self) -> bool {
        let is_provider =
            |name: &Self| matches!(name, Self::Provider(_) | Self::Range(..) | Self::NewProviders | Self::Share(_));
        match (self, other) {
            (Self::Share(one), Self::Share(other)) => one == other,
            (Self::Provider(id), Self::Share(share)) | (Self::Share(share), Self::Provider(id)) => {
                share_of(id.as_bytes()) == *share
            }
            (Self::Provider(one), Self::Provider(other)) => one == other,
            (Self::Range(first, last), Self::Range(other_first, other_last)) => {
                first <= other_last && other_first <= last
            }
            (Self::Provider(id), Self::Range(first, last)) | (Self::Range(first, last), Self::Provider(id)) => {
                id.parse().is_ok_and(|id: u64| (*first..=*last).contains(&id))
            }
            (Self::Prefix(one), Self::Prefix(other)) => one.starts_with(other) || other.starts_with(one),
            // What the rest is depends on the other lines.
            (one, other) => is_provider(one) == is_provider(other),
        }
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Provider(id) => out.write_str(id),
            Self::Range(first, last) => write!(out, "{first}..{last}"),
            Self::NewProviders => out.write_str("new_providers"),
            Self::Share(share) => write!(out, "share_{share}"),
            Self::Prefix(prefix) => out.write_str(prefix),
            Self::OtherKeys => out.write_str("other_keys"),
        }
    }
}

/// Into how many parts the providers without a line are divided, so that a part is one in a hundred.
pub const SHARES: u8 = 100;

/// The part that a provider belongs to: the same in every version of the program, for the state file names parts.
pub fn share_of(id: &[u8]) -> u8 {
    (crc32fast::hash(id) % u32::from(SHARES)) as u8
}

fn hash_of(kind: &[u8], name: &[u8]) -> u64 {
    FixedState::with_seed(7).hash_one((kind, name))
}

/// What is known of the two stores of a route in a dual phase. Shared by all workers, jobs and the admin side; each value
/// stands for itself, so relaxed ordering is enough.
#[derive(Debug)]
pub struct DualState {
    coverage: AtomicU8,
    in_doubt: AtomicBool,
    divergence: AtomicI64,
    generation: AtomicU32,
    /// The last generation of any route of this run: none is given twice, so that a lane that remembers a key of an earlier
    /// stay in a dual phase knows nothing of this one.
    generations: Arc<AtomicU32>,
    brought_over_at: AtomicU32,
    /// Reads that were repeated on the follower, and those that differed there.
    shadows: [AtomicU64; 2],
}

impl DualState {
    /// The state with which a dual phase begins.
    fn new(coverage: Coverage, generations: &Arc<AtomicU32>) -> Self {
        Self {
            coverage: AtomicU8::new(coverage as u8),
            in_doubt: AtomicBool::new(false),
            divergence: AtomicI64::new(0),
            generation: AtomicU32::new(generations.fetch_add(1, Ordering::Relaxed) + 1),
            generations: generations.clone(),
            brought_over_at: AtomicU32::new(0),
            shadows: Default::default(),
        }
    }

    /// The state of a line that takes over the keys of others, or of a line that begins.
    fn heir(past: &[&Route], generations: &Arc<AtomicU32>) -> Self {
        let coverages = || past.iter().map(|before| before.coverage());
        let coverage = coverages().reduce(Coverage::least).unwrap_or(Coverage::StandaloneOnly);
        let own = Self::new(coverage, generations);
        let duals = || past.iter().filter_map(|before| before.dual.as_ref());
        own.brought_over_at.store(duals().map(|dual| dual.brought_over_at()).max().unwrap_or(0), Ordering::Relaxed);
        if duals().any(|dual| dual.is_in_doubt() || dual.divergence() > 0) {
            own.set_in_doubt(true);
        }
        own
    }

    /// What the stores are known to hold.
    pub fn coverage(&self) -> Coverage {
        match self.coverage.load(Ordering::Relaxed) {
            0 => Coverage::StandaloneOnly,
            1 => Coverage::ClusterOnly,
            _ => Coverage::Both,
        }
    }

    /// Sets it; `Both` only after a whole walk without a failure.
    pub fn set_coverage(&self, coverage: Coverage) {
        self.coverage.store(coverage as u8, Ordering::Relaxed);
    }

    /// The [`Table::knowledge`] with which the last key was brought over to a cluster that leads; 0: it led complete from
    /// the beginning, or lacks keys still.
    pub fn brought_over_at(&self) -> u32 {
        self.brought_over_at.load(Ordering::Acquire)
    }

    /// Where the cluster leads: whether a key may be on its way to it from the standalone. Also where a walk has just found the
    /// last one, because what was fetched before arrives after.
    pub fn may_be_fetching(&self) -> bool {
        self.coverage() == Coverage::StandaloneOnly || self.brought_over_at() > 0
    }

    /// Whether any key of the route may differ, beyond those that are counted one by one.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::Relaxed)
    }

    /// Doubt also ends the trust in every key that was known to be whole.
    pub fn set_in_doubt(&self, in_doubt: bool) {
        if in_doubt {
            self.generation.store(self.generations.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        self.in_doubt.store(in_doubt, Ordering::Relaxed);
    }

    /// Keys known or feared to differ.
    pub fn divergence(&self) -> u64 {
        self.divergence.load(Ordering::Relaxed).max(0) as u64
    }

    /// Counts keys in or out.
    pub fn add_divergence(&self, by: i64) {
        self.divergence.fetch_add(by, Ordering::Relaxed);
    }

    /// Counts a read that was repeated on the follower.
    pub fn note_shadow(&self, differs: bool) {
        self.shadows[0].fetch_add(1, Ordering::Relaxed);
        self.shadows[1].fetch_add(u64::from(differs), Ordering::Relaxed);
    }

    /// Reads that were repeated on the follower since the phase began in this run, and those that differed there.
    pub fn shadows(&self) -> (u64, u64) {
        (self.shadows[0].load(Ordering::Relaxed), self.shadows[1].load(Ordering::Relaxed))
    }

    /// Another one when what was known of single keys counts no longer.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Whether both stores are known to hold every key.
    pub fn is_synced(&self) -> bool {
        self.coverage() == Coverage::Both && !self.is_in_doubt()
    }
}

/// One route of a table.
#[derive(Clone, Debug)]
pub struct Route {
    pub name: RouteName,
    pub phase: Phase,
    /// Version of the table with which the phase began.
    pub since: u64,
    /// Where the phase is a dual one.
    pub dual: Option<Arc<DualState>>,
    /// [`RouteName::route_hash`] of `name`.
    pub hash: u64,
}

impl Route {
    /// What the stores are known to hold of it.
    pub fn coverage(&self) -> Coverage {
        match (&self.dual, self.phase.leader()) {
            (Some(dual), _) => dual.coverage(),
            (None, Side::Standalone) => Coverage::StandaloneOnly,
            (None, Side::Cluster) => Coverage::ClusterOnly,
        }
    }
}

/// When a write is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ack {
    #[default]
    Leader,
    Both,
}

/// What keys are called on the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterKeys {
    #[default]
    Same,
    Tagged,
}

/// What a table is built from: the routing part of a configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingSpec {
    pub keys: Patterns,
    pub new_providers: Phase,
    pub other_keys: Phase,
    pub pubsub: Phase,
    pub ack: Ack,
    pub cluster_keys: ClusterKeys,
    pub databases: Databases,
    pub prefixes: Vec<(String, Phase)>,
    pub providers: Vec<(String, Phase)>,
    pub ranges: Vec<(u64, u64, Phase)>,
    /// Parts of the providers without a line that have a phase of their own.
    pub share: Vec<(u8, Phase)>,
    /// Routes whose flips are not judged.
    pub force: Vec<String>,
}

impl RoutingSpec {
    /// Whether the file overrides the judgement for this route; `share` stands for all parts of it.
    pub fn is_forced(&self, route: &RouteName) -> bool {
        let name = route.to_string();
        let is_part = matches!(route, RouteName::Share(_));
        self.force.iter().any(|forced| *forced == name || (is_part && forced == "share"))
    }
}

/// See the module. A look-up costs one hash of the provider's id, however many routes there are.
#[derive(Debug)]
pub struct Table {
    version: u64,
    patterns: Patterns,
    routes: Vec<Route>,
    /// Where in `routes` the lines of ids begin, which come last.
    first_id: usize,
    exact: HashMap<Box<[u8]>, u32, foldhash::fast::RandomState>,
    /// First id, last id, route; sorted.
    ranges: Vec<(u64, u64, u32)>,
    /// The route of each part of the providers without a line; empty where all go by the default.
    shares: Vec<u32>,
    /// Longest first.
    prefixes: Vec<(Box<[u8]>, u32)>,
    pubsub: Phase,
    ack: Ack,
    cluster_keys: ClusterKeys,
    databases: Databases,
    is_all_standalone: bool,
    /// Whether some route is led by the cluster, and whether some route may have keys on the standalone.
    is_cluster_read: bool,
    is_standalone_read: bool,
    /// Shared by all tables of a run, both of them.
    knowledge: Arc<AtomicU32>,
    generations: Arc<AtomicU32>,
}

/// Places of the two routes that every table has.
const NEW_PROVIDERS: usize = 0;
const OTHER_KEYS: usize = 1;

impl Table {
    /// Builds a table. Routes that stay dual keep what is known of them from `previous`; a line that takes keys over from
    /// others is known to hold what all of these were.
    pub fn build(spec: &RoutingSpec, version: u64, previous: Option<&Table>) -> Self {
        let mut table = Self {
            version,
            patterns: spec.keys.clone(),
            routes: Vec::with_capacity(spec.providers.len() + 8),
            first_id: 0,
            exact: HashMap::with_capacity_and_hasher(spec.providers.len(), foldhash::fast::RandomState::default()),
            ranges: Vec::new(),
            shares: Vec::new(),
            prefixes: Vec::new(),
            pubsub: spec.pubsub,
            ack: spec.ack,
            cluster_keys: spec.cluster_keys,
            databases: spec.databases.clone(),
            is_all_standalone: false,
            is_cluster_read: false,
            is_standalone_read: false,
            knowledge: previous.map_or_else(Arc::default, |table| table.knowledge.clone()),
            generations: previous.map_or_else(Arc::default, |table| table.generations.clone()),
        };
        table.add(RouteName::NewProviders, spec.new_providers);
        table.add(RouteName::OtherKeys, spec.other_keys);
        for (prefix, phase) in &spec.prefixes {
            let index = table.add(RouteName::Prefix(prefix.clone()), *phase);
            table.prefixes.push((prefix.as_bytes().into(), index));
        }
        table.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        for (first, last, phase) in &spec.ranges {
            let index = table.add(RouteName::Range(*first, *last), *phase);
            table.ranges.push((*first, *last, index));
        }
        table.ranges.sort_unstable();
        if !spec.share.is_empty() {
            table.shares = vec![NEW_PROVIDERS as u32; usize::from(SHARES)];
        }
        for (share, phase) in spec.share.iter().filter(|(share, _)| *share < SHARES) {
            table.shares[usize::from(*share)] = table.add(RouteName::Share(*share), *phase);
        }
        table.first_id = table.routes.len();
        for (id, phase) in &spec.providers {
            let index = table.add(RouteName::Provider(id.clone()), *phase);
            table.exact.insert(id.as_bytes().into(), index);
        }
        table.inherit(previous);
        table.is_cluster_read = table.routes.iter().any(|route| route.phase.leader() == Side::Cluster);
        table.is_standalone_read = table.routes.iter().any(|route| route.phase != Phase::Cluster);
        table.is_all_standalone = table.routes.iter().all(|route| route.phase == Phase::Standalone);
        table
    }

    fn add(&mut self, name: RouteName, phase: Phase) -> u32 {
        let hash = name.route_hash();
        self.routes.push(Route { name, phase, since: self.version, dual: None, hash });
        (self.routes.len() - 1) as u32
    }

    /// Gives each line what is known of its keys: of those that took them, the least.
    fn inherit(&mut self, previous: Option<&Table>) {
        let mut pasts: HashMap<RouteName, Vec<&Route>> = HashMap::new();
        // The line of one provider is a piece, and has one past.
        let is_one = |route: &Route| matches!(route.name, RouteName::Provider(_));
        for Piece { before, after, .. } in previous.iter().flat_map(|previous| pieces(previous, self)) {
            if !is_one(after) {
                pasts.entry(after.name.clone()).or_default().push(before);
            }
        }
        for past in pasts.values_mut() {
            past.sort_unstable_by_key(|route| std::ptr::from_ref(*route));
            past.dedup_by(|one, other| std::ptr::eq(*one, *other));
        }
        let mut in_previous = previous.map(Self::along);
        for route in &mut self.routes {
            let own = match &mut in_previous {
                Some(previous) if matches!(route.name, RouteName::Provider(_)) => previous.covering(&route.name),
                _ => None,
            };
            let past = own.as_ref().map(std::slice::from_ref);
            let past = past.or_else(|| pasts.get(&route.name).map(Vec::as_slice)).unwrap_or_default();
            if !past.is_empty() && past.iter().all(|before| before.phase == route.phase) {
                route.since = past.iter().map(|before| before.since).max().unwrap_or(self.version);
            }
            route.dual = route.phase.is_dual().then(|| match past {
                [Route { name, dual: Some(dual), .. }] if *name == route.name => dual.clone(),
                _ => Arc::new(DualState::heir(past, &self.generations)),
            });
        }
    }

    /// The table's number; grows with each adoption.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The route of a key, and the hash under which its requests are counted in (of the provider itself, also where a
    /// range or a default covers it).
    #[inline]
    pub fn route_of(&self, key: &[u8]) -> (&Route, u64) {
        match self.patterns.provider_of(key) {
            Some(id) => (self.provider_route(id), hash_of(b"provider", id)),
            None => {
                let prefix = self.prefixes.iter().find(|(prefix, _)| key.starts_with(prefix));
                let route = &self.routes[prefix.map_or(OTHER_KEYS, |(_, index)| *index as usize)];
                (route, route.hash)
            }
        }
    }

    /// The provider's id in a key.
    pub fn provider_of<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        self.patterns.provider_of(key)
    }

    /// The route of a provider: its own line, else its range's, else its part's, else the default for new ones.
    pub fn provider_route(&self, id: &[u8]) -> &Route {
        match self.exact.get(id) {
            Some(index) => &self.routes[*index as usize],
            None => self.route_without_line(id),
        }
    }

    fn route_without_line(&self, id: &[u8]) -> &Route {
        let in_range = || self.range_of(std::str::from_utf8(id).ok()?.parse().ok()?);
        if !self.ranges.is_empty()
            && let Some(route) = in_range()
        {
            return route;
        }
        match self.shares.is_empty() {
            true => &self.routes[NEW_PROVIDERS],
            false => self.share_route(share_of(id)),
        }
    }

    /// The range around a number.
    pub(super) fn range_of(&self, number: u64) -> Option<&Route> {
        let after = self.ranges.partition_point(|(first, ..)| *first <= number);
        let (_, last, index) = self.ranges.get(after.checked_sub(1)?)?;
        (number <= *last).then(|| &self.routes[*index as usize])
    }

    fn share_route(&self, share: u8) -> &Route {
        let index = self.shares.get(usize::from(share)).map_or(NEW_PROVIDERS, |index| *index as usize);
        &self.routes[index]
    }

    /// The lines of ids that neither a line of their own nor a range covers: the parts that are set apart, and the default
    /// where it is left any.
    pub(super) fn defaults(&self) -> Vec<&Route> {
        let mut places = self.shares.clone();
        places.sort_unstable();
        places.dedup();
        match places.as_slice() {
            [] => vec![&self.routes[NEW_PROVIDERS]],
            places => places.iter().map(|place| &self.routes[*place as usize]).collect(),
        }
    }

    /// All routes: the two defaults, prefixes, ranges, parts of the share, providers.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The lines of ids.
    pub(super) fn ids(&self) -> &[Route] {
        &self.routes[self.first_id..]
    }

    /// All other lines.
    pub(super) fn others(&self) -> &[Route] {
        &self.routes[..self.first_id]
    }

    /// Looks up one line after the other of another table.
    pub(super) fn along(&self) -> Along<'_> {
        Along { table: self, next: 0 }
    }

    /// The route of this very name.
    pub fn find(&self, name: &RouteName) -> Option<&Route> {
        self.covering(name).filter(|route| route.name == *name)
    }

    /// The route that covers what `name` names: its own line, or the one whose keys it would take over; of a range, the one
    /// at its first end.
    pub fn covering(&self, name: &RouteName) -> Option<&Route> {
        match name {
            RouteName::Provider(id) => Some(self.provider_route(id.as_bytes())),
            RouteName::Range(first, _) => self.range_of(*first).or_else(|| self.routes.get(NEW_PROVIDERS)),
            RouteName::Share(share) => Some(self.share_route(*share)),
            RouteName::Prefix(prefix) => {
                let own = self.prefixes.iter().find(|(known, _)| prefix.as_bytes().starts_with(known));
                self.routes.get(own.map_or(OTHER_KEYS, |(_, index)| *index as usize))
            }
            RouteName::NewProviders => self.routes.get(NEW_PROVIDERS),
            RouteName::OtherKeys => self.routes.get(OTHER_KEYS),
        }
    }

    /// A number that grows when a route's coverage is found to be `Both`.
    pub fn knowledge(&self) -> u32 {
        self.knowledge.load(Ordering::Acquire)
    }

    /// Notes what a whole walk has found out about a route of this table. One caller at a time.
    pub fn set_coverage(&self, route: &Route, coverage: Coverage) {
        let Some(dual) = &route.dual else { return };
        let next = self.knowledge() + 1;
        if route.phase == Phase::DualCluster
            && dual.coverage() == Coverage::StandaloneOnly
            && coverage == Coverage::Both
        {
            dual.brought_over_at.store(next, Ordering::Release);
        }
        dual.set_coverage(coverage);
        self.knowledge.store(next, Ordering::Release);
    }

    /// The side that has every key of a route and all that was answered about it, for a reader that began when
    /// [`Table::knowledge`] was `since` and wants to find each key once.
    pub fn complete_side(&self, route: &Route, since: u32) -> Side {
        let Some(dual) = route.dual.as_ref().filter(|_| route.phase == Phase::DualCluster) else {
            return route.phase.leader();
        };
        // Before the cluster has every key, the standalone does: it gets every write before it is answered.
        let lacks_keys = dual.coverage() == Coverage::StandaloneOnly || dual.brought_over_at() > since;
        if lacks_keys { Side::Standalone } else { Side::Cluster }
    }

    /// How providers are found in keys.
    pub fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    /// The phase of pub/sub.
    pub fn pubsub(&self) -> Phase {
        self.pubsub
    }

    /// When a write is answered.
    pub fn ack(&self) -> Ack {
        self.ack
    }

    /// What keys are called on the cluster.
    pub fn cluster_keys(&self) -> ClusterKeys {
        self.cluster_keys
    }

    /// Which databases move, and what their keys are called on the cluster.
    #[inline]
    pub fn databases(&self) -> &Databases {
        &self.databases
    }

    /// Whether a walk over all keys has to look at a side: some route's keys are told from there.
    pub fn is_read(&self, side: Side) -> bool {
        match side {
            Side::Standalone => self.is_standalone_read,
            Side::Cluster => self.is_cluster_read,
        }
    }

    /// Whether every route is in phase `standalone`.
    pub fn all_standalone(&self) -> bool {
        self.is_all_standalone
    }
}

/// Two tables that were read from one file have most ids in the same order, and one that stands where it is looked for first
/// needs no search: a miss of the cache for each of a million.
pub(super) struct Along<'t> {
    table: &'t Table,
    /// Where in the lines of ids the next one is expected.
    next: usize,
}

impl<'t> Along<'t> {
    /// [`Table::covering`].
    pub(super) fn covering(&mut self, name: &RouteName) -> Option<&'t Route> {
        let RouteName::Provider(id) = name else { return self.table.covering(name) };
        let is_there = self.table.ids().get(self.next).is_some_and(|route| route.name == *name);
        if !is_there {
            let Some(index) = self.table.exact.get(id.as_bytes()) else {
                return Some(self.table.route_without_line(id.as_bytes()));
            };
            self.next = *index as usize - self.table.first_id;
        }
        self.next += 1;
        self.table.ids().get(self.next - 1)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::routing::Pattern;

    pub fn spec() -> RoutingSpec {
        RoutingSpec {
            keys: Patterns(vec![Pattern::parse("provider:{provider}:*").unwrap()]),
            new_providers: Phase::Standalone,
            other_keys: Phase::Standalone,
            pubsub: Phase::Standalone,
            ack: Ack::Leader,
            cluster_keys: ClusterKeys::Same,
            databases: Databases::default(),
            prefixes: vec![("asgi:".into(), Phase::Cluster)],
            providers: vec![("42".into(), Phase::DualStandalone), ("150".into(), Phase::Cluster)],
            ranges: vec![(100, 199, Phase::DualCluster)],
            share: Vec::new(),
            force: Vec::new(),
        }
    }

    #[test]
    fn an_exact_id_wins_over_a_range_and_a_range_over_the_default() {
        let table = Table::build(&spec(), 1, None);
        let phase = |key: &str| table.route_of(key.as_bytes()).0.phase;
        assert_eq!(phase("provider:42:a"), Phase::DualStandalone);
        assert_eq!(phase("provider:150:a"), Phase::Cluster);
        assert_eq!(phase("provider:199:a"), Phase::DualCluster);
        assert_eq!(phase("provider:200:a"), Phase::Standalone);
        assert_eq!(phase("asgi:x"), Phase::Cluster);
        assert_eq!(phase("x"), Phase::Standalone);
    }

    #[test]
    fn a_share_is_a_stable_part_of_the_providers_without_a_line() {
        let with = |share: Vec<(u8, Phase)>| Table::build(&RoutingSpec { share, ..spec() }, 1, None);
        let ids: Vec<String> = (1000..3000).map(|id: u32| id.to_string()).collect();
        let on_cluster = |table: &Table| -> Vec<&String> {
            ids.iter().filter(|id| table.provider_route(id.as_bytes()).phase == Phase::Cluster).collect()
        };
        let tenth = with((0..10).map(|share| (share, Phase::Cluster)).collect());
        let fifth = with((0..20).map(|share| (share, Phase::Cluster)).collect());
        let (few, more) = (on_cluster(&tenth), on_cluster(&fifth));
        assert!((150..250).contains(&few.len()) && (320..480).contains(&more.len()), "{} {}", few.len(), more.len());
        assert!(few.iter().all(|id| more.contains(id)), "who was in the smaller share is in the larger one");
        assert_eq!(tenth.provider_route(b"42").phase, Phase::DualStandalone, "a line of its own wins");
        assert_eq!(tenth.provider_route(b"110").phase, Phase::DualCluster, "a range wins");
        // What the state file names is the same for ever.
        assert_eq!([&b"42"[..], b"1000", b"acme"].map(share_of), SHARES_KNOWN);
    }

    #[test]
    fn each_part_of_a_share_has_knowledge_of_its_own_and_a_default_that_takes_it_in_has_the_least() {
        let dual = Phase::DualStandalone;
        let build = |parts: std::ops::Range<u8>, new_providers: Phase, previous: Option<&Table>| {
            let share = parts.map(|part| (part, dual)).collect();
            Table::build(&RoutingSpec { share, new_providers, ..spec() }, 1, previous)
        };
        let of = |table: &Table, part: u8| table.find(&RouteName::Share(part)).unwrap().dual.clone().unwrap();
        let small = build(0..1, Phase::Standalone, None);
        of(&small, 0).set_coverage(Coverage::Both);
        let grown = build(0..2, Phase::Standalone, Some(&small));
        assert_eq!([of(&grown, 0), of(&grown, 1)].map(|part| part.is_synced()), [true, false]);
        assert!(Arc::ptr_eq(&of(&small, 0), &of(&grown, 0)));
        let default = |table: &Table| table.find(&RouteName::NewProviders).unwrap().dual.clone().unwrap();
        assert!(!default(&build(0..0, dual, Some(&grown))).is_synced());
        let whole = build(0..100, Phase::Standalone, None);
        (0..100).for_each(|part| of(&whole, part).set_coverage(Coverage::Both));
        assert!(default(&build(0..0, dual, Some(&whole))).is_synced(), "all of its keys were known");
        let forced = RoutingSpec { force: vec!["share".into()], ..spec() };
        assert!(forced.is_forced(&RouteName::Share(7)) && !forced.is_forced(&RouteName::NewProviders));
    }

    /// CRC-32 of the ids, modulo 100.
    const SHARES_KNOWN: [u8; 3] = [88, 35, 14];

    #[test]
    fn what_is_known_of_a_dual_route_survives_the_next_table() {
        let first = Table::build(&spec(), 1, None);
        first.provider_route(b"42").dual.as_ref().unwrap().set_coverage(Coverage::Both);
        let mut next = spec();
        next.providers[0].1 = Phase::DualCluster;
        let second = Table::build(&next, 2, Some(&first));
        assert_eq!(second.provider_route(b"42").dual.as_ref().unwrap().coverage(), Coverage::Both);
    }

    #[test]
    fn a_line_that_takes_keys_over_is_known_to_hold_the_least_of_what_was() {
        let spec = |ranges: &[(u64, u64, Phase)], providers: &[(&str, Phase)]| RoutingSpec {
            ranges: ranges.to_vec(),
            providers: providers.iter().map(|(id, phase)| (id.to_string(), *phase)).collect(),
            ..spec()
        };
        let dual = Phase::DualStandalone;
        let first = Table::build(&spec(&[(100, 199, dual)], &[("250", dual)]), 1, None);
        let range = first.provider_route(b"150").dual.clone().unwrap();
        range.set_coverage(Coverage::Both);
        let of = |table: &Table, id: &str| table.provider_route(id.as_bytes()).dual.clone().unwrap();
        let longer = Table::build(&spec(&[(100, 299, dual)], &[("250", dual)]), 2, Some(&first));
        assert_eq!(of(&longer, "150").coverage(), Coverage::StandaloneOnly, "200 to 299 were never copied");
        let whole = Table::build(&spec(&[(100, 299, dual)], &[]), 2, Some(&first));
        assert_eq!(of(&whole, "150").coverage(), Coverage::StandaloneOnly);
        let shorter = Table::build(&spec(&[(100, 149, dual)], &[("250", dual)]), 2, Some(&first));
        assert!(of(&shorter, "120").is_synced());
        let named = Table::build(&spec(&[(100, 199, dual)], &[("150", dual), ("250", dual)]), 2, Some(&first));
        assert!(of(&named, "150").is_synced() && Arc::ptr_eq(&of(&named, "151"), &range));
        range.set_in_doubt(true);
        assert!(
            Table::build(&spec(&[(100, 149, dual)], &[]), 2, Some(&first))
                .provider_route(b"120")
                .dual
                .as_ref()
                .unwrap()
                .is_in_doubt()
        );
    }

    #[test]
    fn no_generation_is_given_twice_in_a_run() {
        let first = Table::build(&spec(), 1, None);
        let mut seen = std::collections::BTreeSet::new();
        let mut note = |table: &Table| {
            let dual = table.provider_route(b"42").dual.clone()?;
            assert!(seen.insert(dual.generation()));
            dual.set_in_doubt(true);
            assert!(seen.insert(dual.generation()));
            Some(())
        };
        note(&first);
        let mut away = spec();
        away.providers[0].1 = Phase::Standalone;
        let second = Table::build(&away, 2, Some(&first));
        note(&Table::build(&spec(), 3, Some(&second)));
        assert_eq!(seen.len(), 4);
    }
}
