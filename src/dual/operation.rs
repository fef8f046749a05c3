//! An operation in a lane, from its arrival to the follower's answer: carries out what the lane orders and tells it what
//! the stores answered.

use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::command::{Access, CommandSpec};
use crate::dual::effect::{self, Effect, Facts, Form, Question};
use crate::dual::engine::{Caller, EngineWaiter, Inner, ReplyTo, refusal_of};
use crate::dual::gate::Ticket;
use crate::dual::lane::{AskForCopy, Lane, Mode, Order, Outcome, Work};
use crate::dual::message::{Message, RemoteOp};
use crate::dual::passing::Asker;
use crate::dual::shadow::{self, Shadow};
use crate::resp::refusal::Refusal;
use crate::resp::reply::{self, Protocol};
use crate::resp::request::Request;
use crate::routing::{DualState, Key, Route, Side, Table};
use crate::store::{LinkError, Reply};

/// See the module.
pub struct LaneOp {
    pub(super) key: Key,
    /// None for a copy, a hold or a touch.
    pub(super) command: Option<LaneCommand>,
    pub(super) follow: bool,
    /// Its effect leaves a whole value.
    pub(super) whole: bool,
    pub(super) leader: Side,
    pub(super) generation: u32,
    /// Writes in the strict modes answer when both have it: the leader's reply waits here.
    pub(super) holds_reply: bool,
    pub(super) led: Option<Result<Bytes, LinkError>>,
    /// Answers of the store that is asked now, to the command and to the questions behind it.
    pub(super) awaited: usize,
    pub(super) facts: Facts,
    pub(super) effect: Option<Effect>,
    pub(super) followed: Outcome,
    pub(super) to: LaneReply,
    pub(super) ticket: Ticket,
    /// The lane will say `Reply` for it.
    pub(super) in_lane: bool,
}

/// What an operation has to know of its key's route, without holding on to the table.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub(super) route_hash: u64,
    pub(super) leader: Side,
    pub(super) follower: Option<Side>,
    pub(super) mode: Mode,
    generation: u32,
}

impl Standing {
    /// That of a key whose database does not move.
    const APART: Self = Self {
        route_hash: 0,
        leader: Side::Standalone,
        follower: None,
        mode: Mode::Mirror { synced: false },
        generation: 0,
    };

    /// `route_hash`: as [`Table::route_of`] gives it beside the route.
    pub(super) fn of(table: &Table, route: &Route, route_hash: u64) -> Self {
        let dual = route.dual.as_deref();
        Self {
            route_hash,
            leader: route.phase.leader(),
            follower: route.phase.follower(),
            mode: Mode::in_phase(route.phase, table.ack(), dual),
            generation: dual.map_or(0, DualState::generation),
        }
    }
}

impl LaneOp {
    /// One that nothing was sent of.
    fn new(key: Key, standing: Standing, to: LaneReply, ticket: Ticket) -> Self {
        Self {
            key,
            command: None,
            follow: false,
            whole: false,
            leader: standing.leader,
            generation: standing.generation,
            holds_reply: false,
            led: None,
            awaited: 0,
            facts: Facts::default(),
            effect: None,
            followed: Outcome::Done,
            to,
            ticket,
            in_lane: false,
        }
    }

    /// One that a mirrored write becomes which has gone the short way so far: the leader has answered it, `led`.
    pub(super) fn of_passing(
        key: Key,
        standing: Standing,
        ticket: Ticket,
        command: LaneCommand,
        led: Result<Bytes, LinkError>,
    ) -> Self {
        let led = Some(led);
        let (command, to) = (Some(command), LaneReply::Nobody);
        Self { command, follow: true, whole: true, led, ..Self::new(key, standing, to, ticket) }
    }

    /// Its effect, the request itself, is at the follower.
    pub(super) fn await_effect(&mut self) {
        self.effect = Some(Effect { bytes: Bytes::new(), answer: None, expiry: None });
        self.awaited = 1;
    }
}

/// A client's command with one key.
pub struct LaneCommand {
    pub(super) request: Request,
    pub(super) spec: &'static CommandSpec,
    /// Which argument the key is.
    pub(super) first: usize,
    pub(super) form: Form,
    pub(super) protocol: Protocol,
    pub(super) shadow: Shadow,
}

