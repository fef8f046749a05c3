//! What INFO commandstats says: how many commands that write the nodes of a store have run, against what was sent to them.
//!
//! What exceeds the proxy's own number was sent by somebody else, however short his connections were; no key is known, and no
//! command, since the proxy counts no names. The proxy's number is an upper bound, and the question is asked only where
//! nothing else can be the cause. It begins anew, with what stands there then, when
//! - a node was restarted, is another one, is a replica, or its counters went back (CONFIG RESETSTAT);
//! - slots moved, or are moving;
//! - a script of the proxy's clients ran, whose inner commands are counted like any;
//! - an answer of a store was lost, for what was sent may run later;
//! - another proxy was connected, of this lease or not, whose number is not known;
//! - on the standalone: a database that does not move has keys, or was written to, at any look of this run: the server does
//!   not count by database.
//!
//! A command that may read only (SORT, GETEX, BITFIELD, GEORADIUS, PFCOUNT) is nobody's write here, neither is one that the
//! server refused, nor MIGRATE and what it sends. What began is compared with for as long as nothing of this happens, so
//! requests that were under way then hide as many foreign writes once, and not each time.

use std::collections::BTreeMap;

use crate::command::{self, Access, Kind};
use crate::dual::{Sent, Wrote};
use crate::routing::Side;

/// What a node said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    run_id: String,
    is_primary: bool,
    /// Calls that did not fail, by command.
    writes: BTreeMap<String, u64>,
    /// MIGRATE, and what it sends to the other node.
    migrated: u64,
    /// Databases with keys.
    databases: Vec<u32>,
    /// Its view of the cluster: the age of the layout, and whether slots are on their way.
    epoch: String,
    is_migrating: bool,
}

/// What takes part in a migration of slots.
const MIGRATES: [&str; 2] = ["migrate", "restore-asking"];
/// What may only read, or write what nobody sees.
const MAY_READ: [&str; 7] = ["sort", "getex", "bitfield", "georadius", "georadiusbymember", "pfcount", "pfdebug"];

impl Node {
    /// Reads INFO, and CLUSTER INFO of a node of a cluster. `None`: it does not tell what is needed.
    pub fn parse(info: &str, cluster_info: &str) -> Option<Self> {
        let mut node = Self::default();
        let mut has_stats = false;
        for line in info.lines() {
            let Some((name, value)) = line.trim_end().split_once(':') else { continue };
            match name {
                "run_id" => node.run_id = value.into(),
                "role" => node.is_primary = value == "master",
                _ => {
                    if let Some(command) = name.strip_prefix("cmdstat_") {
                        has_stats = true;
                        node.note_command(command, value);
                    } else if let Some(db) = name.strip_prefix("db").and_then(|db| db.parse().ok()) {
                        node.databases.push(db);
                    }
                }
            }
        }
        for line in cluster_info.lines() {
            match line.trim_end().split_once(':') {
                Some(("cluster_current_epoch", epoch)) => node.epoch = epoch.into(),
                Some((name, count)) if name.contains("migration_active") => node.is_migrating |= count != "0",
                _ => {}
            }
        }
        (has_stats && !node.run_id.is_empty()).then_some(node)
    }

    fn note_command(&mut self, command: &str, stats: &str) {
        let field = |wanted: &str| -> u64 {
            let mut fields = stats.split(',').filter_map(|field| field.split_once('='));
            fields.find(|(name, _)| *name == wanted).and_then(|(_, count)| count.parse().ok()).unwrap_or(0)
        };
        let name = command.split('|').next().unwrap_or_default();
        if MIGRATES.contains(&name) {
            self.migrated += field("calls");
            return;
        }
        let Some(spec) = command::lookup(name.as_bytes()) else { return };
        let is_write = spec.access == Access::Write && spec.kind != Kind::Script;
        if is_write && !MAY_READ.contains(&name) && !command.ends_with("|help") {
            self.writes.insert(command.into(), field("calls").saturating_sub(field("failed_calls")));
        }
    }

    /// Writes since then; `None`: it is not the same server any more, or its counters went back.
    fn writes_since(&self, before: &Self) -> Option<u64> {
        if self.run_id != before.run_id || !self.is_primary || !before.is_primary {
            return None;
        }
        if before.writes.keys().any(|command| !self.writes.contains_key(command)) {
            return None;
        }
        let since = |(command, count): (&String, &u64)| {
            count.checked_sub(before.writes.get(command).copied().unwrap_or_default())
        };
        self.writes.iter().map(since).sum()
    }

    /// Whether no slot came or went since then.
    fn is_settled_since(&self, before: &Self) -> bool {
        (self.migrated, &self.epoch) == (before.migrated, &before.epoch) && !self.is_migrating && !before.is_migrating
    }
}

/// A store at one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    pub nodes: BTreeMap<String, Node>,
    /// What had been sent before the nodes were asked, and run by then, at least.
    pub floor: Wrote,
    /// What had been sent when they had answered.
    pub ceiling: Wrote,
    /// [`Sent::lost`] when they had answered.
    pub lost: u64,
    /// Another proxy is connected.
    pub is_shared: bool,
}

