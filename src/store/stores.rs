//! Both sides as one worker sees them: its links, and what waits because a store is down or a slot is moving.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use bytes::Bytes;
use tokio::sync::Notify;

use crate::resp::reply::Protocol;
use crate::store::cluster::{Barrier, Destination, Held, Hold, Item, Probe};
use crate::store::link::{Dirty, Endpoint, Link};
use crate::store::private_link::{PrivateLinks, PrivatePlace};
use crate::store::{Fence, LinkError, Loss, SlotMap, SlowLimit, Stopwatch, Waiter};

/// Requests that go alone at a tick, to find out which destinations take requests again: a cluster that is down has up to
/// 16,384 of them, a slot each.
const PROBES_MAX: usize = 128;
/// How long after one of them has passed all others may be tried at once.
const COMING_BACK: Duration = Duration::from_secs(1);

/// What the stores of a worker are made of.
#[derive(Clone)]
pub struct StoresConfig {
    pub standalone: Endpoint,
    /// The seeds; empty where no route needs a cluster.
    pub cluster: Vec<Endpoint>,
    pub slot_map: Arc<ArcSwap<SlotMap>>,
    /// Told when the layout looks old.
    pub refresh: Arc<Notify>,
    pub loss: Arc<Loss>,
    /// Bytes that may wait in one link, and in a worker for all slots and databases that are not to be reached.
    pub queue_bytes_max: usize,
    pub private_links: PrivateLinks,
    pub slow: Arc<SlowLimit>,
    pub fence: Arc<Fence>,
}

/// One of the two stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreSide {
    Standalone,
    Cluster,
}

/// See the module. Cheap to clone.
pub struct Stores<W: Waiter>(Rc<Inner<W>>);

impl<W: Waiter> Clone for Stores<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

type NodeLink<W> = Rc<Link<Item<W>>>;

type PeerLinks<W> = HashMap<(Arc<str>, u32), NodeLink<W>>;

/// The links to the primaries of one slot map, by its own numbering of them.
struct Primaries<W: Waiter> {
    newest: Cache<Arc<ArcSwap<SlotMap>>, Arc<SlotMap>>,
    map: Arc<SlotMap>,
    links: Vec<NodeLink<W>>,
}

pub(super) struct Inner<W: Waiter> {
    config: StoresConfig,
    main: NodeLink<W>,
    databases: RefCell<HashMap<u32, NodeLink<W>>>,
    nodes: RefCell<HashMap<Arc<str>, NodeLink<W>>>,
    /// To the other proxy, by its address and the database.
    peers: RefCell<PeerLinks<W>>,
    primaries: RefCell<Primaries<W>>,
    pub(super) holds: RefCell<HashMap<Destination, Hold<W>>>,
    /// Slots whose owner changed while the former one owes answers.
    barriers: RefCell<Vec<Barrier<W>>>,
    /// What waits in both.
    pub(super) held: Held,
    /// When a request that was sent alone was answered last.
    passed: Cell<Option<Instant>>,
    dirty: Rc<Dirty<Link<Item<W>>>>,
    now: Rc<Cell<Instant>>,
    standalone_watch: Rc<Stopwatch>,
    cluster_watch: Rc<Stopwatch>,
}

impl<W: Waiter> Stores<W> {
    /// Begins to connect. `wake` is told when something is to be flushed.
    pub fn new(config: StoresConfig, wake: Rc<Notify>) -> Self {
        let dirty = Rc::new(Dirty::new(wake));
        let now = Rc::new(Cell::new(Instant::now()));
        let [standalone_watch, cluster_watch] = [(); 2].map(|()| Rc::new(Stopwatch::new(config.slow.clone())));
        let main = Link::start(
            config.standalone.clone(),
            dirty.clone(),
            now.clone(),
            config.queue_bytes_max,
            (config.loss.clone(), config.fence.clone()),
            standalone_watch.clone(),
        );
        let newest = Cache::new(config.slot_map.clone());
        let primaries = Primaries { newest, map: Arc::new(SlotMap::default()), links: Vec::new() };
        Self(Rc::new(Inner {
            config,
            main,
            databases: RefCell::new(HashMap::new()),
            nodes: RefCell::new(HashMap::new()),
            peers: RefCell::new(HashMap::new()),
            primaries: RefCell::new(primaries),
            holds: RefCell::new(HashMap::new()),
            barriers: RefCell::new(Vec::new()),
            held: Held::default(),
            passed: Cell::new(None),
            dirty,
            now,
            standalone_watch,
            cluster_watch,
        }))
    }

