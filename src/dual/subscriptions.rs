//! The subscriptions of a worker's clients, on few connections: one to the standalone, or one to each primary of the cluster
//! on which something is subscribed.
//!
//! Everything a client asks goes through the feed in its turn, also where others are subscribed already: so a client hears
//! what was published after its SUBSCRIBE and nothing before, and its confirmations come in order. On the cluster all
//! channels and patterns meet on one primary, as messages to one are passed on to all; a shard channel is where its slot is,
//! and goes after it; notifications of keys are sent by the node of the key to its own subscribers only, so they are
//! subscribed to on every primary. A feed that breaks closes whoever may have missed a message: no loss is silent.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::dual::audience::Audience;
use crate::dual::channels::Unconfirmed;
use crate::dual::engine::{Engine, Inner};
use crate::dual::feed::{Feed, Step};
use crate::dual::push::{Family, Push, Verb};
use crate::dual::turn::marked;
use crate::resp::refusal::Refusal;
use crate::resp::reply;
use crate::routing::Side;
use crate::slot;
use crate::store::LinkError;
use crate::store::link::Endpoint;

/// The slot at whose primary all channels and patterns of a cluster meet, so that messages keep one order.
pub(super) const MEETING_SLOT: u16 = 0;
/// (UN)SUBSCRIBEs of one client that may be unanswered; then it waits.
const OWED_MAX: usize = 1024;
/// Between two tries to subscribe where a slot has gone to.
const FOLLOW_AGAIN: Duration = Duration::from_millis(50);

/// Whoever hears messages: a client's session.
pub trait Ear {
    /// A message, or a confirmation.
    fn hear(&self, push: &Push);
    /// How many subscriptions it has now, by family.
    fn note(&self, subscriptions: [usize; 3]);
    /// What it asked for cannot be done.
    fn refuse(&self, refusal: Refusal);
    /// It may have missed something.
    fn close(&self);
}

/// One request of a client: refused once, whatever many names it has, and confirmed when all of them are.
pub struct Asked {
    /// Publishers wait for it.
    _unconfirmed: Option<Unconfirmed>,
    is_refused: Cell<bool>,
}

impl Asked {
    /// `unconfirmed`: of a SUBSCRIBE.
    pub fn new(unconfirmed: Option<Unconfirmed>) -> Rc<Self> {
        Rc::new(Self { _unconfirmed: unconfirmed, is_refused: Cell::new(false) })
    }
}

/// One name that is subscribed to, or is not any more, at each of its homes.
pub(super) struct Change {
    /// Nobody asked where the worker follows a slot or tidies up.
    member: Option<Rc<Member>>,
    asked: Option<Rc<Asked>>,
    family: Family,
    verb: Verb,
    pub(super) name: Bytes,
    /// Homes that have not answered.
    owed: Cell<usize>,
    /// Nobody wanted the name any more when it was sent, so that the homes end it.
    ends: Cell<bool>,
    until: Instant,
}

/// A client as its worker's subscriptions know it.
struct Member {
    id: u64,
    ear: Rc<dyn Ear>,
    /// What it is to have when everything asked is answered, by family.
    wanted: RefCell<[BTreeSet<Bytes>; 3]>,
    /// How many it has now, by family.
    joined: [Cell<usize>; 3],
    owed: Cell<usize>,
    /// Where the last of these was sent: another place might answer sooner.
    homes: RefCell<Vec<Arc<str>>>,
    told: Notify,
    is_gone: Cell<bool>,
}

/// A name that somebody hears, or is going to.
#[derive(Default)]
struct Topic {
    homes: Vec<Arc<str>>,
    /// In the order in which clients came.
    members: BTreeMap<u64, Rc<Member>>,
    /// How many there will be when everything asked is answered.
    wanted: usize,
    /// Whether it is subscribed to at its homes.
    is_linked: bool,
}