impl Reading {
    /// Of a side, by what the proxy said before and after the nodes did, each with the keeper's own number.
    pub fn new(
        side: Side,
        nodes: BTreeMap<String, Node>,
        (before, records_before): (Sent, u64),
        (after, records_after): (Sent, u64),
        is_shared: bool,
    ) -> Self {
        let (sent, ceiling) = (before.sent[side as usize], after.sent[side as usize]);
        let floor = Wrote { writes: sent.writes.saturating_sub(before.open) + records_before, ..sent };
        let ceiling = Wrote { writes: ceiling.writes + records_after, ..ceiling };
        Self { nodes, floor, ceiling, lost: after.lost, is_shared }
    }

    /// Whether no slot came or went since then.
    pub fn is_settled_since(&self, before: &Self) -> bool {
        let is_settled = |(address, node): (&String, &Node)| {
            before.nodes.get(address).is_some_and(|before| node.is_settled_since(before))
        };
        self.nodes.len() == before.nodes.len() && self.nodes.iter().all(is_settled)
    }

    /// Whether it can be told from the two what somebody else has written between them.
    fn is_comparable_to(&self, before: &Self) -> bool {
        self.ceiling.scripts == before.floor.scripts
            && self.lost == before.lost
            && !self.is_shared
            && !before.is_shared
            && self.is_settled_since(before)
    }
}

/// One store from look to look.
#[derive(Debug, Default)]
pub(super) struct Counts {
    last: Option<Reading>,
    /// With what is compared.
    base: Option<Reading>,
    has_other_databases: bool,
}

impl Counts {
    /// The store could not be asked, or is of no interest.
    pub fn begin_anew(&mut self) {
        (self.last, self.base) = (None, None);
    }

    /// Somebody uses a database that does not move: it cannot be told any more who writes where.
    pub fn note_other_databases(&mut self) {
        self.has_other_databases = true;
    }

    /// The reading of the last look.
    pub fn last(&self) -> Option<&Reading> {
        self.last.as_ref()
    }

