//! The last flips and the last refused tables of this run, for people who ask what happened. Both are bounded: a move of
//! ten thousand routes is one entry, which names a few of them and counts the rest.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;

use crate::dual::adopt::Adopted;
use crate::routing::{Phase, in_order};

/// Entries that are remembered.
const ENTRIES_MAX: usize = 100;
/// Routes that an entry names.
const NAMED_MAX: usize = 8;
/// A refusal names each flip that it refuses, which may be thousands.
const REASON_CHARS_MAX: usize = 4_000;

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Grows by one with each entry.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Of the table that was adopted, or that stayed.
    pub table_version: u64,
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// Routes that went the same way with one table.
    Flipped {
        from: Phase,
        to: Phase,
        /// How many; `routes` names the first of them.
        count: usize,
        routes: Vec<String>,
        /// From the reading of the new table to its adoption on every worker.
        took_ms: f64,
        /// For how long requests of the routes were held up.
        paused_ms: f64,
    },
    Refused {
        reason: String,
    },
}

/// See the module. The lock guards the entries; nothing waits inside it.
#[derive(Debug, Default)]
pub struct History(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    kept: VecDeque<Entry>,
    newest: u64,
}

impl History {
    /// Notes what an adoption flipped.
    pub fn flipped(&self, adopted: &Adopted) {
        let [took_ms, paused_ms] = [adopted.took, adopted.paused].map(|time| time.as_secs_f64() * 1e3);
        for from in Phase::ALL {
            for to in Phase::ALL {
                let pubsub = adopted.pubsub.filter(|way| *way == (from, to)).map(|_| "pubsub".to_string());
                let flips = adopted.flips.iter().filter(|flip| (flip.from, flip.to) == (from, to));
                let mut routes = in_order(flips.map(|flip| flip.route.to_string()).chain(pubsub));
                let count = routes.len();
                if count > 0 {
                    routes.truncate(NAMED_MAX);
                    self.note(adopted.version, Event::Flipped { from, to, count, routes, took_ms, paused_ms });
                }
            }
        }
    }

    /// Notes that a table was refused.
    pub fn refused(&self, running_version: u64, reason: &str) {
        self.note(running_version, Event::Refused { reason: shortened(reason) });
    }

    fn note(&self, table_version: u64, event: Event) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut entries = self.0.lock();
        entries.newest += 1;
        let entry = Entry { number: entries.newest, at_ms: at.as_millis() as u64, table_version, event };
        if entries.kept.len() >= ENTRIES_MAX {
            entries.kept.pop_front();
        }
        entries.kept.push_back(entry);
    }

    /// Those that came after entry `number`, the oldest first.
    pub fn after(&self, number: u64) -> Vec<Entry> {
        self.0.lock().kept.iter().filter(|entry| entry.number > number).cloned().collect()
    }
}

/// A reason of any length, as much of it as a person reads.
pub fn shortened(reason: &str) -> String {
    match reason.char_indices().nth(REASON_CHARS_MAX) {
        None => reason.to_string(),
        Some((end, _)) => format!("{} … (the log has all of it)", &reason[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::RouteName;
    use crate::routing::flip::Flip;
    use std::time::Duration;

    fn flip(id: usize, from: Phase, to: Phase) -> Flip {
        Flip::of(RouteName::Provider(id.to_string()), from, to)
    }

    #[test]
    fn a_move_of_many_routes_is_one_entry_for_each_way() {
        use Phase::{Cluster, DualCluster, DualStandalone, Standalone};
        let history = History::default();
        let mut flips: Vec<Flip> = (0..10_000).map(|id| flip(id, Standalone, DualStandalone)).collect();
        flips.push(flip(10_000, DualCluster, Cluster));
        let pubsub = Some((Standalone, Cluster));
        let [took, paused] = [25, 2].map(Duration::from_millis);
        history.flipped(&Adopted { version: 7, flips, pubsub, took, paused });
        let entries = history.after(0);
        let told: Vec<(usize, usize)> = entries
            .iter()
            .map(|entry| match &entry.event {
                Event::Flipped { count, routes, took_ms, paused_ms, .. } => {
                    assert_eq!((entry.table_version, *took_ms, *paused_ms), (7, 25.0, 2.0));
                    (*count, routes.len())
                }
                Event::Refused { .. } => panic!("nothing was refused"),
            })
            .collect();
        assert_eq!(told, [(10_000, 8), (1, 1), (1, 1)]);
        assert_eq!(history.after(2).len(), 1);
    }

    #[test]
    fn the_oldest_entries_make_room_and_a_long_reason_is_shortened() {
        let history = History::default();
        for _ in 0..ENTRIES_MAX + 5 {
            history.refused(3, &"é".repeat(REASON_CHARS_MAX + 1));
        }
        let entries = history.after(0);
        assert_eq!((entries.len(), entries[0].number), (ENTRIES_MAX, 6));
        let Event::Refused { reason } = &entries[0].event else { panic!("{entries:?}") };
        assert!(reason.ends_with("(the log has all of it)") && reason.chars().count() < REASON_CHARS_MAX + 50);
    }
}
