//! The short way through a lane, which most of the traffic of a mirrored route takes.
//!
//! A read, or a write that is its own effect (`SET key value`), of a key of which the lane remembers nothing: the lane would
//! only say "lead it", and "repeat it" when the leader has answered. Such a command leaves no record of its own; the little
//! that has to be known of it stands beside its request in the queues of the links. As soon as anything is out of the ordinary
//! it becomes an operation like any other, at the step where it is.

use std::rc::Rc;

use bytes::Bytes;

use crate::command;
use crate::dual::effect::{Form, Outline};
use crate::dual::engine::{Addressed, EngineWaiter, Inner, ReplyTo, Target, refusal_of};
use crate::dual::gate::Ticket;
use crate::dual::lane::{Mode, Outcome, Work};
use crate::dual::operation::{LaneCommand, LaneOp, LaneReply, Standing};
use crate::dual::shadow::Shadow;
use crate::resp::reply::{self, Protocol};
use crate::resp::request::Request;
use crate::routing::{Key, Side};
use crate::slot;
use crate::store::link::LARGE_BYTES;
use crate::store::{LinkError, Reply};

/// What has to be known of a command that passes. Moved with each request, so kept small.
pub struct Passing {
    db: u32,
    /// Where in the request its key is.
    start: u16,
    end: u16,
    ticket: Ticket,
    leader: Side,
    protocol: Protocol,
    work: Work,
}

/// Who is to have the answer of a command in a lane.
pub enum Asker {
    Here(ReplyTo),
    Afar { worker: usize, id: usize },
}

impl From<Asker> for LaneReply {
    fn from(asker: Asker) -> Self {
        match asker {
            Asker::Here(to) => Self::Local(to),
            Asker::Afar { worker, id } => Self::Remote { worker, id },
        }
    }
}

impl Passing {
    fn key(&self, request: &Bytes) -> Key {
        Key { db: self.db, name: request.slice(usize::from(self.start)..usize::from(self.end)) }
    }

    fn name<'r>(&self, request: &'r Bytes) -> &'r [u8] {
        &request[usize::from(self.start)..usize::from(self.end)]
    }
}

impl Inner {
    /// Sends a command of one key, the argument `first`, the short way; gives it back if it is not for that.
    pub(super) fn pass(
        self: &Rc<Self>,
        (request, first): (Request, usize),
        db: u32,
        (standing, outline): (&Standing, Outline),
        protocol: Protocol,
        asker: Asker,
    ) -> Result<(), (Request, Asker)> {
        let is_plain = match outline.work {
            Work::Read => true,
            Work::Overwrite => outline.form == Form::Same,
            _ => false,
        };
        // Of a large one the copying is what costs.
        let is_short = request.bytes().len() < LARGE_BYTES;
        if !(is_plain && is_short && matches!(standing.mode, Mode::Mirror { .. }))
            || self.table.borrow().is_renamed()
            || self.lane.borrow().remembers(|| Key { db, name: request.arg_bytes(first) })
        {
            return Err((request, asker));
        }
        let place = request.place(first);
        let passing = Passing {
            db,
            // Below `LARGE_BYTES`.
            start: place.start as u16,
            end: place.end as u16,
            ticket: self.pause.lanes.enter(standing.route_hash),
            leader: standing.leader,
            protocol,
            work: outline.work,
        };
        let request = request.into_bytes();
        if passing.work != Work::Read {
            self.note_sent(passing.leader, &passing, &request);
        }
        let addressed = addressed(passing.leader, &passing, request);
        self.send(addressed, Some(protocol), EngineWaiter::Passed { engine: self.clone(), asker, passing });
        Ok(())
    }

    /// The leader answered.
    pub(super) fn passed(
        self: &Rc<Self>,
        request: Bytes,
        (asker, passing): (Asker, Passing),
        outcome: Result<Reply<'_>, LinkError>,
    ) {
        let led = match &outcome {
            Ok(reply) if reply::is_error(reply.bytes()) => Outcome::Refused,
            Ok(_) => Outcome::Done,
            Err(error) if !error.may_have_run() => Outcome::Refused,
            Err(_) => Outcome::Doubt,
        };
        let lost = outcome.as_ref().err().cloned();
        self.answer(asker.into(), outcome.map_err(|error| refusal_of(&error)));
        // A read leaves nothing behind, nor does what a store refused.
        if passing.work == Work::Read || led == Outcome::Refused {
            return self.pause.lanes.leave(passing.ticket);
        }
        if led == Outcome::Doubt || self.lane.borrow().remembers(|| passing.key(&request)) {
            let led = lost.map_or(Ok(Bytes::from_static(b"+OK\r\n")), Err);
            return self.become_operation(request, passing, led).map_or((), |op| self.tell_led(op));
        }
        self.note_sent(passing.leader.other(), &passing, &request);
        let addressed = addressed(passing.leader.other(), &passing, request);
        let protocol = Some(passing.protocol);
        self.send(addressed, protocol, EngineWaiter::Repeated { engine: self.clone(), passing });
    }

    /// The follower answered.
    pub(super) fn repeated(self: &Rc<Self>, request: Bytes, passing: Passing, outcome: Result<Reply<'_>, LinkError>) {
        self.recent.note(passing.name(&request));
        if outcome.as_ref().is_ok_and(|reply| !reply::is_error(reply.bytes())) {
            // To the lane the answer to an effect that nothing waits for is nothing.
            return self.pause.lanes.leave(passing.ticket);
        }
        let Some(op) = self.become_operation(request, passing, Ok(Bytes::from_static(b"+OK\r\n"))) else { return };
        self.ops.borrow_mut()[op].await_effect();
        self.followed(op, outcome);
    }

    /// A write is about to be sent to a side.
    fn note_sent(&self, side: Side, passing: &Passing, request: &Bytes) {
        self.tally.add_write(side);
        self.recent.note(passing.name(request));
    }

    /// What it would have been all the time, had it not gone the short way.
    fn become_operation(
        self: &Rc<Self>,
        request: Bytes,
        passing: Passing,
        led: Result<Bytes, LinkError>,
    ) -> Option<usize> {
        let key = passing.key(&request);
        let parsed = Request::parse(request);
        let Some((spec, request)) = parsed.and_then(|request| Some((command::lookup(request.arg(0))?, request))) else {
            // It was a request when it came, so this cannot be; were it so, nobody would know what the follower has.
            self.stores.doubt();
            self.pause.lanes.leave(passing.ticket);
            return None;
        };
        let command =
            LaneCommand { request, spec, first: 1, form: Form::Same, protocol: passing.protocol, shadow: Shadow::No };
        let standing = self.standing(&key);
        let op = LaneOp::of_passing(key, standing, passing.ticket, command, led);
        Some(self.ops.borrow_mut().insert(op))
    }
}

/// Where a side has the key, in a table that renames none.
fn addressed(side: Side, passing: &Passing, request: Bytes) -> Addressed {
    let to = match side {
        Side::Standalone => Target::Standalone { db: passing.db },
        Side::Cluster => Target::Slot(slot::of(passing.name(&request))),
    };
    Addressed { to, request }
}
