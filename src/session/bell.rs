//! Wakes the one task that waits for it. As a `Notify` that is remembered until somebody waits, but who waits holds no place in a
//! list, so that ten thousand idle clients hold none.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// See the module.
#[derive(Debug, Default)]
pub struct Bell {
    is_rung: AtomicBool,
    waiting: AtomicWaker,
}

impl Bell {
    /// Wakes who waits, or the next one.
    pub fn ring(&self) {
        self.is_rung.store(true, Ordering::Release);
        self.waiting.wake();
    }

    /// Waits until it rings. Of two tasks only the one that asked last is woken.
    pub async fn rung(&self) {
        poll_fn(|context| self.poll_rung(context)).await;
    }

    pub fn poll_rung(&self, context: &mut Context<'_>) -> Poll<()> {
        self.waiting.register(context.waker());
        if self.is_rung.swap(false, Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_comes_late_hears_it_once() {
        let bell = Bell::default();
        bell.ring();
        bell.ring();
        bell.rung().await;
        assert!(bell.rung().now_or_never().is_none());
    }

    #[tokio::test]
    async fn another_thread_wakes_who_waits() {
        let bell = Arc::new(Bell::default());
        let other = bell.clone();
        let ringing = std::thread::spawn(move || other.ring());
        bell.rung().await;
        ringing.join().expect("it rang");
    }
}
