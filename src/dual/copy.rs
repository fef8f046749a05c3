//! One key, value and TTL, from store to store, as its lane orders it: leader to follower, or, at a first touch, the other way.

use std::rc::Rc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use crate::dual::effect;
use crate::dual::engine::{EngineWaiter, Inner};
use crate::dual::gate::Ticket;
use crate::dual::lane::{Fetched, Mode, Outcome};
use crate::dual::message::Way;
use crate::resp;
use crate::resp::reply;
use crate::routing::{Key, Plan, Side};
use crate::store::{LinkError, StoreSide};

/// Repairs begun at a tick (every 50 ms), so that a follower that comes back is not drowned.
const REPAIRS_PER_TICK: usize = 200;

/// An answer that is still to come.
type Answer = oneshot::Receiver<Result<Bytes, LinkError>>;

/// Whether RESTORE may overwrite.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Replace {
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

/// What is known of a key whose copy is in flight.
pub(super) enum Dumped {
    Absent,
    /// Payload and expiry time.
    Payload(Bytes, i64),
    /// The follower has it already.
    Equal,
    /// Piece by piece, and this came of it.
    Copied(Outcome),
}

/// Whether a server does not read what the other one's DUMP says: it is older.
fn is_foreign_dump(reply: &[u8]) -> bool {
    let text = reply::error_text(reply);
    text.starts_with(b"ERR DUMP payload version") || text.starts_with(b"ERR Bad data format")
}

impl Inner {
    /// Notes how a job wants a key to be copied.
    pub(super) fn choose_way(&self, key: &Key, way: Way) {
        if way != Way::Whole {
            self.ways.borrow_mut().insert(key.clone(), way);
        }
    }

    fn way_of(&self, key: &Key) -> Way {
        if self.copying.is_by_type() {
            return Way::InPieces;
        }
        self.ways.borrow().get(key).copied().unwrap_or(Way::Whole)
    }

    pub(super) fn dump(self: &Rc<Self>, key: Key) {
        let Some((plan, ticket)) = self.count_copy(&key) else { return };
        let (way, generation) = (self.way_of(&key), plan.generation());
        let engine = self.clone();
        // All are appended now, behind whatever was sent before; only the answers are awaited. While the lane copies a key it
        // sends no effects of it, so the follower's answer too is of one moment.
        let asked = (way != Way::InPieces).then(|| self.ask_dump(plan.leader, &key));
        let compared = (way == Way::IfDifferent).then(|| self.ask_dump(plan.leader.other(), &key));
        if asked.is_none() {
            self.lane.borrow_mut().hold_copy(&key);
        }
        tokio::task::spawn_local(async move {
            let outcome = match asked {
                Some(asked) => engine.keep_dump(&key, plan.leader, asked, compared).await,
                None => {
                    let copied = engine.copy_in_pieces(&key, plan.leader, Replace::Yes).await;
                    engine.keep(&key, Dumped::Copied(copied.outcome()));
                    Outcome::Done
                }
            };
            engine.with_lane(|lane, orders| lane.dumped(&key, outcome, generation, orders));
            engine.pause.lanes.leave(ticket);
        });
    }

    fn ask_dump(self: &Rc<Self>, side: Side, key: &Key) -> (Answer, Answer) {
        let ask = |command: &[u8]| {
            let (sender, receiver) = oneshot::channel();
            let addressed = self.address(side, (key, 1), effect::command(&[command, &key.name]));
            self.send(addressed, None, EngineWaiter::Once { sender, may_be_refused: false });
            receiver
        };
        (ask(b"DUMP"), ask(b"PEXPIRETIME"))
    }

    fn keep(&self, key: &Key, dumped: Dumped) {
        self.dumps.borrow_mut().insert(key.clone(), dumped);
    }

