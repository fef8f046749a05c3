//! Who writes to the stores around the proxy. A key that somebody else changes on one store differs on the other, and no
//! lane knows of it.
//!
//! Now and then, while a route is dual, the nodes are asked three things:
//! - who is connected (CLIENT LIST, `connections`). A connection that is not the proxy's, not a replica and not a monitor,
//!   whose last command writes and ran since the last look, is a writer. One that only reads is left alone, and so is one in
//!   another database. What this does not see: a connection that came, wrote and went between two looks, or that read after
//!   it had written.
//! - how many commands that write they have run (INFO commandstats, `counts`), against what was sent to them. What exceeds
//!   that was sent on connections that nobody saw. Where something else may be the cause nothing is said.
//! - which keys were changed (notifications, `notices`), where a store's settings tell it; these are never changed. A key of
//!   a dual route that the proxy has not written lately was written by somebody else, or by a script that does not declare it.
//!
//! The first two know no key, so every dual route is in doubt from then on, until a backfill has gone through it with the
//! writer gone; what a notification names is one route, and that alone is in doubt.
//!
//! Another proxy is told apart by the number in its name, and reported as soon as it is connected. One that shares the lease
//! writes what it may; any other is a writer like all when it is seen writing.

mod connections;
mod counts;
mod notices;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::dual::{Message, Sent};
use crate::jobs::bypass::counts::{Counts, Node, Reading};
use crate::jobs::bypass::notices::Notices;
use crate::jobs::{Context, scan};
use crate::resp::reply::{self, Protocol};
use crate::routing::{RouteName, Side};
use crate::store::link::Endpoint;
use crate::store::{PrivateLink, client_list, private_link};

/// Writers that are named one by one; the others are counted.
const WRITERS_MAX: usize = 100;
/// How long the workers get to say what they have sent.
const PATIENCE: Duration = Duration::from_secs(2);
const ASK_INFO: &[u8] =
    b"*5\r\n$4\r\nINFO\r\n$6\r\nserver\r\n$11\r\nreplication\r\n$12\r\ncommandstats\r\n$8\r\nkeyspace\r\n";
const ASK_CLUSTER: &[u8] = b"*2\r\n$7\r\nCLUSTER\r\n$4\r\nINFO\r\n";

/// What a writer was found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FoundBy {
    /// CLIENT LIST shows it.
    Connection,
    /// A store has run more commands that write than it was sent.
    Count,
    /// A key of a dual route was changed.
    Notification,
}

/// Somebody that writes around the proxy. What is not known of him is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Writer {
    pub found_by: FoundBy,
    pub store: &'static str,
    /// Empty for the nodes of the cluster together.
    pub node: String,
    pub address: String,
    /// As it calls itself; often empty.
    pub name: String,
    /// The writing command that was seen last, as the server calls it; for a notification the event.
    pub command: String,
    /// Whose key was changed, and one of these keys.
    pub route: Option<String>,
    pub key: Option<String>,
    /// Commands or changes that the proxy did not send, as far as they were counted.
    pub writes: u64,
    /// Seconds since 1970.
    pub last_seen: u64,
    /// Looks that found it writing.
    pub looks: u64,
}

impl Writer {
    /// One of whom nothing more is known.
    fn new(found_by: FoundBy, side: Side) -> Self {
        Self {
            found_by,
            store: if side == Side::Standalone { "standalone" } else { "cluster" },
            node: String::new(),
            address: String::new(),
            name: String::new(),
            command: String::new(),
            route: None,
            key: None,
            writes: 0,
            last_seen: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            looks: 1,
        }
    }

    /// What tells it from others.
    fn place(&self) -> Place {
        let route = self.route.clone().unwrap_or_default();
        (self.found_by, [self.store.into(), self.node.clone(), self.address.clone(), route])
    }

    fn warn(&self) {
        let Self { store, node, address, name, command, route, writes, .. } = self;
        match self.found_by {
            FoundBy::Connection => tracing::warn!(
                store,
                node,
                address,
                name,
                command,
                "somebody writes to a store around the proxy: every dual route is in doubt until it has stopped and `cutover backfill --all` has gone through"
            ),
            FoundBy::Count => tracing::warn!(
                store,
                node,
                writes,
                "a store has run commands that write which the proxy did not send, on connections that no look has seen: every dual route is in doubt until whoever sends them has stopped and `cutover backfill --all` has gone through"
            ),
            FoundBy::Notification => tracing::warn!(
                store,
                node,
                route,
                command,
                writes,
                "keys of this route were changed on a store and not by the proxy: somebody writes around it, or a script changes keys that it does not declare; the route is in doubt until that has stopped and `cutover backfill` has gone through it (`cutover status` names a key)"
            ),
        }
    }
}

type Place = (FoundBy, [String; 4]);

