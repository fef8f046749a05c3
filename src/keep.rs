//! Tasks without which a worker does nothing: one that panics is begun again, and the panic stays with whom it struck.

use std::future::Future;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};

/// Before a task is begun again: one that panics each time must not take the whole thread.
const PAUSE: Duration = Duration::from_millis(10);

/// How often it was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    First,
    AfterPanic,
}

/// Runs what `begin` gives on this thread, again after each panic, until it ends by itself or the handle is aborted.
pub fn keep<F: Future<Output = ()> + 'static>(
    name: &'static str,
    mut begin: impl FnMut(Turn) -> F + 'static,
) -> JoinHandle<()> {
    tokio::task::spawn_local(async move {
        let mut turn = Turn::First;
        loop {
            // A set, because it ends its task when it is dropped.
            let mut tasks = JoinSet::new();
            tasks.spawn_local(begin(turn));
            match tasks.join_next().await {
                Some(Err(error)) if error.is_panic() => {
                    tracing::error!(
                        task = name,
                        "a task of a worker panicked, which is worth a report; it begins again"
                    );
                    turn = Turn::AfterPanic;
                    tokio::time::sleep(PAUSE).await;
                }
                _ => return,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_task_that_panics_begins_again_and_one_that_ends_does_not() {
        let turns = Rc::new(RefCell::new(Vec::new()));
        let seen = turns.clone();
        let work = move |turn| {
            seen.borrow_mut().push(turn);
            let is_third = seen.borrow().len() == 3;
            async move { assert!(is_third, "a panic that this test wants") }
        };
        let ended = tokio::task::LocalSet::new().run_until(async { keep("test", work).await }).await;
        assert!(ended.is_ok());
        assert_eq!(*turns.borrow(), [Turn::First, Turn::AfterPanic, Turn::AfterPanic]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_ends_the_keeper_ends_the_task() {
        let held = Rc::new(());
        let inside = held.clone();
        let forever = move |_| {
            let inside = inside.clone();
            async move {
                std::future::pending::<()>().await;
                drop(inside);
            }
        };
        let run = async {
            let kept = keep("test", forever);
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            kept.abort();
            let _ = kept.await;
            tokio::task::yield_now().await;
        };
        tokio::task::LocalSet::new().run_until(run).await;
        assert_eq!(Rc::strong_count(&held), 1);
    }
}
