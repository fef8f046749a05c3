//! The flip of `pubsub` as a worker's subscribers see it: publishers wait, everything that the old side still sends has come,
//! every name is subscribed to on the new side, and only then is anything published there. So no message is lost or doubled.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::dual::engine::{Inner, Target};
use crate::dual::feed::{Feed, Step};
use crate::dual::push::{Family, OWN_CHANNELS, Push, Verb};
use crate::dual::subscriptions::Ear;
use crate::dual::tally::Wrote;
use crate::resp::refusal::Refusal;
use crate::resp::reply::Protocol;
use crate::routing::Side;
use crate::store::LinkError;

/// Between two tries to subscribe on the other side.
const AGAIN: Duration = Duration::from_millis(50);
/// How long the nodes of a cluster get to pass on what was published, and a store to subscribe to everything.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a worker's subscribers are to be.
pub(super) struct Turn {
    side: Cell<Side>,
    done: RefCell<Option<oneshot::Sender<()>>>,
    is_running: Cell<bool>,
}

impl Turn {
    pub fn new(side: Side) -> Self {
        Self { side: Cell::new(side), done: RefCell::default(), is_running: Cell::new(false) }
    }
}

impl Inner {
    /// Brings all subscriptions to a side; `done` is told when they are there. A later turn takes the place of this one.
    pub(super) fn turn(self: &Rc<Self>, side: Side, done: oneshot::Sender<()>) {
        let turn = &self.channels.turn;
        turn.side.set(side);
        *turn.done.borrow_mut() = Some(done);
        if turn.is_running.replace(true) {
            return;
        }
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            engine.turn_until_there().await;
            let turn = &engine.channels.turn;
            turn.is_running.set(false);
            if let Some(done) = turn.done.take() {
                // The adoption may have given up by now.
                let _ = done.send(());
            }
        });
    }

    async fn turn_until_there(self: &Rc<Self>) {
        let (turn, subscriptions) = (&self.channels.turn, &self.channels.subscriptions);
        while subscriptions.side.get() != turn.side.get() {
            subscriptions.set_turning(true);
            let gone_over = self.go_over(turn.side.get()).await;
            subscriptions.set_turning(false);
            self.tidy_subscriptions();
            if let Err(error) = gone_over {
                // The old side still has everything; the adoption gives up if the new one does not come.
                tracing::warn!(%error, side = %turn.side.get(), "subscriptions cannot go over yet; trying again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    async fn go_over(self: &Rc<Self>, side: Side) -> Result<(), LinkError> {
        let subscriptions = &self.channels.subscriptions;
        let old: Vec<Rc<Feed>> = subscriptions.feeds.borrow().values().cloned().collect();
        marked(&old).await?;
        if side == Side::Standalone && subscriptions.has_channels() {
            self.wait_for_bus().await?;
        }
        let carried = self.carry(side)?;
        let is_refused = Rc::new(Cell::new(false));
        for (family, name, homes) in &carried.names {
            for home in homes {
                carried.feeds[home].change(*family, Verb::Join, name, Step::Carried(is_refused.clone()));
            }
        }
        let feeds: Vec<Rc<Feed>> = carried.feeds.values().cloned().collect();
        let mut subscribed = marked(&feeds).await;
        if is_refused.get() {
            subscribed = Err(LinkError::Down("a subscription is refused".into()));
        }
        if let Err(error) = subscribed {
            feeds.iter().for_each(|feed| feed.close());
            return Err(error);
        }
        for (family, name, homes) in carried.names {
            subscriptions.set_homes(family, &name, homes);
        }
        let old = subscriptions.feeds.replace(carried.feeds);
        old.values().for_each(|feed| feed.close());
        subscriptions.side.set(side);
        Ok(())
    }

    /// What is to be subscribed to on a side, and the connections for it.
    fn carry(self: &Rc<Self>, side: Side) -> Result<Carried, LinkError> {
        let unknown = || LinkError::Down("the cluster's layout is not known".into());
        let mut carried = Carried { names: Vec::new(), feeds: HashMap::new() };
        for (family, name) in self.channels.subscriptions.names() {
            let homes = self.homes_on(side, family, &name).ok_or_else(unknown)?;
            for home in &homes {
                if !carried.feeds.contains_key(home) {
                    let endpoint = self.home_endpoint(side, home).ok_or_else(unknown)?;
                    carried.feeds.insert(home.clone(), Feed::start(self, endpoint));
                }
            }
            carried.names.push((family, name, homes));
        }
        Ok(carried)
    }

    /// Waits until all that was published on any node of the cluster has come to where this worker's channels are. The nodes
    /// pass messages on behind their answer to PUBLISH, each in its order: so a last one from every node comes after all others.
    async fn wait_for_bus(self: &Rc<Self>) -> Result<(), LinkError> {
        let channel = format!("{OWN_CHANNELS}{}:{}", self.worker, fastrand::u64(..)).into_bytes();
        let nodes = self.stores.primaries();
        let end = Rc::new(BusEnd { owed: Cell::new(nodes.len()), heard: Notify::new() });
        let member = self.new_member(end.clone());
        let homes = self.homes_on(Side::Cluster, Family::Channel, &channel);
        let homes = homes.ok_or_else(|| LinkError::Down("the cluster's layout is not known".into()))?;
        let passed = async {
            member.join_now(channel.clone().into(), homes);
            member.settled().await;
            for node in nodes {
                let publish = crate::dual::effect::command(&[b"PUBLISH", &channel, node.as_bytes()]);
                self.call(&Target::Node(node), &publish, 1, Wrote::default(), Protocol::Resp2, false).await?;
            }
            while end.owed.get() > 0 {
                end.heard.notified().await;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, passed).await.map_err(|_| LinkError::TimedOut)?
    }
}

struct Carried {
    names: Vec<(Family, bytes::Bytes, Vec<Arc<str>>)>,
    feeds: HashMap<Arc<str>, Rc<Feed>>,
}

/// Hears the last message from every node.
struct BusEnd {
    owed: Cell<usize>,
    heard: Notify,
}

impl Ear for BusEnd {
    fn hear(&self, push: &Push) {
        if push.is_message() {
            self.owed.set(self.owed.get().saturating_sub(1));
            self.heard.notify_one();
        }
    }

    fn note(&self, _subscriptions: [usize; 3]) {}

    // The wait ends by its own time.
    fn refuse(&self, _refusal: Refusal) {}

    fn close(&self) {}
}

/// Waits until everything that was sent to the feeds so far is answered.
pub(super) async fn marked(feeds: &[Rc<Feed>]) -> Result<(), LinkError> {
    let mark = |feed: &Rc<Feed>| {
        let (told, wait) = oneshot::channel();
        feed.mark(Step::Mark(told));
        wait
    };
    let waits: Vec<_> = feeds.iter().map(mark).collect();
    let all = async {
        for wait in waits {
            wait.await.map_err(|_| LinkError::Lost)?;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, all).await.map_err(|_| LinkError::TimedOut)?
}