impl Topic {
    fn is_over(&self) -> bool {
        self.wanted == 0 && self.members.is_empty() && !self.is_linked
    }
}

/// See the module.
pub(super) struct Subscriptions {
    /// The store on which they are.
    pub side: Cell<Side>,
    topics: RefCell<[HashMap<Bytes, Topic>; 3]>,
    pub feeds: RefCell<HashMap<Arc<str>, Rc<Feed>>>,
    /// They go over to the other store, and nothing is asked meanwhile.
    is_turning: Cell<bool>,
    turned: Notify,
    pub audience: Arc<Audience>,
    /// The primaries when they were looked at last.
    primaries: RefCell<Vec<Arc<str>>>,
    next_id: Cell<u64>,
    members: Cell<usize>,
    delivered: Cell<u64>,
}

/// What a worker's subscriptions come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionLoad {
    /// Subscriptions of clients.
    pub members: u64,
    pub feeds: u64,
    /// Messages given to clients since the start.
    pub delivered: u64,
}

impl Subscriptions {
    pub fn new(side: Side, audience: Arc<Audience>) -> Self {
        Self {
            side: Cell::new(side),
            topics: RefCell::default(),
            feeds: RefCell::default(),
            is_turning: Cell::new(false),
            turned: Notify::new(),
            audience,
            primaries: RefCell::default(),
            next_id: Cell::new(0),
            members: Cell::new(0),
            delivered: Cell::new(0),
        }
    }

    pub fn load(&self) -> SubscriptionLoad {
        SubscriptionLoad {
            members: self.members.get() as u64,
            feeds: self.feeds.borrow().len() as u64,
            delivered: self.delivered.get(),
        }
    }

    /// Holds up what clients ask, or lets it go on.
    pub fn set_turning(&self, is_turning: bool) {
        self.is_turning.set(is_turning);
        if !is_turning {
            self.turned.notify_waiters();
        }
    }

    /// Whether anybody hears a channel or a pattern.
    pub fn has_channels(&self) -> bool {
        let topics = self.topics.borrow();
        !topics[Family::Channel as usize].is_empty() || !topics[Family::Pattern as usize].is_empty()
    }

    /// All names that somebody wants.
    pub fn names(&self) -> Vec<(Family, Bytes)> {
        let topics = self.topics.borrow();
        let of = |family: Family| {
            let wanted = topics[family as usize].iter().filter(|(_, topic)| topic.wanted > 0);
            wanted.map(move |(name, _)| (family, name.clone()))
        };
        Family::ALL.into_iter().flat_map(of).collect()
    }

    /// Notes where a name is from now on.
    pub fn set_homes(&self, family: Family, name: &Bytes, homes: Vec<Arc<str>>) {
        if let Some(topic) = self.topics.borrow_mut()[family as usize].get_mut(name) {
            topic.homes = homes;
        }
    }

    /// A member hears a name no longer.
    fn part(&self, topic: &mut Topic, family: Family, name: &Bytes, member: &Member) {
        if topic.members.remove(&member.id).is_some() {
            member.joined(family).set(member.joined(family).get() - 1);
            self.count(family, name, -1, 0);
        }
    }

    fn count(&self, family: Family, name: &Bytes, members: i64, links: i64) {
        self.members.set(self.members.get().wrapping_add_signed(members as isize));
        self.audience.change(family, name, members, links);
    }
}

impl Member {
    async fn settled(&self) {
        while self.owed.get() > 0 {
            self.told.notified().await;
        }
    }

    fn joined(&self, family: Family) -> &Cell<usize> {
        &self.joined[family as usize]
    }

    fn total(&self) -> usize {
        self.joined.iter().map(Cell::get).sum()
    }