/// Who hears of the end of an operation.
pub enum LaneReply {
    Local(ReplyTo),
    Remote { worker: usize, id: usize },
    Done(oneshot::Sender<Result<(), Refusal>>),
    Granted(Option<oneshot::Sender<Result<(), Refusal>>>, Option<oneshot::Sender<Result<(), Refusal>>>),
    Nobody,
}

impl Inner {
    /// Sends a request of a dual route, whose key is the argument `first`, to the lane of the key, here or on another worker.
    pub(super) fn to_lane(
        self: &Rc<Self>,
        (request, spec, first): (Request, &'static CommandSpec, usize),
        standing: Standing,
        caller: Caller,
        ticket: Ticket,
    ) {
        let Caller { db, protocol, to } = caller;
        let owner = self.peers.lane_of(request.arg(first));
        if owner == self.worker {
            self.pause.sessions.leave(ticket);
            return self.arrive((request, spec, first), db, standing, protocol, Asker::Here(to));
        }
        let key = Key { name: request.arg_bytes(first), db };
        let id = self.remote.borrow_mut().insert((to, ticket));
        let op = RemoteOp { request, spec, first, key, protocol, worker: self.worker, id };
        self.peers.send(owner, Message::Lane(Box::new(op)));
    }

    /// A request of another worker arrives in the lane of its key.
    pub(super) fn arrive_from_afar(self: &Rc<Self>, op: RemoteOp) {
        let RemoteOp { request, spec, first, key, protocol, worker, id } = op;
        let standing = self.standing(&key);
        self.arrive((request, spec, first), key.db, standing, protocol, Asker::Afar { worker, id });
    }

    fn arrive(
        self: &Rc<Self>,
        (request, spec, first): (Request, &'static CommandSpec, usize),
        db: u32,
        standing: Standing,
        protocol: Protocol,
        asker: Asker,
    ) {
        let outline = effect::outline(spec, &request);
        let is_synced = matches!(standing.mode, Mode::Mirror { synced: true } | Mode::Both { synced: true });
        let is_shadowed =
            outline.work == Work::Read && is_synced && self.shadowing.is_due() && shadow::likeness(spec).is_some();
        let (request, asker, shadow) = if is_shadowed {
            (request, asker, Shadow::First)
        } else {
            match self.pass((request, first), db, (&standing, outline), protocol, asker) {
                Ok(()) => return,
                Err((request, asker)) => (request, asker, Shadow::No),
            }
        };
        let key = Key { name: request.arg_bytes(first), db };
        let command = LaneCommand { request, spec, first, form: outline.form, protocol, shadow };
        self.enter_lane(standing, key, Some(command), outline.work, asker.into());
    }

    /// How the route of a key stands now.
    pub(super) fn standing(&self, key: &Key) -> Standing {
        let table = self.table.borrow();
        if !table.databases().is_moving(key.db) {
            return Standing::APART;
        }
        let (route, route_hash) = table.route_of(&key.name);
        Standing::of(&table, route, route_hash)
    }

    pub(super) fn enter_lane(
        self: &Rc<Self>,
        standing: Standing,
        key: Key,
        command: Option<LaneCommand>,
        work: Work,
        to: LaneReply,
    ) {
        let ticket = self.pause.lanes.enter(standing.route_hash);
        let whole = matches!(work, Work::Overwrite | Work::Resolve);
        let op = {
            let mut ops = self.ops.borrow_mut();
            ops.insert(LaneOp { command, whole, ..LaneOp::new(key, standing, to, ticket) })
        };
        self.with_lane(|lane, orders| {
            let entry = &mut self.ops.borrow_mut()[op];
            if lane.arrive(&entry.key, op, work, standing.mode, standing.generation, orders) {
                (entry.in_lane, entry.holds_reply) = (true, true);
            }
        });
    }

    /// Tells the lane something, and does what it orders, in its order.
    pub(super) fn with_lane<T>(self: &Rc<Self>, tell: impl FnOnce(&mut Lane<usize>, &mut Vec<Order<usize>>) -> T) -> T {
        // What is done may come here again, and then finds an empty list.
        let mut orders = self.spare.take();
        let told = tell(&mut self.lane.borrow_mut(), &mut orders);
        orders.reverse();
        while let Some(order) = orders.pop() {
            self.carry_out(order);
        }
        self.spare.set(orders);
        told
    }

    fn carry_out(self: &Rc<Self>, order: Order<usize>) {
        match order {
            Order::Lead { op, follow } => self.lead(op, follow),
            Order::Follow { op } => self.follow(op),
            Order::Dump { key } => self.dump(key),
            Order::Restore { key } => self.restore(key),
            Order::Fetch { key } => self.fetch(key),
            Order::Journal { key } => self.write_journal(key),
            Order::Reply { op } => self.finish(op, Ok(())),
            Order::Unavailable { op } => self.finish(op, Err(Refusal::StoreDown)),
            Order::Granted { op } => self.grant(op),
            Order::Diverged { key } => self.count_divergence(&key, 1),
            Order::Repaired { key } => {
                self.count_divergence(&key, -1);
                self.journal.remove(&key);
            }
        }
    }

    pub(super) fn lead(self: &Rc<Self>, op: usize, follow: bool) {
        let (addressed, protocol, questions) = {
            let mut ops = self.ops.borrow_mut();
            let entry = &mut ops[op];
            let Some(command) = &entry.command else { return };
            let questions = if follow { command.form.questions() } else { &[] };
            (entry.follow, entry.awaited) = (follow, 1 + questions.len());
            if command.spec.access == Access::Write {
                self.tally.note(entry.leader, command.spec);
                self.recent.note(&entry.key.name);
            }
            let request = command.request.bytes().clone();
            (self.address(entry.leader, (&entry.key, command.first), request), command.protocol, questions)
        };
        self.send(addressed, Some(protocol), EngineWaiter::Led { engine: self.clone(), op });
        for question in questions {
            // The operation is there: it awaits the answer to this.
            let addressed = {
                let entry = &self.ops.borrow()[op];
                self.address(entry.leader, (&entry.key, 1), question.ask(&entry.key.name))
            };
            let waiter = EngineWaiter::Asked { engine: self.clone(), op, question: *question };
            self.send(addressed, None, waiter);
        }
    }

    pub(super) fn led(self: &Rc<Self>, op: usize, outcome: Result<Reply<'_>, LinkError>) {
        let waits = {
            let mut ops = self.ops.borrow_mut();
            let entry = &mut ops[op];
            entry.awaited -= 1;
            let waits = entry.awaited > 0;
            if entry.follow {
                self.recent.note(&entry.key.name);
            }
            let outcome = outcome.map(|reply| match &entry.command {
                Some(command) if entry.leader == Side::Cluster => {
                    self.own_reply(entry.key.db, command.spec, &command.request, reply)
                }
                _ => reply,
            });
            if !entry.holds_reply {
                let to = std::mem::replace(&mut entry.to, LaneReply::Nobody);
                entry.led = Some(match &outcome {
                    Ok(reply) => {
                        let is_shadowed = entry.command.as_ref().is_some_and(|command| command.shadow != Shadow::No);
                        Ok(kept(reply.bytes(), entry.follow || is_shadowed))
                    }
                    Err(error) => Err(error.clone()),
                });
                drop(ops);
                self.answer(to, outcome.map_err(|error| refusal_of(&error)));
            } else {
                entry.led = Some(outcome.map(|reply| reply.to_bytes()));
            }
            waits
        };
        // With facts to come the lane hears of the answer when all are there; the link keeps the order.
        if !waits {
            self.tell_led(op);
        }
    }

    /// The leader answered a question behind a command; nobody told what it says: only a copy can tell.
    pub(super) fn asked(self: &Rc<Self>, op: usize, question: Question, outcome: Result<Reply<'_>, LinkError>) {
        let fact = outcome.ok().and_then(|reply| reply::integer(reply.bytes()));
        let is_last = self.ops.borrow_mut().get_mut(op).is_some_and(|entry| {
            match question {
                Question::Expiry => entry.facts.expiry = fact,
                Question::Length => entry.facts.length = fact,
            }
            entry.awaited -= 1;
            entry.awaited == 0
        });
        if is_last {
            self.tell_led(op);
        }
    }

    pub(super) fn tell_led(self: &Rc<Self>, op: usize) {
        let (follow, outcome, in_lane) = {
            let mut ops = self.ops.borrow_mut();
            let entry = &mut ops[op];
            let outcome = match &entry.led {
                Some(Ok(reply)) if reply::is_error(reply) => Outcome::Refused,
                Some(Ok(reply)) if entry.follow => {
                    let (command, facts) = (entry.command.as_ref(), entry.facts);
                    entry.effect = command.and_then(|command| {
                        effect::effect(&command.request, command.form, &entry.key.name, reply, facts)
                    });
                    let questions = command.map_or(&[][..], |command| command.form.questions());
                    match questions.iter().all(|question| facts.has(*question)) {
                        true if entry.effect.is_some() => Outcome::Done,
                        true => Outcome::Refused,
                        false => Outcome::Doubt,
                    }
                }
                Some(Ok(_)) => Outcome::Done,
                Some(Err(error)) if !error.may_have_run() => Outcome::Refused,
                _ => Outcome::Doubt,
            };
            (entry.follow, outcome, entry.in_lane)
        };
        let is_read = !in_lane && !follow && outcome != Outcome::Doubt;
        if is_read && outcome == Outcome::Done && self.shadow(op) {
            return;
        }
        let is_effect = |order: &Order<usize>| matches!(order, Order::Follow { op: following } if *following == op);
        let goes_on = !is_read
            && self.with_lane(|lane, orders| {
                let entry = &self.ops.borrow()[op];
                lane.led(&entry.key, op, follow, outcome, entry.generation, orders);
                in_lane || orders.iter().any(is_effect)
            });
        if !goes_on {
            self.forget(op);
        }
    }

    pub(super) fn follow(self: &Rc<Self>, op: usize) {
        let (addressed, protocol, check, is_awaited) = {
            let mut ops = self.ops.borrow_mut();
            let entry = &mut ops[op];
            let (Some(effect), Some(command)) = (&mut entry.effect, &entry.command) else { return };
            // Whatever is not the request itself has its key in the first place.
            let first = if command.form.is_request() { command.first } else { 1 };
            let side = entry.leader.other();
            self.tally.add_write(side);
            self.recent.note(&entry.key.name);
            let check =
                effect.expiry.map(|_| self.address(side, (&entry.key, 1), Question::Expiry.ask(&entry.key.name)));
            entry.awaited = 1 + usize::from(check.is_some());
            // It is sent once.
            let bytes = std::mem::take(&mut effect.bytes);
            (self.address(side, (&entry.key, first), bytes), command.protocol, check, entry.in_lane)
        };
        self.send(addressed, Some(protocol), EngineWaiter::Followed { engine: self.clone(), op, is_awaited });
        if let Some(check) = check {
            self.send(check, None, EngineWaiter::Checked { engine: self.clone(), op, is_awaited });
        }
    }

    pub(super) fn followed(self: &Rc<Self>, op: usize, outcome: Result<Reply<'_>, LinkError>) {
        // The leader's answer has the application's names in it.
        let outcome = {
            let ops = self.ops.borrow();
            let is_renamed = ops[op].leader != Side::Cluster;
            let command = ops[op].command.as_ref().filter(|command| is_renamed && command.form == Form::Replay);
            outcome.map(|reply| match command {
                Some(command) => self.own_reply(ops[op].key.db, command.spec, &command.request, reply),
                None => reply,
            })
        };
        self.note_followed(op, |effect| match &outcome {
            Ok(reply) if reply::is_error(reply.bytes()) => Outcome::Refused,
            Ok(reply) => match &effect.answer {
                Some(expected) if !effect::agrees(expected, reply.bytes()) => Outcome::Doubt,
                _ => Outcome::Done,
            },
            Err(_) => Outcome::Doubt,
        });
    }

    /// The follower answered when the key expires there, behind an effect that builds on the value.
    pub(super) fn checked(self: &Rc<Self>, op: usize, outcome: Result<Reply<'_>, LinkError>) {
        let expiry = outcome.ok().and_then(|reply| reply::integer(reply.bytes()));
        self.note_followed(op, |effect| if expiry == effect.expiry { Outcome::Done } else { Outcome::Doubt });
    }

    fn note_followed(self: &Rc<Self>, op: usize, judge: impl FnOnce(&Effect) -> Outcome) {
        let in_lane = {
            let mut ops = self.ops.borrow_mut();
            let entry = &mut ops[op];
            let outcome = entry.effect.as_ref().map_or(Outcome::Doubt, judge);
            if entry.followed == Outcome::Done {
                entry.followed = outcome;
            }
            entry.awaited -= 1;
            self.recent.note(&entry.key.name);
            if entry.awaited > 0 {
                return;
            }
            entry.in_lane
        };
        self.with_lane(|lane, orders| {
            let entry = &self.ops.borrow()[op];
            lane.followed(&entry.key, op, entry.followed, entry.whole, entry.generation, orders);
        });
        if !in_lane {
            self.forget(op);
        }
    }

    /// The lane is done with an operation.
    pub(super) fn finish(self: &Rc<Self>, op: usize, outcome: Result<(), Refusal>) {
        let Some(mut entry) = self.ops.borrow_mut().try_remove(op) else { return };
        self.pause.lanes.leave(entry.ticket);
        let to = std::mem::replace(&mut entry.to, LaneReply::Nobody);
        if matches!(to, LaneReply::Done(_)) {
            self.ways.borrow_mut().remove(&entry.key);
        }
        match to {
            LaneReply::Done(done) | LaneReply::Granted(Some(done), _) | LaneReply::Granted(None, Some(done)) => {
                let _ = done.send(outcome);
            }
            LaneReply::Granted(None, None) | LaneReply::Nobody => {}
            to => match (outcome, entry.led) {
                (Ok(()), Some(Ok(reply))) => self.answer(to, Ok(Reply::Whole(reply))),
                (Ok(()), Some(Err(error))) => self.answer(to, Err(refusal_of(&error))),
                (Ok(()), None) => self.answer(to, Err(Refusal::UnknownOutcome)),
                (Err(refusal), _) => self.answer(to, Err(refusal)),
            },
        }
    }

    pub(super) fn forget(&self, op: usize) {
        if let Some(entry) = self.ops.borrow_mut().try_remove(op) {
            self.pause.lanes.leave(entry.ticket);
        }
    }

    pub(super) fn answer(&self, to: LaneReply, outcome: Result<Reply<'_>, Refusal>) {
        match to {
            LaneReply::Local(to) => to.port.deliver(to.seq, outcome),
            LaneReply::Remote { worker, id } => {
                let outcome = outcome.map(|reply| reply.to_bytes());
                self.peers.send(worker, Message::Reply { id, outcome });
            }
            LaneReply::Done(_) | LaneReply::Granted(..) | LaneReply::Nobody => {}
        }
    }

    pub(super) fn grant(&self, op: usize) {
        if let Some(LaneOp { to: LaneReply::Granted(granted, _), .. }) = self.ops.borrow_mut().get_mut(op)
            && let Some(granted) = granted.take()
        {
            // A holder that went away releases by its guard.
            let _ = granted.send(Ok(()));
        }
    }

    /// Has a key copied, by one of the lane's ways to ask for it.
    pub(super) fn copy(
        self: &Rc<Self>,
        key: Key,
        done: Option<oneshot::Sender<Result<(), Refusal>>>,
        ask: AskForCopy<usize>,
    ) {
        let standing = self.standing(&key);
        if standing.follower.is_none() {
            if let Some(done) = done {
                let _ = done.send(Ok(()));
            }
            return;
        }
        let to = done.map_or(LaneReply::Nobody, LaneReply::Done);
        let ticket = self.pause.lanes.enter(standing.route_hash);
        let entry = LaneOp { holds_reply: true, in_lane: true, ..LaneOp::new(key.clone(), standing, to, ticket) };
        let op = self.ops.borrow_mut().insert(entry);
        self.with_lane(|lane, orders| ask(lane, &key, op, standing.mode, standing.generation, orders));
    }

    pub(super) fn release(self: &Rc<Self>, key: Key, outcome: Outcome, done: oneshot::Sender<Result<(), Refusal>>) {
        let holder = self.lane.borrow().holder(&key);
        if holder.is_none() {
            // Granted after the route had left first-touch mode, where nothing is held.
            if outcome == Outcome::Refused {
                let _ = done.send(Ok(()));
                return;
            }
            return self.copy(key, Some(done), Lane::resync);
        }
        if let Some(op) = holder
            && let Some(LaneOp { to: LaneReply::Granted(_, waits), .. }) = self.ops.borrow_mut().get_mut(op)
        {
            *waits = Some(done);
        }
        let generation = self.generation(&key);
        self.with_lane(|lane, orders| lane.release(&key, outcome, generation, orders));
    }
}

/// What the lane needs of a reply that the client has: all of it where the effect is computed from it, else whether it is an
/// error.
fn kept(reply: &[u8], follow: bool) -> Bytes {
    match follow {
        _ if reply == b"+OK\r\n" => Bytes::from_static(b"+OK\r\n"),
        true => Bytes::copy_from_slice(reply),
        false if reply::is_error(reply) => Bytes::from_static(b"-"),
        false => Bytes::from_static(b"+"),
    }
}
