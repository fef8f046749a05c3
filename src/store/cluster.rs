//! What becomes of a request whose store is moving, failing over or away: redirects, and the hold that keeps order.
//!
//! A reply that says "elsewhere" or "not now" puts its destination (a slot, a database) on *hold*: requests that come later
//! queue behind, those that were sent before and come back are gathered in the order of their replies, and when nothing
//! sent before the hold is unanswered all go out again, first what came back. So the order of a key survives a redirect.
//! A layout that changes without a redirect of ours (another worker's MOVED, a refresh) puts up a *barrier*: requests for
//! the slots that changed hands wait until the former owner has answered what it was asked.
//! Only what surely did not run is sent again.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::resp::reply::{self, Protocol, RedirectKind};
use crate::store::link::{Link, Pending};
use crate::store::stores::Inner;
use crate::store::{LinkError, Reply, Waiter};

/// Between two tries of what a store puts off.
const RETRY: Duration = Duration::from_millis(25);

/// Where requests go, as far as their order is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    Standalone(u32),
    Slot(u16),
    /// One named node; never re-sent.
    Node,
}

/// A request on its way.
pub struct Item<W: Waiter> {
    stores: Rc<Inner<W>>,
    pub(super) to: Destination,
    pub(super) request: Bytes,
    pub(super) replies: u32,
    pub(super) protocol: Option<Protocol>,
    /// The node that an ASK named, for the next try.
    pub(super) ask: Option<Arc<str>>,
    pub(super) sent_to: Option<Rc<Link<Item<W>>>>,
    deadline: Option<Instant>,
    waiter: W,
}

impl<W: Waiter> Item<W> {
    pub(super) fn new(
        stores: Rc<Inner<W>>,
        to: Destination,
        request: Bytes,
        replies: u32,
        protocol: Option<Protocol>,
        waiter: W,
    ) -> Self {
        Self { stores, to, request, replies, protocol, ask: None, sent_to: None, deadline: None, waiter }
    }

    /// The end of it, with an error.
    pub(super) fn give_up(self, error: LinkError) {
        self.waiter.complete(Err(error));
    }

    /// Not now: waits in a hold and is tried again, until the store's patience ends.
    pub(super) fn try_later(self, error: LinkError, link: Option<Rc<Link<Item<W>>>>) {
        self.come_back(error, link, RETRY);
    }

    fn come_back(mut self, error: LinkError, link: Option<Rc<Link<Item<W>>>>, delay: Duration) {
        if self.to == Destination::Node {
            return self.give_up(error);
        }
        let now = self.stores.now();
        let deadline = *self.deadline.get_or_insert(now + self.stores.patience(self.to));
        if now >= deadline {
            return self.give_up(error);
        }
        self.sent_to = None;
        let (stores, to) = (self.stores.clone(), self.to);
        let mut holds = stores.holds.borrow_mut();
        let hold = holds.entry(to).or_insert_with(|| Hold::new(link));
        hold.not_before = hold.not_before.max(Some(now + delay));
        hold.bytes += self.request.len();
        hold.returned.push_back(self);
    }
}

impl<W: Waiter> Pending for Item<W> {
    fn reply(mut self, answer: Reply<'_>) {
        let frame = answer.bytes();
        let held = self.stores.is_holding();
        if !frame.starts_with(b"-") || self.to == Destination::Node {
            let (stores, to) = (held.then(|| self.stores.clone()), self.to);
            self.waiter.complete(Ok(answer));
            if let Some(stores) = stores {
                stores.release(to);
                stores.lift_barriers();
            }
            return;
        }
        let (stores, to) = (self.stores.clone(), self.to);
        let link = self.sent_to.take();
        match judge(frame, to) {
            Verdict::Answer => self.waiter.complete(Ok(answer)),
            Verdict::Later => {
                stores.refresh();
                self.ask = None;
                self.come_back(LinkError::Redirects, link, RETRY);
            }
            Verdict::Elsewhere(kind, slot, address) => {
                let address = match (address.strip_prefix(':'), &link) {
                    (Some(port), Some(link)) => format!("{}:{port}", link.host()),
                    _ => address,
                };
                match kind {
                    RedirectKind::Moved => {
                        self.ask = None;
                        stores.moved(slot, &address);
                    }
                    RedirectKind::Ask => self.ask = Some(address.into()),
                }
                self.come_back(LinkError::Redirects, link, Duration::ZERO);
            }
        }
        stores.release(to);
        stores.lift_barriers();
    }