    /// Sends to a database of the standalone. `protocol`: what the reply is wanted in, `None` where that is all the same.
    pub fn standalone(&self, db: u32, request: Bytes, protocol: Option<Protocol>, waiter: W) {
        self.standalone_batch(db, request, 1, protocol, waiter);
    }

    /// Sends to the primary that serves the slot.
    pub fn cluster(&self, slot: u16, request: Bytes, protocol: Option<Protocol>, waiter: W) {
        self.cluster_batch(slot, request, 1, protocol, waiter);
    }

    /// Several requests as one piece, MULTI … EXEC: the waiter gets the last of the replies, or the first error before it.
    pub fn standalone_batch(&self, db: u32, request: Bytes, replies: u32, protocol: Option<Protocol>, waiter: W) {
        self.submit(Destination::Standalone(db), request, replies, protocol, waiter);
    }

    /// The same for a slot; the piece is re-sent whole when the slot has moved.
    pub fn cluster_batch(&self, slot: u16, request: Bytes, replies: u32, protocol: Option<Protocol>, waiter: W) {
        self.submit(Destination::Slot(slot), request, replies, protocol, waiter);
    }

    fn submit(&self, to: Destination, request: Bytes, replies: u32, protocol: Option<Protocol>, waiter: W) {
        let inner = &self.0;
        let item = Item::new(inner.clone(), to, request, replies, protocol, waiter);
        if matches!(to, Destination::Slot(_)) {
            // A change of the layout is seen before anything goes by it.
            inner.refresh_primaries();
        }
        if !inner.is_holding() {
            return inner.send(item);
        }
        if let Some(item) = inner.behind_barrier(item).and_then(|item| inner.behind_hold(item)) {
            inner.send(item);
        }
    }

    /// Sends to one node by its address, for what concerns the node and not a key.
    pub fn node(&self, address: &Arc<str>, request: Bytes, protocol: Option<Protocol>, waiter: W) {
        let link = self.0.node(address);
        let item = Item::new(self.0.clone(), Destination::Node, request, 1, protocol, waiter);
        self.0.send_on(link, item);
    }

    /// Sends to the proxy that holds the lease.
    pub fn peer(&self, db: u32, request: Bytes, replies: u32, protocol: Option<Protocol>, waiter: W) {
        let Some(endpoint) = self.peer_endpoint(db) else {
            return waiter.complete(request, Err(LinkError::Down("no other proxy holds the lease".into())));
        };
        let link = self.0.peer(endpoint);
        let item = Item::new(self.0.clone(), Destination::Node, request, replies, protocol, waiter);
        self.0.send_on(link, item);
    }

    /// How to open a connection of one's own to the proxy that holds the lease.
    pub fn peer_endpoint(&self, db: u32) -> Option<Endpoint> {
        Some(Endpoint { db, ..(*self.0.config.fence.peer()?).clone() })
    }

    /// What this process may write.
    pub fn fence(&self) -> &Arc<Fence> {
        &self.0.config.fence
    }

    /// The primaries as known now.
    pub fn primaries(&self) -> Vec<Arc<str>> {
        self.0.config.slot_map.load().primaries().to_vec()
    }

    /// How to open a connection of one's own to the standalone.
    pub fn standalone_endpoint(&self, db: u32) -> Endpoint {
        Endpoint { db, ..self.0.config.standalone.clone() }
    }

    /// How to open a connection of one's own to the primary that serves a slot.
    pub fn slot_endpoint(&self, slot: u16) -> Option<Endpoint> {
        let address = self.0.config.slot_map.load().owner(slot)?.clone();
        Some(Endpoint { address, ..self.0.config.cluster.first()?.clone() })
    }

    /// How to open a connection of one's own to a node of the cluster.
    pub fn node_endpoint(&self, address: &Arc<str>) -> Option<Endpoint> {
        Some(Endpoint { address: address.clone(), ..self.0.config.cluster.first()?.clone() })
    }

    /// How long a request waits for a slot that moves.
    pub fn cluster_patience(&self) -> Duration {
        self.0.patience(Destination::Slot(0))
    }

    /// The cluster's layout looks old.
    pub fn refresh(&self) {
        self.0.refresh();
    }

    /// A place for a connection of one client's own; `None`: all are taken.
    pub fn private_place(&self, side: StoreSide) -> Option<PrivatePlace> {
        self.0.config.private_links.take(side)
    }