/// What was found in this run. The lock guards the list, for an instant a look.
#[derive(Debug, Default)]
pub struct Bypass {
    writers: Mutex<BTreeMap<Place, Writer>>,
    /// Other proxies at the last look, by name, with the address from which they came.
    proxies: Mutex<BTreeMap<String, String>>,
    sightings: AtomicU64,
    /// By [`FoundBy`], what was counted.
    counted: [AtomicU64; 3],
    listening: AtomicU64,
}

impl Bypass {
    /// All writers, by what they were found by, store, node and address.
    pub fn writers(&self) -> Vec<Writer> {
        self.writers.lock().values().cloned().collect()
    }

    /// How many were found by that.
    pub fn found_by(&self, found_by: FoundBy) -> usize {
        self.writers.lock().keys().filter(|(by, _)| *by == found_by).count()
    }

    /// Commands or changes that were found by that, and that the proxy did not send.
    pub fn counted(&self, found_by: FoundBy) -> u64 {
        self.counted[found_by as usize].load(Ordering::Relaxed)
    }

    /// Nodes whose notifications are listened to.
    pub fn listening(&self) -> u64 {
        self.listening.load(Ordering::Relaxed)
    }

    /// Other proxies that are connected to a store, by name, with the address from which they came: those that share the lease,
    /// and those that do not.
    pub fn proxies(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let all = self.proxies.lock().clone();
        all.into_iter().partition(|(name, _)| private_link::companion_of(name).is_some())
    }

    /// How often a look found a writer.
    pub fn sightings(&self) -> u64 {
        self.sightings.load(Ordering::Relaxed)
    }

    /// True the first time.
    fn note(&self, writer: Writer) -> bool {
        self.sightings.fetch_add(1, Ordering::Relaxed);
        self.counted[writer.found_by as usize].fetch_add(writer.writes, Ordering::Relaxed);
        let mut writers = self.writers.lock();
        let place = writer.place();
        if let Some(known) = writers.get_mut(&place) {
            *known = Writer { looks: known.looks + 1, writes: known.writes + writer.writes, ..writer };
            return false;
        }
        if writers.len() < WRITERS_MAX {
            writers.insert(place, writer);
        }
        true
    }

    /// Notes which other proxies are connected, and says so of those that were not.
    fn note_proxies(&self, proxies: BTreeMap<String, String>) {
        let known = std::mem::replace(&mut *self.proxies.lock(), proxies.clone());
        for (name, address) in proxies.iter().filter(|(name, _)| !known.contains_key(*name)) {
            if private_link::companion_of(name).is_some() {
                tracing::info!(
                    name,
                    address,
                    "another cutover with this one's lease is connected to these stores: one of the two serves the dual routes, and the other one sends it their traffic"
                );
                continue;
            }
            tracing::error!(
                name,
                address,
                "another cutover is connected to these stores: two of them without a lease in common break the order of writes in dual phases; give both the same lease.name, or stop one of the two"
            );
        }
    }
}

/// Looks at the nodes, and listens to them, for as long as the program runs.
pub(super) async fn watch(context: Arc<Context>, every: Duration) {
    if every.is_zero() {
        return;
    }
    let notices = Arc::new(Notices::new(every));
    tokio::join!(look_on(&context, &notices, every), notices::listen(&context, &notices, every));
}

/// What stays from look to look.
#[derive(Default)]
struct Looks {
    counts: [Counts; 2],
    /// Looks since a connection was seen writing to a store.
    since_connection: [Option<u32>; 2],
    lost: u64,
}

async fn look_on(context: &Context, notices: &Notices, every: Duration) {
    let mut looks = Looks::default();
    loop {
        tokio::time::sleep(every).await;
        match context.table().routes().iter().any(|route| route.dual.is_some()) {
            true => looks.look(context, notices, every).await,
            false => looks.counts.iter_mut().for_each(Counts::begin_anew),
        }
    }
}

/// What a node was asked.
#[derive(Default)]
struct Told {
    list: Option<String>,
    node: Option<Node>,
}

