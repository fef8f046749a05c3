//! A store that may have lost what it acknowledged: a server that was restarted, a primary that was replaced by its replica.
//! Redis persists and replicates behind its answers, so after either nobody knows whether the last writes are still there.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Told by links and by whoever learns the cluster's layout; heard by the control thread.
#[derive(Debug, Default)]
pub struct Loss {
    may_be: AtomicBool,
    told: Notify,
}

impl Loss {
    /// Something may have been lost. Called before anything is sent to the server that came back.
    pub fn tell(&self) {
        self.may_be.store(true, Ordering::Release);
        self.told.notify_one();
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