    /// A store that is full refuses thousands of copies a second.
    fn complain(&self, key: Option<&Key>, reply: &[u8], what: &'static str) {
        let Some(left_out) = self.complaints.is_time(Instant::now()) else { return };
        let table = self.table.borrow();
        let route = key.map(|key| table.route_of(&key.name).0.name.to_string());
        let reply = String::from_utf8_lossy(&reply[..reply.len().min(120)]);
        tracing::warn!(route, %reply, left_out, "{what}");
    }

    /// Payload and expiry time, `None` for a key that is not there; an error for what could not be read.
    async fn read_dump(&self, (payload, expiry): (Answer, Answer)) -> Result<Option<(Bytes, i64)>, ()> {
        let (Ok(Ok(payload)), Ok(Ok(expiry))) = (payload.await, expiry.await) else { return Err(()) };
        if reply::is_error(&payload) {
            self.complain(None, &payload, "DUMP was refused; the key stays diverged and is tried again each second");
            return Err(());
        }
        match (reply::is_null(&payload), reply::bulk(&payload), reply::integer(&expiry)) {
            (true, ..) => Ok(None),
            // It expired between the two: absent is right.
            (_, _, Some(-2)) => Ok(None),
            (_, Some(body), Some(at)) => Ok(Some((payload.slice_ref(body), at))),
            _ => Err(()),
        }
    }

    async fn keep_dump(
        self: &Rc<Self>,
        key: &Key,
        leader: Side,
        asked: (Answer, Answer),
        compared: Option<(Answer, Answer)>,
    ) -> Outcome {
        let Ok(dump) = self.read_dump(asked).await else { return Outcome::Doubt };
        if let Some(compared) = compared
            && self.read_dump(compared).await.is_ok_and(|follower| follower == dump)
        {
            self.copying.count_equal();
            self.keep(key, Dumped::Equal);
            return Outcome::Done;
        }
        let dumped = match dump {
            None => Dumped::Absent,
            Some((payload, _)) if self.copying.is_large(payload.len() as u64) => {
                drop(payload);
                self.lane.borrow_mut().hold_copy(key);
                Dumped::Copied(self.copy_in_pieces(key, leader, Replace::Yes).await.outcome())
            }
            Some((payload, at)) => Dumped::Payload(payload, at),
        };
        self.keep(key, dumped);
        Outcome::Done
    }