    /// How many connections clients have of their own.
    pub fn private_links(&self, side: StoreSide) -> u64 {
        self.0.config.private_links.taken(side)
    }

    /// The standalone's version; empty before the first connection to it.
    pub fn version(&self) -> String {
        self.0.main.version()
    }

    /// Whether the store answers: for the cluster, whether its layout is known and every primary has a link or was never
    /// needed.
    pub fn is_up(&self, side: StoreSide) -> bool {
        match side {
            StoreSide::Standalone => self.0.main.is_up(),
            StoreSide::Cluster => {
                self.0.refresh_primaries();
                let primaries = self.0.primaries.borrow();
                !primaries.links.is_empty() && primaries.links.iter().all(|link| link.is_up())
            }
        }
    }

    /// How long the store takes.
    pub fn watch(&self, side: StoreSide) -> &Stopwatch {
        match side {
            StoreSide::Standalone => &self.0.standalone_watch,
            StoreSide::Cluster => &self.0.cluster_watch,
        }
    }

    /// Tells the control thread that nobody knows any more what the stores hold: see [`Loss`].
    pub fn doubt(&self) {
        self.0.config.loss.tell();
    }

    /// Bytes that wait for destinations that take nothing, or move.
    pub fn held_bytes(&self) -> u64 {
        self.0.held.bytes() as u64
    }

    /// Bytes that wait in the links to a store until these take them.
    pub fn queued_bytes(&self, side: StoreSide) -> u64 {
        let queued = match side {
            StoreSide::Standalone => {
                let databases = self.0.databases.borrow();
                self.0.main.queued_bytes() + databases.values().map(|link| link.queued_bytes()).sum::<usize>()
            }
            StoreSide::Cluster => self.0.nodes.borrow().values().map(|link| link.queued_bytes()).sum(),
        };
        queued as u64
    }

    /// One gathered write for each link that has something to write for which somebody waits; whether any had.
    pub fn flush(&self) -> bool {
        let links = self.0.dirty.take();
        links.iter().for_each(|link| link.flush());
        !links.is_empty()
    }

    /// Whether there is something to write for which nobody waits.
    pub fn has_later(&self) -> bool {
        self.0.dirty.has_later()
    }

    /// Writes that.
    pub fn flush_later(&self) {
        self.0.dirty.take_later().iter().for_each(|link| link.flush());
    }

    /// Time-outs and what waits; every 50 ms or so.
    pub fn tick(&self, now: Instant) {
        let inner = &self.0;
        inner.now.set(now);
        inner.refresh_primaries();
        inner.main.tick(now);
        inner.leave_peers();
        let (databases, nodes, peers) = (inner.databases.borrow(), inner.nodes.borrow(), inner.peers.borrow());
        let links: Vec<_> = databases.values().chain(nodes.values()).chain(peers.values()).cloned().collect();
        drop((databases, nodes, peers));
        for link in links {
            link.tick(now);
        }
        let mut held: Vec<Destination> = inner.holds.borrow().keys().copied().collect();
        // Each gets its turn, whichever are many.
        fastrand::shuffle(&mut held);
        let is_coming_back = inner.passed.get().is_some_and(|passed| now.duration_since(passed) < COMING_BACK);
        let mut probes_left = if is_coming_back { usize::MAX } else { PROBES_MAX };
        for destination in held {
            inner.expire(destination);
            if inner.is_to_probe(destination) {
                if probes_left == 0 {
                    continue;
                }
                probes_left -= 1;
            }
            inner.release(destination);
        }
        inner.lift_barriers();
    }
}

impl<W: Waiter> Inner<W> {
    pub(super) fn now(&self) -> Instant {
        self.now.get()
    }

    pub(super) fn fence(&self) -> &Fence {
        &self.config.fence
    }

    /// Whether anything waits for the answers of others.
    pub(super) fn is_holding(&self) -> bool {
        !self.holds.borrow().is_empty() || !self.barriers.borrow().is_empty()
    }

    pub(super) fn patience(&self, to: Destination) -> Duration {
        match to {
            Destination::Standalone(_) | Destination::Node => self.config.standalone.timeouts.patience,
            Destination::Slot(_) => self.config.cluster.first().map_or(Duration::ZERO, |seed| seed.timeouts.patience),
        }
    }