    fn failed(self, error: LinkError) {
        let (stores, to) = (self.stores.clone(), self.to);
        if matches!(to, Destination::Slot(_)) {
            stores.refresh();
        }
        match error {
            LinkError::Down(_) => self.try_later(error, None),
            error => self.give_up(error),
        }
        // They may have waited for the answer that will not come.
        stores.release(to);
        stores.lift_barriers();
    }
}

enum Verdict {
    Answer,
    Later,
    Elsewhere(RedirectKind, u16, String),
}

/// What an error means for the request: it is the answer, or it says that the command did not run and where or when it may.
fn judge(frame: &[u8], to: Destination) -> Verdict {
    if let Some(redirect) = reply::redirect(frame) {
        return Verdict::Elsewhere(redirect.kind, redirect.slot, redirect.address);
    }
    match (reply::error_word(frame), to) {
        (b"LOADING" | b"MASTERDOWN", _) => Verdict::Later,
        (b"TRYAGAIN" | b"CLUSTERDOWN" | b"READONLY", Destination::Slot(_)) => Verdict::Later,
        _ => Verdict::Answer,
    }
}

/// See the module.
pub struct Hold<W: Waiter> {
    returned: VecDeque<Item<W>>,
    later: VecDeque<Item<W>>,
    bytes: usize,
    not_before: Option<Instant>,
    /// The link that had the requests, and how many it had been given when the hold began.
    behind: Option<(Rc<Link<Item<W>>>, u64)>,
}

impl<W: Waiter> Hold<W> {
    fn new(link: Option<Rc<Link<Item<W>>>>) -> Self {
        let behind = link.map(|link| {
            let sent = link.progress().0;
            (link, sent)
        });
        Self { returned: VecDeque::new(), later: VecDeque::new(), bytes: 0, not_before: None, behind }
    }

    /// A request that arrives during the hold.
    pub(super) fn later(&mut self, item: Item<W>) {
        self.bytes += item.request.len();
        self.later.push_back(item);
    }

    pub(super) fn queue_bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_ready(&self, now: Instant) -> bool {
        let drained = self.behind.as_ref().is_none_or(|(link, sent)| link.progress().1 >= *sent);
        drained && self.not_before.is_none_or(|time| now >= time)
    }

    pub(super) fn into_items(self) -> impl Iterator<Item = Item<W>> {
        self.returned.into_iter().chain(self.later)
    }
}

/// See the module.
pub struct Barrier<W: Waiter> {
    slots: std::collections::HashSet<u16>,
    /// The former owner, and how many requests it had been given.
    behind: (Rc<Link<Item<W>>>, u64),
    later: VecDeque<Item<W>>,
    bytes: usize,
}

impl<W: Waiter> Barrier<W> {
    pub(super) fn new(slots: Vec<u16>, former: Rc<Link<Item<W>>>, sent: u64) -> Self {
        Self { slots: slots.into_iter().collect(), behind: (former, sent), later: VecDeque::new(), bytes: 0 }
    }

    pub(super) fn covers(&self, slot: u16) -> bool {
        self.slots.contains(&slot)
    }

    pub(super) fn later(&mut self, item: Item<W>) {
        self.bytes += item.request.len();
        self.later.push_back(item);
    }

    pub(super) fn queue_bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_over(&self) -> bool {
        self.behind.0.progress().1 >= self.behind.1
    }

    pub(super) fn take_items(&mut self) -> VecDeque<Item<W>> {
        std::mem::take(&mut self.later)
    }
}