    /// Tells the client what it has now. Redis counts shard channels apart from the others.
    fn confirm(&self, family: Family, verb: Verb, name: Option<&[u8]>) {
        let count = match family {
            Family::Shard => self.joined(Family::Shard).get(),
            _ => self.joined(Family::Channel).get() + self.joined(Family::Pattern).get(),
        };
        self.ear.note(Family::ALL.map(|family| self.joined(family).get()));
        self.ear.hear(&Push::confirmation(family, verb, name, count));
    }

    fn answered(&self) {
        self.owed.set(self.owed.get() - 1);
        self.told.notify_one();
    }
}

/// A client's subscriptions; they end when it is dropped.
pub struct Membership {
    engine: Rc<Inner>,
    member: Rc<Member>,
}

impl Membership {
    /// Waits until everything that was asked is answered.
    pub async fn settled(&self) {
        self.member.settled().await;
    }

    /// Waits until what was published before has come, unless the stores take too long.
    pub async fn catch_up(&self) {
        let feeds: Vec<Rc<Feed>> = self.engine.channels.subscriptions.feeds.borrow().values().cloned().collect();
        // A feed that does not answer is given up by itself, and closes its subscribers.
        let _ = marked(&feeds).await;
    }

    /// How many subscriptions were confirmed and not ended.
    pub fn count(&self) -> usize {
        self.member.total()
    }

    /// What the client is subscribed to when everything asked is answered.
    pub fn names(&self, family: Family) -> Vec<Bytes> {
        self.member.wanted.borrow()[family as usize].iter().cloned().collect()
    }

    /// Tells the client that it had none to end.
    pub async fn confirm_none(&self, family: Family) {
        self.member.settled().await;
        self.member.confirm(family, Verb::Leave, None);
    }

    /// Joins a channel at its homes, during a turn too.
    pub(super) fn join_now(&self, channel: Bytes, homes: Vec<Arc<str>>) {
        self.engine.ask_change(&self.member, None, Family::Channel, Verb::Join, channel, homes);
    }

    /// Asks for a name, which is confirmed in its turn.
    pub async fn ask(&self, asked: &Rc<Asked>, family: Family, verb: Verb, name: Bytes) -> Result<(), Refusal> {
        let subscriptions = &self.engine.channels.subscriptions;
        loop {
            if subscriptions.is_turning.get() {
                subscriptions.turned.notified().await;
                continue;
            }
            if verb == Verb::Leave && !self.member.wanted.borrow()[family as usize].contains(&name) {
                self.member.settled().await;
                self.member.confirm(family, verb, Some(&name));
                return Ok(());
            }
            let homes = self.engine.homes(family, &name).ok_or(Refusal::StoreDown)?;
            let owed = self.member.owed.get();
            if owed >= OWED_MAX || (owed > 0 && *self.member.homes.borrow() != homes) {
                self.member.settled().await;
                continue;
            }
            self.engine.ask_change(&self.member, Some(asked.clone()), family, verb, name, homes);
            return Ok(());
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.engine.forget_member(&self.member);
    }
}

impl Engine {
    /// A client that is about to subscribe.
    pub fn new_member(&self, ear: Rc<dyn Ear>) -> Membership {
        self.0.new_member(ear)
    }
}

impl Inner {
    pub(super) fn new_member(self: &Rc<Self>, ear: Rc<dyn Ear>) -> Membership {
        let next_id = &self.channels.subscriptions.next_id;
        let member = Member {
            id: next_id.replace(next_id.get() + 1),
            ear,
            wanted: RefCell::default(),
            joined: Default::default(),
            owed: Cell::new(0),
            homes: RefCell::default(),
            told: Notify::new(),
            is_gone: Cell::new(false),
        };
        Membership { engine: self.clone(), member: Rc::new(member) }
    }

    /// Where a name is subscribed to; `None` where the cluster's layout is not known.
    pub(super) fn homes(&self, family: Family, name: &[u8]) -> Option<Vec<Arc<str>>> {
        let subscriptions = &self.channels.subscriptions;
        let topics = subscriptions.topics.borrow();
        let known = topics[family as usize].get(name).filter(|topic| topic.wanted > 0 && !topic.homes.is_empty());
        match known {
            Some(topic) if !is_of_keys(name) => Some(topic.homes.clone()),
            _ => self.homes_on(subscriptions.side.get(), family, name),
        }
    }