    pub(super) fn restore(self: &Rc<Self>, key: Key) {
        let Some((plan, ticket)) = self.count_copy(&key) else { return };
        self.recent.note(&key.name);
        let generation = plan.generation();
        let known = self.dumps.borrow_mut().remove(&key);
        let command = match known {
            Some(Dumped::Payload(payload, expiry)) => Ok(restore_command(&key.name, &payload, expiry, Replace::Yes)),
            Some(Dumped::Absent) => Ok(effect::command(&[b"DEL", &key.name])),
            Some(Dumped::Equal) => Err(Outcome::Done),
            Some(Dumped::Copied(outcome)) => Err(outcome),
            None => Err(Outcome::Doubt),
        };
        let asked = command.map(|command| {
            let (sender, receiver) = oneshot::channel();
            self.copying.count(command.len());
            self.copying.count_key();
            self.tally.add_write(plan.leader.other());
            self.send(
                self.address(plan.leader.other(), (&key, 1), command),
                None,
                EngineWaiter::Once { sender, may_be_refused: false },
            );
            receiver
        });
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            let outcome = match asked {
                Ok(answer) => engine.restored(&key, plan.leader, answer).await,
                Err(outcome) => outcome,
            };
            engine.recent.note(&key.name);
            engine.with_lane(|lane, orders| lane.restored(&key, outcome, generation, orders));
            engine.pause.lanes.leave(ticket);
        });
    }

    async fn restored(self: &Rc<Self>, key: &Key, leader: Side, answer: Answer) -> Outcome {
        match answer.await {
            Ok(Ok(reply)) if !reply::is_error(&reply) => Outcome::Done,
            Ok(Ok(reply)) if is_foreign_dump(&reply) => {
                self.note_foreign_dump(leader.other(), &reply);
                self.lane.borrow_mut().hold_copy(key);
                self.copy_in_pieces(key, leader, Replace::Yes).await.outcome()
            }
            Ok(Ok(reply)) => {
                let what = "the follower refused a copy; the key stays diverged and is tried again each second";
                self.complain(Some(key), &reply, what);
                Outcome::Refused
            }
            _ => {
                self.tally.note_lost();
                Outcome::Doubt
            }
        }
    }

    fn note_foreign_dump(&self, side: Side, reply: &[u8]) {
        if self.copying.refuse_dump() {
            tracing::warn!(%side, reply = %String::from_utf8_lossy(reply), "the stores are of different versions and one does not read the other's DUMP; keys are copied by their type from now on, which is slower");
        }
    }

    /// First touch: DUMP on the follower, RESTORE without REPLACE on the leader.
    pub(super) fn fetch(self: &Rc<Self>, key: Key) {
        let Some((plan, ticket)) = self.count_copy(&key) else { return };
        let generation = plan.generation();
        let in_pieces = self.way_of(&key) == Way::InPieces;
        let asked = (!in_pieces).then(|| self.ask_dump(plan.leader.other(), &key));
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            let fetched = match asked {
                Some(asked) => engine.bring_over(&key, plan.leader, asked).await,
                None => engine.copy_in_pieces(&key, plan.leader.other(), Replace::No).await.fetched(),
            };
            engine.recent.note(&key.name);
            engine.with_lane(|lane, orders| lane.fetched(&key, fetched, generation, orders));
            engine.pause.lanes.leave(ticket);
        });
    }

    async fn bring_over(self: &Rc<Self>, key: &Key, leader: Side, asked: (Answer, Answer)) -> Fetched {
        let Ok(dump) = self.read_dump(asked).await else { return Fetched::Failed };
        let Some((payload, expiry)) = dump else { return Fetched::Unproven };
        if self.copying.is_large(payload.len() as u64) {
            drop(payload);
            return self.copy_in_pieces(key, leader.other(), Replace::No).await.fetched();
        }
        let command = restore_command(&key.name, &payload, expiry, Replace::No);
        let (sender, receiver) = oneshot::channel();
        self.copying.count(command.len());
        self.copying.count_key();
        self.tally.add_write(leader);
        self.recent.note(&key.name);
        self.send(self.address(leader, (key, 1), command), None, EngineWaiter::Once { sender, may_be_refused: false });
        match receiver.await {
            Ok(Ok(reply)) if !reply::is_error(&reply) => Fetched::Brought,
            Ok(Ok(reply)) if resp::reply::error_word(&reply) == b"BUSYKEY" => Fetched::Unproven,
            Ok(Ok(reply)) if is_foreign_dump(&reply) => {
                self.note_foreign_dump(leader, &reply);
                self.copy_in_pieces(key, leader.other(), Replace::No).await.fetched()
            }
            Ok(Ok(reply)) => {
                self.complain(
                    Some(key),
                    &reply,
                    "the leader refused a key at its first touch; the command on it is refused",
                );
                Fetched::Failed
            }
            _ => {
                self.tally.note_lost();
                Fetched::Failed
            }
        }
    }

    /// Copies count in the lanes' gate. `None`: the route lost its follower, so there is nothing to copy to.
    pub(super) fn count_copy(self: &Rc<Self>, key: &Key) -> Option<(Plan, Ticket)> {
        let plan = Plan::of_key(&self.table.borrow(), key);
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
        if !is_wanted || !self.pause.may_repair() || !self.stores.fence().is_holder() {
            return;
        }
        let table = self.table.borrow().clone();
        let mode = |key: &Key| {
            let plan = Plan::of_key(&table, key);
            plan.follower.map(|_| Mode::of(&plan))
        };
        self.with_lane(|lane, orders| lane.repair(REPAIRS_PER_TICK, mode, orders));
    }
}