    /// Sends an item to where it belongs by the layout that was looked at last.
    pub(super) fn send(self: &Rc<Self>, item: Item<W>) {
        if item.is_cut_off() {
            return item.give_up(LinkError::Down("the lease under which it was asked for has ended".into()));
        }
        let link = match item.to {
            Destination::Standalone(db) if db == self.config.standalone.db => Some(self.main.clone()),
            Destination::Standalone(db) => Some(self.database(db)),
            Destination::Slot(slot) => match item.ask() {
                Some(address) => Some(self.node(address)),
                None => self.primary(slot),
            },
            Destination::Node => None,
        };
        let Some(link) = link else {
            self.refresh();
            return item.try_later(LinkError::Down("no node serves this slot".into()), None);
        };
        self.send_on(link, item);
    }

    fn send_on(self: &Rc<Self>, link: NodeLink<W>, mut item: Item<W>) {
        item.sent_to = Some(link.clone());
        if let Err((item, error)) = link.send(item) {
            if matches!(item.to, Destination::Slot(_)) {
                self.refresh();
            }
            match error {
                LinkError::Overflow | LinkError::Overloaded => item.give_up(error),
                error => item.try_later(error, Some(link)),
            }
        }
    }

    pub(super) fn refresh(&self) {
        self.config.refresh.notify_one();
    }

    /// A slot moved for good.
    pub(super) fn moved(&self, slot: u16, address: &str) {
        let known = self.config.slot_map.load();
        if known.owner(slot).is_none_or(|owner| **owner != *address) {
            self.config.slot_map.rcu(|map| Arc::new(map.with_owner(slot, address)));
            self.refresh();
        }
    }

    fn primary(self: &Rc<Self>, slot: u16) -> Option<NodeLink<W>> {
        let primaries = self.primaries.borrow();
        primaries.links.get(primaries.map.owner_index(slot)?).cloned()
    }

    fn refresh_primaries(self: &Rc<Self>) {
        let newest = {
            let mut primaries = self.primaries.borrow_mut();
            let Primaries { newest, map, .. } = &mut *primaries;
            match newest.load() {
                newest if Arc::ptr_eq(newest, map) => return,
                newest => newest.clone(),
            }
        };
        let links = newest.primaries().iter().map(|address| self.node(address)).collect();
        let (map, links) = {
            let mut primaries = self.primaries.borrow_mut();
            (std::mem::replace(&mut primaries.map, newest.clone()), std::mem::replace(&mut primaries.links, links))
        };
        // What the former owner has not answered yet may come back as MOVED: what is asked from now on waits for it.
        for (index, link) in links.into_iter().enumerate() {
            let (sent, answered) = link.progress();
            let slots = if sent > answered { map.slots_lost_by(index, &newest) } else { Vec::new() };
            if !slots.is_empty() {
                self.barriers.borrow_mut().push(Barrier::new(slots, link, sent, self.held.clone()));
            }
        }
    }

    /// Gives the item back unless it has to wait for the former owner of its slot.
    fn behind_barrier(self: &Rc<Self>, item: Item<W>) -> Option<Item<W>> {
        let Destination::Slot(slot) = item.to else { return Some(item) };
        let mut barriers = self.barriers.borrow_mut();
        let Some(barrier) = barriers.iter_mut().find(|barrier| barrier.covers(slot)) else { return Some(item) };
        if self.held.bytes() > self.config.queue_bytes_max {
            drop(barriers);
            item.give_up(LinkError::Overflow);
            return None;
        }
        barrier.later(item);
        None
    }

    /// Gives the item back unless its destination is on hold.
    fn behind_hold(&self, item: Item<W>) -> Option<Item<W>> {
        let mut holds = self.holds.borrow_mut();
        let Some(hold) = holds.get_mut(&item.to) else { return Some(item) };
        if self.held.bytes() > self.config.queue_bytes_max {
            drop(holds);
            item.give_up(LinkError::Overflow);
            return None;
        }
        hold.later(item, self.now.get());
        None
    }

    /// Ends the barriers behind which everything is answered.
    pub(super) fn lift_barriers(self: &Rc<Self>) {
        if self.barriers.borrow().is_empty() {
            return;
        }
        let mut lifted = Vec::new();
        self.barriers.borrow_mut().retain_mut(|barrier| {
            let is_over = barrier.is_over();
            if is_over {
                lifted.extend(barrier.take_items());
            }
            !is_over
        });
        self.refresh_primaries();
        for item in lifted {
            // What came back from the former owner goes first; it waits in the slot's hold.
            if let Some(item) = self.behind_barrier(item).and_then(|item| self.behind_hold(item)) {
                self.send(item);
            }
        }
    }