    /// Where a name is to be subscribed to on a side.
    pub(super) fn homes_on(&self, side: Side, family: Family, name: &[u8]) -> Option<Vec<Arc<str>>> {
        let slot = match (side, family) {
            (Side::Standalone, _) => return Some(vec![self.stores.standalone_endpoint(self.db).address]),
            (Side::Cluster, Family::Shard) => slot::of(name),
            (Side::Cluster, _) if is_of_keys(name) => {
                return Some(self.stores.primaries()).filter(|primaries| !primaries.is_empty());
            }
            (Side::Cluster, _) => MEETING_SLOT,
        };
        Some(vec![self.stores.slot_endpoint(slot)?.address])
    }

    /// How to reach a home on a side.
    pub(super) fn home_endpoint(&self, side: Side, home: &Arc<str>) -> Option<Endpoint> {
        match side {
            Side::Standalone => Some(self.stores.standalone_endpoint(self.db)),
            Side::Cluster => self.stores.node_endpoint(home),
        }
    }

    fn feed(self: &Rc<Self>, home: &Arc<str>) -> Option<Rc<Feed>> {
        let subscriptions = &self.channels.subscriptions;
        if let Some(feed) = subscriptions.feeds.borrow().get(home) {
            return Some(feed.clone());
        }
        let feed = Feed::start(self, self.home_endpoint(subscriptions.side.get(), home)?);
        subscriptions.feeds.borrow_mut().insert(home.clone(), feed.clone());
        Some(feed)
    }

    fn ask_change(
        self: &Rc<Self>,
        member: &Rc<Member>,
        asked: Option<Rc<Asked>>,
        family: Family,
        verb: Verb,
        name: Bytes,
        homes: Vec<Arc<str>>,
    ) {
        {
            let mut topics = self.channels.subscriptions.topics.borrow_mut();
            let topic = topics[family as usize].entry(name.clone()).or_default();
            let mut wanted = member.wanted.borrow_mut();
            let names = &mut wanted[family as usize];
            match verb {
                Verb::Join => topic.wanted += usize::from(names.insert(name.clone())),
                Verb::Leave => topic.wanted -= usize::from(names.remove(&name)),
            }
            topic.homes.clone_from(&homes);
        }
        member.owed.set(member.owed.get() + 1);
        member.homes.borrow_mut().clone_from(&homes);
        self.send_change(self.new_change(Some(member.clone()), asked, family, verb, name), &homes);
    }

    fn new_change(
        &self,
        member: Option<Rc<Member>>,
        asked: Option<Rc<Asked>>,
        family: Family,
        verb: Verb,
        name: Bytes,
    ) -> Rc<Change> {
        let until = Instant::now() + self.stores.cluster_patience();
        Rc::new(Change { member, asked, family, verb, name, owed: Cell::new(0), ends: Cell::new(false), until })
    }

    /// Sends a change to its homes. A name is only left where nobody else wants it; else a PING takes its turn.
    fn send_change(self: &Rc<Self>, change: Rc<Change>, homes: &[Arc<str>]) {
        let is_wanted = {
            let topics = self.channels.subscriptions.topics.borrow();
            topics[change.family as usize].get(&change.name).is_some_and(|topic| topic.wanted > 0)
        };
        change.ends.set(change.verb == Verb::Leave && !is_wanted);
        change.owed.set(homes.len().max(1));
        let feeds: Vec<_> = homes.iter().filter_map(|home| self.feed(home)).collect();
        if feeds.len() < homes.len() || feeds.is_empty() {
            return self.refuse_change(&change, Refusal::StoreDown);
        }
        for feed in feeds {
            match change.verb {
                Verb::Leave if !change.ends.get() => feed.mark(Step::Change(change.clone())),
                verb => feed.change(change.family, verb, &change.name, Step::Change(change.clone())),
            }
        }
    }

