//! Shadow reads: of the reads of a synced route so many are repeated on the follower, and the answers compared. What clients
//! are told is always the leader's answer.
//!
//! The repetition is appended to the follower's link when the leader's answer comes. Effects are appended there in the same
//! order, so that it sees the value which the leader's read saw; a key that is busy in its lane is left out. A key that expires between
//! the two, or was changed by somebody else on one store, may look different once: what differs is read again on both, and
//! counts if it differs again. Such a key is then diverged, and is copied like any other.

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::command::CommandSpec;
use crate::dual::effect;
use crate::dual::engine::{EngineWaiter, Inner};
use crate::dual::operation::LaneReply;
use crate::resp::reply;
use crate::routing::{Key, Plan};
use crate::store::{LinkError, Reply};

/// How often reads are repeated, and what came of it. One for all workers.
#[derive(Debug, Default)]
pub struct Shadowing {
    /// One read of so many; 0: none.
    every: AtomicU32,
    compared: AtomicU64,
    differing: AtomicU64,
}

impl Shadowing {
    /// `share`: of the reads of synced routes, from 0 (none) to 1 (all).
    pub fn set(&self, share: f64) {
        let every = if share > 0.0 { (1.0 / share).round().clamp(1.0, f64::from(u32::MAX)) as u32 } else { 0 };
        self.every.store(every, Ordering::Relaxed);
    }

    /// Reads that were compared.
    pub fn compared(&self) -> u64 {
        self.compared.load(Ordering::Relaxed)
    }

    /// Those of them that differed twice.
    pub fn differing(&self) -> u64 {
        self.differing.load(Ordering::Relaxed)
    }

    /// Whether this read is one. Drawn, so that what an application does in turns is not met in step.
    pub(super) fn is_due(&self) -> bool {
        match self.every.load(Ordering::Relaxed) {
            0 => false,
            every => fastrand::u32(..every) == 0,
        }
    }
}

/// Where the repetition of a read stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shadow {
    /// It is not repeated.
    No,
    First,
    /// It differed once.
    Again,
}

/// How two answers to the same question are held against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    Same,
    /// The same elements in any order, so many at a time: a store gives sets and hashes in its own.
    AnyOrder(usize),
}

/// How a command's answers are compared; `None`: equal keys may answer differently (random elements, what is left to live, what
/// memory is used), or it does not read one key.
pub fn likeness(spec: &CommandSpec) -> Option<Likeness> {
    Some(match spec.name {
        "GET" | "STRLEN" | "GETRANGE" | "SUBSTR" | "GETBIT" | "BITCOUNT" | "BITPOS" | "EXISTS" | "TYPE" | "LLEN"
        | "LRANGE" | "LINDEX" | "LPOS" | "SCARD" | "SISMEMBER" | "SMISMEMBER" | "HGET" | "HMGET" | "HEXISTS"
        | "HLEN" | "HSTRLEN" | "ZCARD" | "ZSCORE" | "ZMSCORE" | "ZCOUNT" | "ZLEXCOUNT" | "ZRANK" | "ZREVRANK"
        | "ZRANGE" | "ZREVRANGE" | "ZRANGEBYSCORE" | "ZREVRANGEBYSCORE" | "ZRANGEBYLEX" | "ZREVRANGEBYLEX" | "XLEN"
        | "XRANGE" | "XREVRANGE" | "GEOPOS" | "GEODIST" | "GEOHASH" | "EXPIRETIME" | "PEXPIRETIME" => Likeness::Same,
        "SMEMBERS" | "HKEYS" | "HVALS" => Likeness::AnyOrder(1),
        "HGETALL" => Likeness::AnyOrder(2),
        _ => return None,
    })
}

fn is_like(likeness: Likeness, one: &[u8], other: &[u8]) -> bool {
    let Likeness::AnyOrder(width) = likeness else { return effect::agrees(one, other) };
    let groups = |frame| {
        let cells = reply::elements(frame)?;
        let mut groups: Vec<&[u8]> =
            cells.chunks(width).map(|group| &frame[group[0].start..group[group.len() - 1].end]).collect();
        groups.sort_unstable();
        Some(groups)
    };
    match (groups(one), groups(other)) {
        (Some(one), Some(other)) => one == other,
        _ => effect::agrees(one, other),
    }
}