    fn node(self: &Rc<Self>, address: &Arc<str>) -> NodeLink<W> {
        if let Some(link) = self.nodes.borrow().get(address) {
            return link.clone();
        }
        let pattern = self.config.cluster.first().unwrap_or(&self.config.standalone);
        let endpoint = Endpoint { address: address.clone(), db: 0, ..pattern.clone() };
        let link = self.start(endpoint, &self.cluster_watch);
        self.nodes.borrow_mut().insert(address.clone(), link.clone());
        link
    }

    fn database(self: &Rc<Self>, db: u32) -> NodeLink<W> {
        if let Some(link) = self.databases.borrow().get(&db) {
            return link.clone();
        }
        let link = self.start(Endpoint { db, ..self.config.standalone.clone() }, &self.standalone_watch);
        self.databases.borrow_mut().insert(db, link.clone());
        link
    }

    fn peer(self: &Rc<Self>, endpoint: Endpoint) -> NodeLink<W> {
        let place = (endpoint.address.clone(), endpoint.db);
        if let Some(link) = self.peers.borrow().get(&place) {
            return link.clone();
        }
        // Another proxy's clients and restarts say nothing of the stores.
        let watch = Rc::new(Stopwatch::new(self.config.slow.clone()));
        let link = Link::start(
            endpoint,
            self.dirty.clone(),
            self.now.clone(),
            self.config.queue_bytes_max,
            (Arc::default(), self.config.fence.clone()),
            watch,
        );
        self.peers.borrow_mut().insert(place, link.clone());
        link
    }

    /// Ends the links to a proxy that holds the lease no longer.
    fn leave_peers(&self) {
        if self.peers.borrow().is_empty() {
            return;
        }
        let peer = self.config.fence.peer();
        self.peers.borrow_mut().retain(|(address, _), link| {
            let stays = peer.as_ref().is_some_and(|peer| peer.address == *address);
            if !stays {
                link.end();
            }
            stays
        });
    }

    fn start(&self, endpoint: Endpoint, watch: &Rc<Stopwatch>) -> NodeLink<W> {
        Link::start(
            endpoint,
            self.dirty.clone(),
            self.now.clone(),
            self.config.queue_bytes_max,
            (self.config.loss.clone(), self.config.fence.clone()),
            watch.clone(),
        )
    }

    /// Gives up what has waited too long in a hold.
    fn expire(&self, to: Destination) {
        let (late, reason) = {
            let mut holds = self.holds.borrow_mut();
            let Some(hold) = holds.get_mut(&to) else { return };
            let (late, reason) = (hold.take_late(self.now.get()), hold.reason());
            if hold.is_over() {
                holds.remove(&to);
            }
            (late, reason)
        };
        for item in late {
            item.give_up(reason.clone());
        }
    }

    /// Whether the next thing to do for a hold is to send a request alone.
    fn is_to_probe(&self, to: Destination) -> bool {
        self.holds.borrow().get(&to).is_some_and(|hold| hold.is_ready(self.now.get()) && hold.probes() == Some(true))
    }

    /// A request that went alone is over.
    pub(super) fn end_probe(&self, to: Destination, is_probe: bool, probe: Probe) {
        if !is_probe {
            return;
        }
        if probe == Probe::Passed {
            self.passed.set(Some(self.now.get()));
        }
        if let Some(hold) = self.holds.borrow_mut().get_mut(&to) {
            hold.end_probe(probe);
        }
    }

    /// Ends a hold when its time has come and everything sent before it is answered: what came back goes first, in order.
    /// Where the destination took nothing, one request goes first, and the hold ends when it has passed.
    pub(super) fn release(self: &Rc<Self>, to: Destination) {
        // What came back by a redirect goes by what that said.
        self.refresh_primaries();
        let hold = {
            let mut holds = self.holds.borrow_mut();
            let Some(hold) = holds.get_mut(&to).filter(|hold| hold.is_ready(self.now.get())) else { return };
            match hold.probes() {
                None => return,
                Some(true) => {
                    let probe = hold.take_probe();
                    drop(holds);
                    return probe.into_iter().for_each(|item| self.send(item));
                }
                Some(false) => holds.remove(&to),
            }
        };
        for item in hold.into_iter().flat_map(Hold::into_items) {
            // An earlier one of these may have found the destination still closed: then the rest stays behind it.
            let mut holds = self.holds.borrow_mut();
            if let Some(hold) = holds.get_mut(&to) {
                hold.later(item, self.now.get());
                continue;
            }
            drop(holds);
            self.send(item);
        }
    }
}