    /// A home has answered.
    pub(super) fn confirmed(self: &Rc<Self>, change: &Rc<Change>) {
        let left = change.owed.get().saturating_sub(1);
        if change.owed.replace(left) != 1 {
            return;
        }
        let Change { family, name, .. } = &**change;
        let subscriptions = &self.channels.subscriptions;
        let mut topics = subscriptions.topics.borrow_mut();
        let names = &mut topics[*family as usize];
        let topic = names.entry(name.clone()).or_default();
        match (change.verb, &change.member) {
            (Verb::Join, member) => {
                if !std::mem::replace(&mut topic.is_linked, true) {
                    subscriptions.count(*family, name, 0, 1);
                }
                if let Some(member) = member.as_ref().filter(|member| !member.is_gone.get())
                    && topic.members.insert(member.id, member.clone()).is_none()
                {
                    member.joined(*family).set(member.joined(*family).get() + 1);
                    subscriptions.count(*family, name, 1, 0);
                }
            }
            (Verb::Leave, member) => {
                if let Some(member) = member {
                    subscriptions.part(topic, *family, name, member);
                }
                // Whoever came since has sent a SUBSCRIBE behind this.
                if change.ends.get() && std::mem::take(&mut topic.is_linked) {
                    subscriptions.count(*family, name, 0, -1);
                }
            }
        }
        if topic.is_over() {
            names.remove(name);
        }
        drop(topics);
        if let Some(member) = &change.member {
            member.confirm(*family, change.verb, Some(name));
            member.answered();
        }
    }

    /// A node has answered with an error.
    pub(super) fn refused_step(self: &Rc<Self>, step: Step, frame: &[u8]) {
        match step {
            Step::Change(change) => {
                let word = reply::error_word(frame);
                if change.family == Family::Shard && matches!(word, b"MOVED" | b"CLUSTERDOWN") {
                    return self.follow_slot(change);
                }
                let text = String::from_utf8_lossy(reply::error_text(frame)).into_owned();
                self.refuse_change(&change, Refusal::Verbatim(text));
            }
            Step::Carried(is_refused) => is_refused.set(true),
            Step::Mark(_) | Step::Alive => {}
        }
    }