impl Inner {
    /// The leader has answered a read that is to be repeated; false: it is not, because its key is busy or anything is diverged
    /// (then the follower is perhaps away).
    pub(super) fn shadow(self: &Rc<Self>, op: usize) -> bool {
        let (addressed, protocol) = {
            let ops = self.ops.borrow();
            let entry = &ops[op];
            let Some(command) = entry.command.as_ref().filter(|command| command.shadow != Shadow::No) else {
                return false;
            };
            if !self.lane.borrow().is_quiet(&entry.key) {
                return false;
            }
            let request = command.request.bytes().clone();
            (self.address(entry.leader.other(), (&entry.key, command.first), request), command.protocol)
        };
        self.send(addressed, Some(protocol), EngineWaiter::Shadowed { engine: self.clone(), op });
        true
    }

    /// The follower answered.
    pub(super) fn shadowed(self: &Rc<Self>, op: usize, outcome: Result<Reply<'_>, LinkError>) {
        let is_again = {
            let mut ops = self.ops.borrow_mut();
            let entry = &mut ops[op];
            let (Ok(answer), Some(Ok(led)), Some(command)) = (&outcome, &entry.led, &mut entry.command) else {
                drop(ops);
                return self.forget(op);
            };
            let is_told = !reply::is_error(answer.bytes());
            let alike = likeness(command.spec).is_none_or(|likeness| is_like(likeness, led, answer.bytes()));
            if is_told && !alike && command.shadow == Shadow::First {
                command.shadow = Shadow::Again;
                entry.to = LaneReply::Nobody;
                true
            } else {
                let (key, name) = (entry.key.clone(), command.spec.name);
                drop(ops);
                if is_told {
                    self.note_shadow(&key, name, alike);
                }
                return self.forget(op);
            }
        };
        if is_again {
            self.lead(op, false);
        }
    }

    fn note_shadow(self: &Rc<Self>, key: &Key, command: &str, alike: bool) {
        let Plan { dual: Some(dual), .. } = self.plan(key) else { return };
        self.shadowing.compared.fetch_add(1, Ordering::Relaxed);
        dual.note_shadow(!alike);
        if alike {
            return;
        }
        self.shadowing.differing.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = self.shadow_told.is_time(Instant::now()) {
            let route = self.table.borrow().route_of(&key.name).0.name.to_string();
            tracing::warn!(
                route,
                command,
                left_out,
                "a synced route answered differently on its follower, twice: the key is copied again; does somebody write around the proxy? `cutover verify` finds what else differs"
            );
        }
        self.with_lane(|lane, orders| lane.suspect(key, orders));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_held_against_each_other_as_their_commands_give_them() {
        let of = |name: &[u8]| likeness(crate::command::lookup(name).unwrap());
        assert_eq!([of(b"GET"), of(b"SRANDMEMBER"), of(b"TTL"), of(b"SCAN")], [Some(Likeness::Same), None, None, None]);
        let (one, turned) = (
            &b"*4\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n2\r\n"[..],
            b"*4\r\n$1\r\nb\r\n$1\r\n2\r\n$1\r\na\r\n$1\r\n1\r\n",
        );
        let swapped = b"*4\r\n$1\r\na\r\n$1\r\n2\r\n$1\r\nb\r\n$1\r\n1\r\n";
        let hash = of(b"HGETALL").unwrap();
        assert!(is_like(hash, one, turned) && !is_like(hash, one, swapped), "pairs stay pairs");
        assert!(!is_like(of(b"LRANGE").unwrap(), one, turned));
        assert!(is_like(of(b"ZSCORE").unwrap(), b"$3\r\n0.1\r\n", b"$19\r\n0.10000000000000001\r\n"));
        assert!(!is_like(of(b"SMEMBERS").unwrap(), b"*0\r\n", b"*1\r\n$1\r\na\r\n"));
    }

    #[test]
    fn a_share_is_one_read_of_so_many() {
        let shadowing = Shadowing::default();
        assert!((0..100).all(|_| !shadowing.is_due()));
        shadowing.set(1.0);
        assert!((0..100).all(|_| shadowing.is_due()));
        shadowing.set(0.1);
        let due = (0..10_000).filter(|_| shadowing.is_due()).count();
        assert!((700..1_300).contains(&due), "{due}");
    }
}
