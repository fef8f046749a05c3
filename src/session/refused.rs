//! How often a worker refused, by reason. Counted where the answer is written, which knows neither worker nor route, so the
//! counters belong to the thread; the worker's tick adds them to the totals.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::REASONS;
use crate::resp::refusal::Refusal;

thread_local! {
    static COUNTS: [Cell<u64>; REASONS.len()] = const { [const { Cell::new(0) }; REASONS.len()] };
}

/// Counts a refusal of this thread.
pub fn count(refusal: &Refusal) {
    COUNTS.with(|counts| {
        let count = &counts[reason(refusal)];
        count.set(count.get() + 1);
    });
}

/// Adds what was counted since the last time.
pub fn publish(totals: &[AtomicU64; REASONS.len()]) {
    COUNTS.with(|counts| {
        for (count, total) in counts.iter().zip(totals) {
            if count.get() > 0 {
                total.fetch_add(count.take(), Ordering::Relaxed);
            }
        }
    });
}

/// The place in [`REASONS`].
fn reason(refusal: &Refusal) -> usize {
    match refusal {
        Refusal::CrossSlot { .. } => 0,
        Refusal::NotSupported { .. } => 1,
        Refusal::StoreDown | Refusal::NoHolder | Refusal::NotHolder => 2,
        Refusal::UnknownOutcome => 3,
        Refusal::Denied(_) => 5,
        Refusal::NoLinkFree => 6,
        Refusal::Limited { .. } => 7,
        Refusal::Overloaded => 8,
        Refusal::UnknownCommand(_)
        | Refusal::WrongArity(_)
        | Refusal::Syntax
        | Refusal::TooManyClients
        | Refusal::Text(_)
        | Refusal::Verbatim(_) => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_counted_once_under_its_reason() {
        let totals: [AtomicU64; REASONS.len()] = Default::default();
        count(&Refusal::StoreDown);
        count(&Refusal::StoreDown);
        count(&Refusal::CrossSlot { command: "sinter".into(), reason: "" });
        publish(&totals);
        publish(&totals);
        assert_eq!(totals.map(AtomicU64::into_inner), [1, 0, 2, 0, 0, 0, 0, 0, 0]);
    }
}