    /// Tries again where the slot is now, for as long as requests wait for a slot that moves.
    fn follow_slot(self: &Rc<Self>, change: Rc<Change>) {
        if change.verb == Verb::Leave {
            // Where the slot was, the channel is gone with it.
            return self.confirmed(&change);
        }
        if Instant::now() >= change.until {
            return self.refuse_change(&change, Refusal::StoreDown);
        }
        self.stores.refresh();
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(FOLLOW_AGAIN).await;
            while engine.channels.subscriptions.is_turning.get() {
                engine.channels.subscriptions.turned.notified().await;
            }
            let side = engine.channels.subscriptions.side.get();
            match engine.homes_on(side, change.family, &change.name) {
                Some(homes) => {
                    engine.channels.subscriptions.set_homes(change.family, &change.name, homes.clone());
                    engine.send_change(change, &homes);
                }
                None => engine.refuse_change(&change, Refusal::StoreDown),
            }
        });
    }

    /// A change that did not come about.
    fn refuse_change(self: &Rc<Self>, change: &Rc<Change>, refusal: Refusal) {
        if change.owed.replace(0) == 0 {
            // Another of its homes has refused it already.
            return;
        }
        let Change { family, name, .. } = &**change;
        let mut to_close = Vec::new();
        {
            let mut topics = self.channels.subscriptions.topics.borrow_mut();
            let names = &mut topics[*family as usize];
            if let Some(topic) = names.get_mut(name) {
                match (change.verb, &change.member) {
                    (Verb::Join, Some(member)) if !topic.members.contains_key(&member.id) => {
                        topic.wanted -= usize::from(member.wanted.borrow_mut()[*family as usize].remove(name));
                    }
                    (Verb::Join, Some(_)) => {}
                    (Verb::Join, None) => to_close.extend(topic.members.values().cloned()),
                    // What is not there any more is left all the same.
                    (Verb::Leave, Some(member)) => self.channels.subscriptions.part(topic, *family, name, member),
                    (Verb::Leave, None) => {}
                }
                if topic.is_over() {
                    names.remove(name);
                }
            }
        }
        close_all(to_close, "a shard channel could not be followed to where its slot is now");
        let Some(member) = &change.member else { return };
        let is_told = change.asked.as_ref().is_some_and(|asked| asked.is_refused.replace(true));
        if !is_told && !member.is_gone.get() {
            member.ear.refuse(refusal);
        }
        member.answered();
    }

    /// Gives a message to all who hear its name; how many they are.
    pub(super) fn deliver(&self, family: Family, name: &Bytes, frame: Bytes) -> usize {
        let subscriptions = &self.channels.subscriptions;
        let topics = subscriptions.topics.borrow();
        let Some(topic) = topics[family as usize].get(name) else { return 0 };
        let push = Push::message(frame);
        for member in topic.members.values() {
            member.ear.hear(&push);
        }
        subscriptions.delivered.set(subscriptions.delivered.get() + topic.members.len() as u64);
        topic.members.len()
    }

    /// A node has ended a subscription by itself, because the channel's slot has left it.
    pub(super) fn unseated(self: &Rc<Self>, feed: &Feed, family: Family, name: &Bytes) {
        let subscriptions = &self.channels.subscriptions;
        {
            let mut topics = subscriptions.topics.borrow_mut();
            let Some(topic) = topics[family as usize].get_mut(name) else { return };
            if !topic.homes.contains(&feed.home) {
                return;
            }
            if std::mem::take(&mut topic.is_linked) {
                subscriptions.count(family, name, 0, -1);
            }
            if topic.wanted == 0 {
                return;
            }
        }
        tracing::debug!(node = %feed.home, channel = %name.escape_ascii(), "its slot left the node; it is subscribed to where the slot is now");
        let change = self.new_change(None, None, family, Verb::Join, name.clone());
        change.owed.set(1);
        self.follow_slot(change);
    }

    /// A feed is gone, and with it whatever was sent meanwhile: whoever heard by it is closed, as when Redis goes away.
    pub(super) fn lost_feed(self: &Rc<Self>, feed: &Rc<Feed>, error: &LinkError) {
        let subscriptions = &self.channels.subscriptions;
        subscriptions.feeds.borrow_mut().retain(|_, known| !Rc::ptr_eq(known, feed));
        let mut to_close = Vec::new();
        for family in Family::ALL {
            let mut topics = subscriptions.topics.borrow_mut();
            topics[family as usize].retain(|name, topic| {
                if !topic.homes.contains(&feed.home) {
                    return true;
                }
                topic.homes.retain(|home| *home != feed.home);
                to_close.extend(topic.members.values().cloned());
                if std::mem::take(&mut topic.is_linked) {
                    subscriptions.count(family, name, 0, -1);
                }
                !topic.is_over()
            });
        }
        close_all(to_close, &format!("the connection for subscriptions to {} is lost: {error}", feed.home));
        for step in feed.take_owed() {
            if let Step::Change(change) = step {
                self.refuse_change(&change, Refusal::StoreDown);
            }
        }
    }

    /// A client is gone.
    fn forget_member(self: &Rc<Self>, member: &Rc<Member>) {
        member.is_gone.set(true);
        member.ear.note([0; 3]);
        let subscriptions = &self.channels.subscriptions;
        let wanted = member.wanted.take();
        for (family, names) in Family::ALL.into_iter().zip(wanted) {
            for name in names {
                {
                    let mut topics = subscriptions.topics.borrow_mut();
                    let Some(topic) = topics[family as usize].get_mut(&name) else { continue };
                    topic.wanted -= 1;
                    subscriptions.part(topic, family, &name, member);
                }
                self.leave_unwanted(family, name);
            }
        }
    }

    /// Ends the subscription to a name that nobody wants any more; after a turn for all of these.
    fn leave_unwanted(self: &Rc<Self>, family: Family, name: Bytes) {
        let subscriptions = &self.channels.subscriptions;
        let homes = {
            let mut topics = subscriptions.topics.borrow_mut();
            let unwanted = topics[family as usize].get(&name).filter(|topic| topic.wanted == 0);
            let Some(topic) = unwanted else { return };
            let feeds = subscriptions.feeds.borrow();
            let homes: Vec<_> = topic.homes.iter().filter(|home| feeds.contains_key(*home)).cloned().collect();
            if homes.is_empty() {
                // Its connections are gone, and the subscription with them.
                if topic.is_linked {
                    subscriptions.count(family, &name, 0, -1);
                }
                topics[family as usize].remove(&name);
                return;
            }
            homes
        };
        if !subscriptions.is_turning.get() {
            self.send_change(self.new_change(None, None, family, Verb::Leave, name), &homes);
        }
    }

    /// After a turn: what was given up meanwhile.
    pub(super) fn tidy_subscriptions(self: &Rc<Self>) {
        let unwanted: Vec<(Family, Bytes)> = {
            let topics = self.channels.subscriptions.topics.borrow();
            let of = |family: Family| {
                let names = topics[family as usize].iter().filter(|(_, topic)| topic.wanted == 0);
                names.map(move |(name, _)| (family, name.clone()))
            };
            Family::ALL.into_iter().flat_map(of).collect()
        };
        for (family, name) in unwanted {
            self.leave_unwanted(family, name);
        }
    }

    /// Subscribes to notifications of keys on primaries that came since, and ends that where a node is none any more: a replica
    /// tells of the same changes. At each tick.
    pub(super) fn follow_primaries(self: &Rc<Self>) {
        let subscriptions = &self.channels.subscriptions;
        if subscriptions.side.get() == Side::Standalone || subscriptions.is_turning.get() {
            return;
        }
        let primaries = self.stores.primaries();
        let before = subscriptions.primaries.replace(primaries.clone());
        if before == primaries {
            return;
        }
        let of_keys = |(family, name): &(Family, Bytes)| *family != Family::Shard && is_of_keys(name);
        for (family, name) in subscriptions.names().into_iter().filter(of_keys) {
            for feed in before.iter().filter(|address| !primaries.contains(address)) {
                if let Some(feed) = subscriptions.feeds.borrow().get(feed) {
                    feed.change(family, Verb::Leave, &name, Step::Alive);
                }
            }
            subscriptions.set_homes(family, &name, primaries.clone());
            let new: Vec<_> = primaries.iter().filter(|address| !before.contains(address)).cloned().collect();
            if !new.is_empty() {
                self.send_change(self.new_change(None, None, family, Verb::Join, name), &new);
            }
        }
    }
}

fn close_all(members: Vec<Rc<Member>>, reason: &str) {
    let ids: BTreeSet<u64> = members.iter().map(|member| member.id).collect();
    if !ids.is_empty() {
        tracing::warn!(clients = ids.len(), reason, "subscribers are closed, because they may have missed messages");
    }
    for member in members {
        member.ear.close();
    }
}

/// Whether a channel or pattern is one on which nodes tell of their own keys.
fn is_of_keys(name: &[u8]) -> bool {
    name.starts_with(b"__keyspace@") || name.starts_with(b"__keyevent@") || name.starts_with(b"__key*")
}