    /// Takes the next reading. Gives how many writes nobody known has sent, if there are any. `is_moving`: whether a database
    /// moves.
    pub fn look(&mut self, reading: Reading, is_moving: impl Fn(u32) -> bool) -> Option<u64> {
        let mut databases = reading.nodes.values().flat_map(|node| &node.databases);
        self.has_other_databases |= databases.any(|db| !is_moving(*db));
        let last = self.last.replace(reading.clone());
        if self.has_other_databases {
            self.base = None;
            return None;
        }
        let is_quiet = last.is_some_and(|last| reading.is_comparable_to(&last));
        let executed = self.base.as_ref().filter(|base| is_quiet && reading.is_comparable_to(base)).and_then(|base| {
            let of = |(address, node): (&String, &Node)| node.writes_since(base.nodes.get(address)?);
            Some((reading.nodes.iter().map(of).sum::<Option<u64>>()?, base.floor.writes))
        });
        let Some((executed, floor)) = executed else {
            // What was lost, or a script that still runs, may come after this look.
            self.base = is_quiet.then_some(reading);
            return None;
        };
        let foreign = executed.saturating_sub(reading.ceiling.writes - floor);
        if foreign > 0 {
            self.base = Some(reading);
        }
        (foreign > 0).then_some(foreign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nrun_id:a1\r\n# Replication\r\nrole:master\r\n# Commandstats\r\n\
        cmdstat_set:calls=10,usec=5,usec_per_call=0.50,rejected_calls=0,failed_calls=2\r\n\
        cmdstat_xgroup|create:calls=3,usec=5,usec_per_call=0.50,rejected_calls=0,failed_calls=0\r\n\
        cmdstat_xgroup|help:calls=7,usec=5,usec_per_call=0.50,rejected_calls=0,failed_calls=0\r\n\
        cmdstat_get:calls=9,usec=5,usec_per_call=0.50,rejected_calls=0,failed_calls=0\r\n\
        cmdstat_eval:calls=9,usec=5,usec_per_call=0.50,rejected_calls=0,failed_calls=0\r\n\
        cmdstat_sort:calls=9,usec=5,usec_per_call=0.50,rejected_calls=0,failed_calls=0\r\n\
        cmdstat_migrate:calls=4,usec=5,usec_per_call=0.50,rejected_calls=0,failed_calls=0\r\n\
        # Keyspace\r\ndb0:keys=4,expires=0,avg_ttl=0\r\ndb5:keys=4,expires=0,avg_ttl=0\r\n";

    #[test]
    fn what_a_node_says_is_read() {
        let node = Node::parse(INFO, "cluster_current_epoch:6\r\ncluster_slot_migration_active_tasks:1\r\n").unwrap();
        assert_eq!(node.writes.values().sum::<u64>(), 11, "{:?}", node.writes);
        assert_eq!((node.migrated, &node.databases[..], &*node.epoch), (4, &[0, 5][..], "6"));
        assert!(node.is_primary && node.is_migrating);
        assert_eq!(Node::parse("run_id:a1\r\nrole:master\r\n", ""), None, "one that tells no commands");
    }

    fn reading(run_id: &str, writes: u64, sent: u64) -> Reading {
        let node = Node {
            run_id: run_id.into(),
            is_primary: true,
            writes: BTreeMap::from([("set".into(), writes)]),
            ..Node::default()
        };
        let wrote = Wrote { writes: sent, scripts: 0 };
        Reading { nodes: BTreeMap::from([("n".into(), node)]), floor: wrote, ceiling: wrote, ..Reading::default() }
    }

    /// Looks at each; gives what the last one found.
    fn found(readings: &[Reading]) -> Option<u64> {
        let mut counts = Counts::default();
        let all: Vec<_> = readings.iter().map(|reading| counts.look(reading.clone(), |db| db == 0)).collect();
        assert!(all[..all.len() - 1].iter().all(Option::is_none), "{all:?}");
        all.last().copied().flatten()
    }

    #[test]
    fn what_exceeds_the_own_number_is_somebody_else_s() {
        let quiet = [reading("a", 10, 3), reading("a", 12, 5)];
        assert_eq!(found(&[&quiet[..], &[reading("a", 22, 15)]].concat()), None);
        assert_eq!(found(&[&quiet[..], &[reading("a", 23, 15)]].concat()), Some(1));
        assert_eq!(found(&[&quiet[..], &[reading("a", 15, 15)]].concat()), None, "refused, or not yet run");
        let mut counts = Counts::default();
        quiet.into_iter().for_each(|reading| assert_eq!(counts.look(reading, |_| true), None));
        assert_eq!(counts.look(reading("a", 23, 15), |_| true), Some(1));
        assert_eq!(counts.look(reading("a", 24, 16), |_| true), None, "told once");
    }

    #[test]
    fn what_was_under_way_hides_as_many_once() {
        let mut base = reading("a", 12, 5);
        base.floor.writes = 2;
        let looks = [reading("a", 10, 3), base, reading("a", 15, 5)];
        assert_eq!(found(&looks), None);
        assert_eq!(found(&[&looks[..], &[reading("a", 16, 5)]].concat()), Some(1));
    }

    #[test]
    fn it_begins_anew_where_something_else_may_be_the_cause() {
        let quiet = [reading("a", 10, 3), reading("a", 12, 5)];
        let after = |change: &dyn Fn(&mut Reading)| {
            let mut next = reading("a", 50, 5);
            change(&mut next);
            found(&[&quiet[..], &[next]].concat())
        };
        let node = |reading: &mut Reading| reading.nodes.remove("n").unwrap();
        assert_eq!(after(&|_| {}), Some(38));
        assert_eq!(after(&|next| next.ceiling.scripts = 1), None, "a script");
        assert_eq!(after(&|next| next.lost = 1), None, "a lost answer");
        assert_eq!(after(&|next| next.is_shared = true), None, "another proxy");
        assert_eq!(after(&|next| *next = reading("b", 50, 5)), None, "a restart");
        assert_eq!(after(&|next| *next = reading("a", 4, 5)), None, "CONFIG RESETSTAT");
        let with = |change: &dyn Fn(&mut Node)| {
            after(&|next| {
                let mut changed = node(next);
                change(&mut changed);
                next.nodes.insert("n".into(), changed);
            })
        };
        assert_eq!(with(&|node| node.writes = BTreeMap::from([("del".into(), 50)])), None, "a counter is gone");
        assert_eq!(with(&|node| node.is_primary = false), None, "a replica");
        assert_eq!(with(&|node| node.migrated = 1), None, "slots move");
        assert_eq!(with(&|node| node.epoch = "7".into()), None, "slots moved");
        assert_eq!(with(&|node| node.databases = vec![0, 5]), None, "a database that does not move");
        assert_eq!(with(&|node| node.databases = vec![0]), Some(38));
        assert_eq!(after(&|next| next.nodes.insert("m".into(), Node::default()).map_or((), drop)), None, "a node");
    }

    #[test]
    fn a_script_has_to_be_over_for_a_whole_look_before_anything_is_compared() {
        let with_script = |writes| {
            let mut next = reading("a", writes, 5);
            (next.floor.scripts, next.ceiling.scripts) = (1, 1);
            next
        };
        let quiet = [reading("a", 10, 3), reading("a", 12, 5)];
        let looks = |writes: &[u64]| -> Vec<Reading> {
            quiet.iter().cloned().chain(writes.iter().map(|writes| with_script(*writes))).collect()
        };
        assert_eq!(found(&looks(&[50, 60])), None, "it may have run until the last look");
        assert_eq!(found(&looks(&[50, 60, 61])), Some(1));
    }
}