impl Looks {
    async fn look(&mut self, context: &Context, notices: &Notices, every: Duration) {
        let before = sent(context).await;
        let map = context.slot_map.load_full();
        let primaries = map.primaries().iter().map(|address| (Side::Cluster, scan::node(context, address)));
        let (mut found, mut proxies) = (Vec::new(), BTreeMap::new());
        let mut nodes: [Option<BTreeMap<String, Node>>; 2] = [Some(BTreeMap::new()), Some(BTreeMap::new())];
        for (side, endpoint) in std::iter::once((Side::Standalone, context.standalone.clone())).chain(primaries) {
            let Told { list, node } = ask(side, &endpoint).await;
            let is_moving = |db| side == Side::Cluster || context.table().databases().is_moving(db);
            found.extend(list.iter().flat_map(|list| connections::writers(list, side, &endpoint, every, is_moving)));
            proxies.extend(list.iter().flat_map(|list| connections::other_proxies(list)));
            if list.as_ref().is_some_and(|list| connections::is_elsewhere(list, is_moving)) {
                self.counts[side as usize].note_other_databases();
            }
            // A node that does not answer is nobody's to write to; the links say that it is down.
            if list.is_none() {
                notices.note_unsteady();
            }
            match (node, &mut nodes[side as usize]) {
                (Some(node), Some(nodes)) if list.is_some() => drop(nodes.insert(endpoint.address.to_string(), node)),
                (_, nodes) => *nodes = None,
            }
        }
        let after = sent(context).await;
        let is_shared = !proxies.is_empty();
        context.bypass.note_proxies(proxies);
        for side in [Side::Standalone, Side::Cluster] {
            let is_seen = found.iter().any(|writer| *writer.store == *Writer::new(FoundBy::Connection, side).store);
            let since = &mut self.since_connection[side as usize];
            *since = if is_seen { Some(0) } else { since.map(|looks| looks + 1) };
        }
        match (before, after) {
            (Some(before), Some(after)) => {
                if after.lost != self.lost {
                    self.lost = after.lost;
                    notices.note_unsteady();
                }
                for (side, nodes) in [Side::Standalone, Side::Cluster].into_iter().zip(nodes) {
                    found.extend(self.count(context, notices, side, nodes, (before, after), is_shared));
                }
            }
            _ => {
                notices.note_unsteady();
                self.counts.iter_mut().for_each(Counts::begin_anew);
            }
        }
        let is_any = !found.is_empty();
        let noticed = notices.take();
        let routes: Vec<RouteName> = noticed.iter().map(|(route, _)| route.clone()).collect();
        for writer in found.into_iter().chain(noticed.into_iter().map(|(_, writer)| writer)) {
            let told = writer.clone();
            if context.bypass.note(writer) {
                told.warn();
            }
        }
        match is_any {
            true => context.adopter.doubt_all().await,
            false if !routes.is_empty() => context.adopter.doubt(&routes).await,
            false => {}
        }
    }

    /// Compares what a store has run with what it was sent.
    fn count(
        &mut self,
        context: &Context,
        notices: &Notices,
        side: Side,
        nodes: Option<BTreeMap<String, Node>>,
        (before, after): (Sent, Sent),
        is_shared: bool,
    ) -> Option<Writer> {
        let counts = &mut self.counts[side as usize];
        let Some(nodes) = nodes.filter(|nodes| !nodes.is_empty()) else {
            counts.begin_anew();
            if side == Side::Cluster {
                notices.note_moving();
            }
            return None;
        };
        let node = if nodes.len() == 1 { nodes.keys().next().cloned() } else { None };
        let records = &context.adopter.desk().records[side as usize];
        let reading = Reading::new(side, nodes, (before, records.answered()), (after, records.sent()), is_shared);
        if side == Side::Cluster && !counts.last().is_some_and(|last| reading.is_settled_since(last)) {
            notices.note_moving();
        }
        let is_moving = |db| side == Side::Cluster || context.table().databases().is_moving(db);
        let writes = counts.look(reading, is_moving)?;
        // A connection that was seen, now or a look ago, is told of already.
        let is_explained = self.since_connection[side as usize].is_some_and(|looks| looks <= 1);
        let writer = Writer { node: node.unwrap_or_default(), writes, ..Writer::new(FoundBy::Count, side) };
        (!is_explained).then_some(writer)
    }
}

/// What all workers have sent.
async fn sent(context: &Context) -> Option<Sent> {
    let ask = |worker| {
        let (done, answer) = oneshot::channel();
        context.peers.send(worker, Message::Tally { done });
        answer
    };
    let asked: Vec<_> = (0..context.peers.0.len()).map(ask).collect();
    let all = async {
        let mut sum = Sent::default();
        for answer in asked {
            sum = sum.and(answer.await.ok()?);
        }
        Some(sum)
    };
    tokio::time::timeout(PATIENCE, all).await.ok().flatten()
}

/// Asks a node; what it does not answer in time is not known.
async fn ask(side: Side, endpoint: &Endpoint) -> Told {
    let mut told = Told::default();
    let asking = async {
        let mut link = PrivateLink::connect(endpoint, Protocol::Resp2).await.ok()?;
        told.list = client_list::parse(&link.call(client_list::ASK).await.ok()?);
        let info = text(&link.call(ASK_INFO).await.ok()?)?;
        let cluster_info = match side {
            Side::Standalone => String::new(),
            Side::Cluster => text(&link.call(ASK_CLUSTER).await.ok()?)?,
        };
        told.node = Node::parse(&info, &cluster_info);
        Some(())
    };
    // What was told by then is told.
    let _ = tokio::time::timeout(endpoint.timeouts.reply, asking).await;
    told
}

fn text(frame: &[u8]) -> Option<String> {
    (!reply::is_error(frame)).then(|| Some(String::from_utf8_lossy(reply::bulk(frame)?).into_owned()))?
}
