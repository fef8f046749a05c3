//! A store that may have lost what it acknowledged: a server that was restarted, a primary that was replaced by its replica.
//! Redis persists and replicates behind its answers, so after either nobody knows whether the last writes are still there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Told by links and by whoever learns the cluster's layout; heard by the control thread.
#[derive(Debug, Default)]
pub struct Loss {
    may_be: AtomicBool,
    told: Notify,
    restarts: Mutex<Restarts>,
}

/// Which restarts were told already: a server that comes back is met by a link of every worker.
#[derive(Debug, Default)]
struct Restarts {
    count: u64,
    /// Per address, the process that answers there and the count when it was met first.
    last: HashMap<String, (String, u64)>,
}

impl Loss {
    /// Something may have been lost. Called before anything is sent to the server that came back.
    pub fn tell(&self) {
        self.may_be.store(true, Ordering::Release);
        self.told.notify_one();
    }

    /// How many restarts were told so far.
    pub fn restarts(&self) -> u64 {
        self.restarts.lock().count
    }

    /// Another process than before, `run_id`, answers at `address`, as a link finds whose connection ended when
    /// [`Loss::restarts`] was `since`. Gives whether that is news: who was told of the process before that end has handed out
    /// what the old process acknowledged on this link later than the doubt.
    pub fn restarted(&self, address: &str, run_id: &str, since: u64) -> bool {
        let mut restarts = self.restarts.lock();
        if restarts.last.get(address).is_some_and(|(told, at)| told == run_id && *at > since) {
            return false;
        }
        restarts.count += 1;
        let count = restarts.count;
        restarts.last.insert(address.to_string(), (run_id.to_string(), count));
        drop(restarts);
        self.tell();
        true
    }

    /// Whether something may have been lost since the last call.
    pub fn take(&self) -> bool {
        self.may_be.swap(false, Ordering::AcqRel)
    }

    /// Waits until something may have been lost; ask [`Loss::take`] then.
    pub async fn told(&self) {
        self.told.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_that_every_link_meets_is_told_once() {
        let loss = Loss::default();
        let (one, other) = (loss.restarts(), loss.restarts());
        assert!(loss.restarted("10.0.0.1:6379", "b", one));
        assert!(loss.take());
        assert!(!loss.restarted("10.0.0.1:6379", "b", other), "its connection had ended before anybody was told");
        assert!(!loss.take());
        assert!(loss.restarted("10.0.0.1:6379", "c", other), "another restart");
        assert!(loss.restarted("10.0.0.2:6379", "c", other), "another server");
    }

    #[test]
    fn a_link_that_read_on_after_a_restart_was_told_tells_it_again() {
        let loss = Loss::default();
        assert!(loss.restarted("10.0.0.1:6379", "b", loss.restarts()));
        assert!(loss.take());
        let late = loss.restarts();
        assert!(loss.restarted("10.0.0.1:6379", "b", late), "what it read since may be lost and was not doubted");
        assert!(loss.take());
    }
}
