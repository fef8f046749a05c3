//! What the proxy saw the application send that will not work the same on a cluster, by kind, command, route and client.
//!
//! Written to by sessions, on commands that are rare anyway (several keys, scripts, SELECT, refusals); read by the admin side.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Different findings that are kept; an application has some dozens. What comes beyond is counted only.
const FINDINGS_MAX: usize = 2_000;
/// Bytes of an example that are kept.
const EXAMPLE_BYTES_MAX: usize = 120;

/// Why something will not work the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// One command with keys in several slots, which cannot be split.
    CrossSlot,
    /// One command with keys of several routes, which are led by different stores while one of them has moved.
    CrossRoute,
    /// A transaction over several slots or routes: split where its commands stand for themselves, else refused.
    CrossTransaction,
    /// WATCH of keys in several slots, or a transaction over several with a watch.
    CrossWatch,
    /// A script without declared keys.
    ScriptWithoutKeys,
    /// A script that touches keys which it does not declare, by its text or by what a node of the cluster said.
    ScriptUndeclared,
    /// SORT with BY or GET patterns.
    SortPattern,
    /// A database that does not move.
    Database,
    /// Refused by the proxy in any phase.
    Refused,
}

impl Kind {
    /// What it means on the cluster, and what can be done.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::CrossSlot => {
                "refused with CROSSSLOT on the cluster: use cluster_keys = \"tagged\", or give the keys one hash tag"
            }
            Self::CrossRoute => {
                "refused while its routes are led by different stores: move them in one edit, or split the command"
            }
            Self::CrossTransaction => {
                "split into single commands on the cluster, so no longer atomic, or refused if one of them needs several slots: use cluster_keys = \"tagged\""
            }
            Self::CrossWatch => {
                "refused with CROSSSLOT on the cluster: watch keys of one slot, or use cluster_keys = \"tagged\""
            }
            Self::ScriptWithoutKeys => {
                "runs where keys without a provider are, and fails there if it touches a key of another slot: declare its keys"
            }
            Self::ScriptUndeclared => {
                "it touches keys that it does not declare: on the cluster it fails where they are in another slot, and what it writes there is not followed in a dual phase, which puts the route in doubt. Declare the keys (KEYS); cluster_keys = \"tagged\" does not help, for the script does not know the tag. Else let it rest, run `cutover backfill` and flip"
            }
            Self::SortPattern => "a cluster refuses SORT with BY and GET patterns: sort in the application",
            Self::Database => {
                "stays on the standalone, whole and unchanged: give it a line in [databases] to have it move"
            }
            Self::Refused => "not available through the proxy in any phase",
        }
    }
}

/// What tells findings apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Subject {
    pub kind: Kind,
    pub command: String,
    /// Routes of the keys, as the table names them; empty where there is no key.
    pub route: String,
    /// The client's name, else its library's, else its address without the port.
    pub client: String,
}

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    #[serde(flatten)]
    pub subject: Subject,
    pub count: u64,
    /// The keys, or what else names it, of the first time.
    pub example: String,
    pub remedy: &'static str,
}

/// See the module. Shared by all workers.
#[derive(Debug, Default)]
pub struct Audit {
    /// Held for a look-up only.
    findings: Mutex<HashMap<Subject, (u64, String)>>,
    dropped: AtomicU64,
}

impl Audit {
    /// Notes one more of a kind. `example` is asked for the first time only.
    pub fn note(&self, subject: Subject, example: impl FnOnce() -> String) {
        let mut findings = self.findings.lock();
        if let Some((count, _)) = findings.get_mut(&subject) {
            *count += 1;
            return;
        }
        if findings.len() >= FINDINGS_MAX {
            drop(findings);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut example = example();
        if let Some((end, _)) = example.char_indices().find(|(at, _)| *at >= EXAMPLE_BYTES_MAX) {
            example.truncate(end);
            example.push('…');
        }
        findings.insert(subject, (1, example));
    }

    /// All findings, by kind and the most frequent first.
    pub fn findings(&self) -> Vec<Finding> {
        let of = |(subject, (count, example)): (&Subject, &(u64, String))| Finding {
            subject: subject.clone(),
            count: *count,
            example: example.clone(),
            remedy: subject.kind.remedy(),
        };
        let mut all: Vec<Finding> = self.findings.lock().iter().map(of).collect();
        all.sort_by(|left, right| {
            (left.subject.kind, right.count, &left.subject).cmp(&(right.subject.kind, left.count, &right.subject))
        });
        all
    }

    /// Findings beyond those that are kept.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(command: &str) -> Subject {
        Subject { kind: Kind::CrossSlot, command: command.into(), route: "42".into(), client: "web".into() }
    }

    #[test]
    fn findings_are_counted_and_the_most_frequent_comes_first() {
        let audit = Audit::default();
        audit.note(subject("sunion"), || "a b".into());
        for _ in 0..3 {
            audit.note(subject("rename"), || "é".repeat(100));
        }
        let found = audit.findings();
        assert_eq!(
            found.iter().map(|finding| (finding.subject.command.as_str(), finding.count)).collect::<Vec<_>>(),
            [("rename", 3), ("sunion", 1)]
        );
        assert!(found[0].example.len() <= EXAMPLE_BYTES_MAX + 3 && found[0].example.ends_with('…'));
    }

    #[test]
    fn too_many_findings_are_counted_and_cost_no_memory() {
        let audit = Audit::default();
        for number in 0..FINDINGS_MAX + 5 {
            audit.note(subject(&number.to_string()), String::new);
        }
        assert_eq!((audit.findings().len(), audit.dropped()), (FINDINGS_MAX, 5));
    }
}
