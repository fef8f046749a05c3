//! How many commands that write a worker has sent to each store, for the question whether somebody else writes there
//! ([`jobs::bypass`](crate::jobs::bypass)).
//!
//! An upper bound: what is sent again after a redirect had not run, and what a server refuses is counted all the same. What a
//! script does is not known, so scripts are counted apart. A request costs an add; nothing is remembered of it.

use std::cell::Cell;
use std::rc::Rc;

use crate::command::{self, Access, CommandSpec, Kind};
use crate::resp::request::Request;
use crate::routing::Side;

/// Commands that write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wrote {
    pub writes: u64,
    /// Scripts that may write, however much.
    pub scripts: u64,
}

impl Wrote {
    /// What one command counts for.
    #[inline]
    pub fn of(spec: &CommandSpec) -> Self {
        match (spec.access, spec.kind) {
            (Access::Write, Kind::Script) => Self { writes: 0, scripts: 1 },
            (Access::Write, _) => Self { writes: 1, scripts: 0 },
            _ => Self::default(),
        }
    }

    /// What one command counts for, as its bytes say.
    pub fn in_request(request: &bytes::Bytes) -> Self {
        let spec = Request::parse(request.clone()).and_then(|request| command::lookup(request.arg(0)));
        spec.map_or_else(Self::default, Self::of)
    }

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self { writes: self.writes + other.writes, scripts: self.scripts + other.scripts }
    }
}

/// What a worker says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// By store.
    pub sent: [Wrote; 2],
    /// Writes that may have no answer yet, at most.
    pub open: u64,
    /// Requests whose outcome is unknown: what of them still lies before a server may run later.
    pub lost: u64,
}

impl Sent {
    /// Of two workers.
    pub fn and(self, other: Self) -> Self {
        let sent = [self.sent[0].and(other.sent[0]), self.sent[1].and(other.sent[1])];
        Self { sent, open: self.open + other.open, lost: self.lost + other.lost }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tally {
    sent: [Cell<Wrote>; 2],
    open: Cell<u64>,
    lost: Cell<u64>,
}

impl Tally {
    /// A command is about to be sent.
    #[inline]
    pub fn note(&self, side: Side, spec: &CommandSpec) {
        if spec.access == Access::Write {
            self.add(side, Wrote::of(spec));
        }
    }

    /// So many are.
    pub fn add(&self, side: Side, wrote: Wrote) {
        let sent = &self.sent[side as usize];
        sent.set(sent.get().and(wrote));
    }

    /// One that writes is.
    pub fn add_write(&self, side: Side) {
        self.add(side, Wrote { writes: 1, scripts: 0 });
    }

    /// A request was sent, and nobody knows what has become of it.
    pub fn note_lost(&self) {
        self.lost.set(self.lost.get() + 1);
    }

    /// So many are about to be sent that no gate counts one by one.
    pub fn open(self: &Rc<Self>, side: Side, wrote: Wrote) -> Unanswered {
        self.add(side, wrote);
        self.open.set(self.open.get() + wrote.writes);
        Unanswered { tally: self.clone(), writes: wrote.writes, is_answered: false }
    }

    /// What was sent up to now; the gates count what else is in flight.
    pub fn sent(&self, in_flight: u64) -> Sent {
        let [standalone, cluster] = &self.sent;
        Sent { sent: [standalone.get(), cluster.get()], open: self.open.get() + in_flight, lost: self.lost.get() }
    }
}

/// Writes that wait for their answer; without one they are lost.
#[must_use]
pub struct Unanswered {
    tally: Rc<Tally>,
    writes: u64,
    is_answered: bool,
}

impl Unanswered {
    /// They were answered, or surely did not run.
    pub fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.tally.open.set(self.tally.open.get() - self.writes);
        if !self.is_answered {
            self.tally.note_lost();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_writes_is_counted_until_it_is_answered_and_what_reads_is_not() {
        let tally = Rc::new(Tally::default());
        let spec = |name: &str| command::lookup(name.as_bytes()).expect("a command");
        for name in ["SET", "GET", "EVAL", "EVAL_RO", "EXEC", "BLPOP", "PING"] {
            tally.note(Side::Standalone, spec(name));
        }
        assert_eq!(tally.sent(0).sent[0], Wrote { writes: 2, scripts: 1 });
        let unanswered = tally.open(Side::Cluster, Wrote { writes: 3, scripts: 0 });
        assert_eq!((tally.sent(4).sent[1].writes, tally.sent(4).open, tally.sent(4).lost), (3, 7, 0));
        unanswered.answered();
        assert_eq!((tally.sent(0).open, tally.sent(0).lost), (0, 0));
        drop(tally.open(Side::Cluster, Wrote::default()));
        assert_eq!(tally.sent(0).lost, 1);
        let request = |words: &[&[u8]]| crate::dual::effect::command(words);
        assert_eq!(Wrote::in_request(&request(&[b"flushdb"])).writes, 1);
        assert_eq!(Wrote::in_request(&request(&[b"SCRIPT", b"LOAD", b"x"])), Wrote::default());
    }
}
