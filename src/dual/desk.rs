//! What the rest of the program knows of the lease, and asks of whoever keeps it ([`tenure`](crate::dual::tenure)).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::dual::lease::Phases;
use crate::routing::Table;
use crate::store::{Fence, Role};

/// What is asked of the keeper of the lease. The channel is unbounded: an adoption asks three times, one at a time.
pub enum Ask {
    /// Takes the lease, and has the other proxies know what the table is, and is about to become.
    Announce { phases: Box<[Phases; 2]>, patience: Duration, done: oneshot::Sender<Result<(), String>> },
    /// What was announced counts from now on.
    Commit { done: oneshot::Sender<Result<(), String>> },
    /// The adoption is over, whatever came of it.
    Settle,
    /// The program ends. `is_clean`: both stores have everything.
    Leave { is_clean: bool, done: oneshot::Sender<()> },
}

/// Who holds the lease, as an operator sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct View {
    /// `holds`, `not needed`, `follows`, `waits`.
    pub role: &'static str,
    /// Of the lease.
    pub name: String,
    /// Where the holder serves clients.
    pub holder: Option<String>,
    /// Why there is none.
    pub reason: Option<String>,
    /// How the table in this proxy's file differs from the holder's.
    pub differs: Vec<String>,
}

/// How many commands that write the keeper of the lease has sent to a store, and how many of these have been answered.
#[derive(Debug, Default)]
pub struct Records {
    sent: AtomicU64,
    answered: AtomicU64,
}

impl Records {
    pub(super) fn send(&self, commands: u64) {
        self.sent.fetch_add(commands, Ordering::Relaxed);
    }

    /// What was sent before on a connection that is gone is over by then, too.
    pub(super) fn answer(&self) {
        self.answered.store(self.sent(), Ordering::Relaxed);
    }

    /// How many were sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// How many of these have run or never will.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

/// See the module. The locks are held for a look only.
#[derive(Default)]
pub struct Desk {
    pub fence: Arc<Fence>,
    /// Beside the running table of a proxy that follows: one that the holder may still go by.
    pub leaving: ArcSwapOption<Table>,
    asks: Option<mpsc::UnboundedSender<Ask>>,
    view: Mutex<View>,
    /// The holder's table has become another, or this proxy has become the holder: the file is to be judged again.
    pub changed: Notify,
    /// This proxy has taken over what another left.
    pub taken: Notify,
    forwarded: AtomicU64,
    /// By store, the standalone's first.
    pub records: [Arc<Records>; 2],
}

impl Desk {
    /// One whose asks are heard at the other end.
    pub fn new(fence: Arc<Fence>) -> (Self, mpsc::UnboundedReceiver<Ask>) {
        let (asks, heard) = mpsc::unbounded_channel();
        (Self { fence, asks: Some(asks), ..Self::default() }, heard)
    }

    /// Who holds the lease.
    pub fn view(&self) -> View {
        self.view.lock().clone()
    }

    pub(super) fn show(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.view.lock());
    }

    /// Where the holder serves clients, if that is another proxy.
    pub fn followed(&self) -> Option<String> {
        if !matches!(self.fence.role(), Role::Follows | Role::Defers) {
            return None;
        }
        self.view.lock().holder.clone()
    }

    /// Notes how the table in the file differs from the holder's.
    pub(super) fn set_differs(&self, differs: Vec<String>) {
        self.view.lock().differs = differs;
    }

    /// Counts a request that went to the holder.
    pub fn note_forwarded(&self) {
        self.forwarded.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests went to the holder.
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// Waits until this proxy may do dual writes.
    pub async fn holder(&self) {
        while !self.fence.is_holder() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn ask(&self, ask: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Ask) -> Result<(), String> {
        let Some(asks) = &self.asks else { return Ok(()) };
        let (done, answer) = oneshot::channel();
        let gone = || Err("the keeper of the lease has ended".into());
        if asks.send(ask(done)).is_err() {
            return gone();
        }
        answer.await.unwrap_or_else(|_| gone())
    }

    pub(super) async fn announce(&self, now: Phases, next: Phases, patience: Duration) -> Result<(), String> {
        self.ask(|done| Ask::Announce { phases: Box::new([now, next]), patience, done }).await
    }

    pub(super) async fn commit(&self) -> Result<(), String> {
        self.ask(|done| Ask::Commit { done }).await
    }

    pub(super) fn settle(&self) {
        // A keeper that has ended holds nothing.
        let _ = self.asks.as_ref().map(|asks| asks.send(Ask::Settle));
    }

    /// Gives the lease back, or lets it end at once, when the program has drained.
    pub async fn leave(&self, is_clean: bool) {
        let Some(asks) = &self.asks else { return };
        let (done, left) = oneshot::channel();
        let _ = asks.send(Ask::Leave { is_clean, done });
        // A store that does not answer lets it end by itself.
        let _ = tokio::time::timeout(Duration::from_secs(2), left).await;
    }
}
