//! One key, value and TTL, from store to store, as its lane orders it: leader to follower, or, at a first touch, the other way.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use crate::dual::effect;
use crate::dual::engine::{EngineWaiter, Inner};
use crate::dual::gate::Ticket;
use crate::dual::lane::{Fetched, Mode, Outcome};
use crate::resp;
use crate::resp::reply;
use crate::routing::{Plan, Side};
use crate::store::{LinkError, StoreSide};

/// Repairs begun at a tick (every 50 ms), so that a follower that comes back is not drowned.
const REPAIRS_PER_TICK: usize = 200;

/// An answer that is still to come.
type Answer = oneshot::Receiver<Result<Bytes, LinkError>>;

/// Whether RESTORE may overwrite.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replace {
    Yes,
    No,
}

fn restore_command(key: &[u8], payload: &[u8], expiry: i64, replace: Replace) -> Bytes {
    let mut digits = itoa::Buffer::new();
    let at = digits.format(expiry.max(0)).as_bytes();
    let mut args: Vec<&[u8]> = vec![b"RESTORE", key, at, payload, b"ABSTTL"];
    if replace == Replace::Yes {
        args.push(b"REPLACE");
    }
    let mut out = BytesMut::with_capacity(payload.len() + key.len() + 96);
    resp::write::command(&mut out, &args);
    out.freeze()
}

impl Inner {
    pub(super) fn dump(self: &Rc<Self>, key: Bytes) {
        let Some((plan, ticket)) = self.count_copy(&key) else { return };
        let generation = plan.generation();
        let engine = self.clone();
        // Both are appended now, behind whatever was sent before; only the answers are awaited.
        let (payload, expiry) = self.ask_dump(plan.leader, &key);
        tokio::task::spawn_local(async move {
            let outcome = engine.keep_dump(&key, payload, expiry).await;
            let mut orders = Vec::new();
            engine.lane.borrow_mut().dumped(&key, outcome, generation, &mut orders);
            engine.carry_out(orders);
            engine.pause.lanes.leave(ticket);
        });
    }

    pub(super) fn ask_dump(self: &Rc<Self>, side: Side, key: &[u8]) -> (Answer, Answer) {
        let ask = |command: &[u8]| {
            let (sender, receiver) = oneshot::channel();
            self.side_call(side, (key, 1), &effect::command(&[command, key]), None, EngineWaiter::Once(sender));
            receiver
        };
        (ask(b"DUMP"), ask(b"PEXPIRETIME"))
    }

    pub(super) async fn keep_dump(&self, key: &Bytes, payload: Answer, expiry: Answer) -> Outcome {
        let (Ok(Ok(payload)), Ok(Ok(expiry))) = (payload.await, expiry.await) else { return Outcome::Doubt };
        if reply::is_error(&payload) {
            tracing::warn!(reply = %String::from_utf8_lossy(&payload[..payload.len().min(120)]), "the leader refused DUMP; the key stays diverged");
            return Outcome::Doubt;
        }
        let dump = match (reply::is_null(&payload), reply::bulk(&payload), reply::integer(&expiry)) {
            (true, ..) => None,
            // It expired between the two: absent is right.
            (_, _, Some(-2)) => None,
            (_, Some(body), Some(at)) => Some((payload.slice_ref(body), at)),
            _ => return Outcome::Doubt,
        };
        self.dumps.borrow_mut().insert(key.clone(), dump);
        Outcome::Done
    }

    pub(super) fn restore(self: &Rc<Self>, key: Bytes) {
        let Some((plan, ticket)) = self.count_copy(&key) else { return };
        let generation = plan.generation();
        let command = match self.dumps.borrow_mut().remove(&key).flatten() {
            Some((payload, expiry)) => restore_command(&key, &payload, expiry, Replace::Yes),
            None => effect::command(&[b"DEL", &key]),
        };
        let (sender, receiver) = oneshot::channel();
        self.side_call(plan.leader.other(), (&key, 1), &command, None, EngineWaiter::Once(sender));
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            let outcome = match receiver.await {
                Ok(Ok(reply)) if !reply::is_error(&reply) => Outcome::Done,
                Ok(Ok(reply)) => {
                    tracing::warn!(reply = %String::from_utf8_lossy(&reply), side = %plan.leader.other(), "the follower refused a copy; the key stays diverged");
                    Outcome::Refused
                }
                _ => Outcome::Doubt,
            };
            let mut orders = Vec::new();
            engine.lane.borrow_mut().restored(&key, outcome, generation, &mut orders);
            engine.carry_out(orders);
            engine.pause.lanes.leave(ticket);
        });
    }

    /// First touch: DUMP on the follower, RESTORE without REPLACE on the leader.
    pub(super) fn fetch(self: &Rc<Self>, key: Bytes) {
        let Some((plan, ticket)) = self.count_copy(&key) else { return };
        let generation = plan.generation();
        let (payload, expiry) = self.ask_dump(plan.leader.other(), &key);
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            let fetched = engine.bring_over(&key, plan.leader, payload, expiry).await;
            let mut orders = Vec::new();
            engine.lane.borrow_mut().fetched(&key, fetched, generation, &mut orders);
            engine.carry_out(orders);
            engine.pause.lanes.leave(ticket);
        });
    }

    pub(super) async fn bring_over(
        self: &Rc<Self>,
        key: &Bytes,
        leader: Side,
        payload: Answer,
        expiry: Answer,
    ) -> Fetched {
        if self.keep_dump(key, payload, expiry).await != Outcome::Done {
            return Fetched::Failed;
        }
        let Some((payload, expiry)) = self.dumps.borrow_mut().remove(key).flatten() else { return Fetched::Unproven };
        let command = restore_command(key, &payload, expiry, Replace::No);
        let (sender, receiver) = oneshot::channel();
        self.side_call(leader, (key, 1), &command, None, EngineWaiter::Once(sender));
        match receiver.await {
            Ok(Ok(reply)) if !reply::is_error(&reply) => Fetched::Brought,
            Ok(Ok(reply)) if resp::reply::error_word(&reply) == b"BUSYKEY" => Fetched::Unproven,
            Ok(Ok(reply)) => {
                tracing::warn!(reply = %String::from_utf8_lossy(&reply), "the leader refused a key at its first touch");
                Fetched::Failed
            }
            _ => Fetched::Failed,
        }
    }

    /// Copies count in the lanes' gate. `None`: the route lost its follower, so there is nothing to copy to.
    pub(super) fn count_copy(self: &Rc<Self>, key: &Bytes) -> Option<(Plan, Ticket)> {
        let plan = Plan::of(&self.table.borrow(), key);
        if plan.follower.is_none() {
            self.lane.borrow_mut().abandon(key);
            return None;
        }
        let ticket = self.pause.lanes.enter(plan.route_hash);
        Some((plan, ticket))
    }

    /// Begins repairs where both stores can be reached.
    pub(super) fn repair(self: &Rc<Self>) {
        let can_reach = |side| self.stores.is_up(side);
        let is_wanted =
            self.lane.borrow().sizes().1 > 0 && can_reach(StoreSide::Standalone) && can_reach(StoreSide::Cluster);
        if !is_wanted || !self.pause.may_repair() {
            return;
        }
        let table = self.table.borrow().clone();
        let mut orders = Vec::new();
        let mode = |key: &Bytes| {
            let plan = Plan::of(&table, key);
            plan.follower.map(|_| Mode::of(&plan))
        };
        self.lane.borrow_mut().repair(REPAIRS_PER_TICK, mode, &mut orders);
        self.carry_out(orders);
    }
}
