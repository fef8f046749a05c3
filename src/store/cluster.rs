//! What becomes of a request whose store is moving, failing over or away: redirects, and the hold that keeps order.
//!
//! A reply that says "elsewhere" or "not now" puts its destination (a slot, a database) on *hold*: requests that come later
//! queue behind, those that were sent before and come back are gathered in the order of their replies, and when nothing
//! sent before the hold is unanswered all go out again, first what came back. So the order of a key survives a redirect.
//! Where a destination takes nothing (LOADING, CLUSTERDOWN, no connection), one request goes alone, again and again, and the
//! rest follows when it has been answered: a store that is down costs a try now and then, however much waits for it.
//! A layout that changes without a redirect of ours (another worker's MOVED, a refresh) puts up a *barrier*: requests for
//! the slots that changed hands wait until the former owner has answered what it was asked.
//! Only what surely did not run is sent again.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::resp::reply::{self, Protocol, RedirectKind};
use crate::store::link::{Link, Outgoing, Pending};
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

/// A request on its way. Moved often, so what few of them need stands elsewhere.
pub struct Item<W: Waiter> {
    stores: Rc<Inner<W>>,
    pub(super) to: Destination,
    request: Bytes,
    replies: u32,
    protocol: Option<Protocol>,
    /// Sent alone, to find out whether its destination takes requests again.
    is_probe: bool,
    /// [`Fence::ends`](crate::store::Fence::ends) when it was asked for: it is not sent under a later lease.
    ends: u32,
    pub(super) sent_to: Option<Rc<Link<Item<W>>>>,
    detour: Option<Box<Detour>>,
    waiter: W,
}

/// What is remembered of a request that did not get through at once.
#[derive(Default)]
struct Detour {
    /// The node that an ASK named, for the next try.
    ask: Option<Arc<str>>,
    deadline: Option<Instant>,
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
        let ends = stores.fence().ends();
        Self { stores, to, request, replies, protocol, is_probe: false, ends, sent_to: None, detour: None, waiter }
    }

    /// The end of it, with an error.
    pub(super) fn give_up(self, error: LinkError) {
        self.stores.end_probe(self.to, self.is_probe, Probe::Failed);
        self.waiter.complete(self.request, Err(error));
    }

    /// Not now: waits in a hold and is tried again, until the store's patience ends.
    pub(super) fn try_later(self, error: LinkError, link: Option<Rc<Link<Item<W>>>>) {
        self.come_back(error, link, Why::NotNow);
    }

    fn come_back(mut self, error: LinkError, link: Option<Rc<Link<Item<W>>>>, why: Why) {
        if self.to == Destination::Node {
            return self.give_up(error);
        }
        let now = self.stores.now();
        if self.is_late(now) {
            return self.give_up(error);
        }
        let is_probe = std::mem::take(&mut self.is_probe);
        self.sent_to = None;
        let (stores, to) = (self.stores.clone(), self.to);
        let mut holds = stores.holds.borrow_mut();
        let hold = holds.entry(to).or_insert_with(|| Hold::new(link, stores.held.clone()));
        if why == Why::NotNow {
            hold.probes = Some(false);
            hold.reason = Some(error);
            hold.not_before = hold.not_before.max(Some(now + RETRY));
        }
        hold.held.add(&self);
        // A probe was the first, and stays it.
        if is_probe { hold.returned.push_front(self) } else { hold.returned.push_back(self) }
    }

    /// Whether it has waited as long as its store's patience lasts. The first time it is asked the wait begins.
    fn is_late(&mut self, now: Instant) -> bool {
        let patience = self.stores.patience(self.to);
        now >= *self.detour().deadline.get_or_insert(now + patience)
    }

    fn detour(&mut self) -> &mut Detour {
        self.detour.get_or_insert_default()
    }

    /// Whether the lease under which it may have been asked for has ended.
    pub(super) fn is_cut_off(&self) -> bool {
        self.ends != self.stores.fence().ends()
    }

    /// The node that an ASK named.
    pub(super) fn ask(&self) -> Option<&Arc<str>> {
        self.detour.as_ref()?.ask.as_ref()
    }

    /// Where it is sent alone, the answer tells something of its destination.
    pub(super) fn into_probe(mut self) -> Self {
        self.is_probe = true;
        self
    }
}

/// Why a request came back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It belongs elsewhere, and may go there at once.
    Elsewhere,
    /// Its destination takes nothing now.
    NotNow,
}

/// What a probe found out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    Passed,
    Failed,
}

impl<W: Waiter> Pending for Item<W> {
    fn outgoing(&self) -> Outgoing<'_> {
        let (prefix, asking): (&[u8], u32) = match self.ask() {
            Some(_) => (b"*1\r\n$6\r\nASKING\r\n", 1),
            None => (b"", 0),
        };
        Outgoing { prefix, request: &self.request, replies: self.replies + asking, protocol: self.protocol }
    }

    fn may_be_refused(&self) -> bool {
        self.waiter.may_be_refused()
    }

    fn is_urgent(&self) -> bool {
        self.waiter.is_urgent()
    }

    fn reply(mut self, answer: Reply<'_>) {
        let frame = answer.bytes();
        let held = self.stores.is_holding();
        if !frame.starts_with(b"-") || self.to == Destination::Node {
            let (stores, to, is_probe) = (held.then(|| self.stores.clone()), self.to, self.is_probe);
            self.waiter.complete(self.request, Ok(answer));
            if let Some(stores) = stores {
                stores.end_probe(to, is_probe, Probe::Passed);
                stores.release(to);
                stores.lift_barriers();
            }
            return;
        }
        let (stores, to) = (self.stores.clone(), self.to);
        let link = self.sent_to.take();
        match judge(frame, to) {
            Verdict::Answer => {
                stores.end_probe(to, self.is_probe, Probe::Passed);
                self.waiter.complete(self.request, Ok(answer));
            }
            Verdict::Later(error) => {
                stores.refresh();
                self.detour().ask = None;
                self.come_back(error, link, Why::NotNow);
            }
            Verdict::Elsewhere(kind, slot, address) => {
                let address = match (address.strip_prefix(':'), &link) {
                    (Some(port), Some(link)) => format!("{}:{port}", link.host()),
                    _ => address,
                };
                match kind {
                    RedirectKind::Moved => {
                        self.detour().ask = None;
                        stores.moved(slot, &address);
                    }
                    RedirectKind::Ask => self.detour().ask = Some(address.into()),
                }
                self.come_back(LinkError::Redirects, link, Why::Elsewhere);
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
    /// Not now; the error is for when it has waited in vain.
    Later(LinkError),
    Elsewhere(RedirectKind, u16, String),
}

/// What an error means for the request: it is the answer, or it says that the command did not run and where or when it may.
fn judge(frame: &[u8], to: Destination) -> Verdict {
    if let Some(redirect) = reply::redirect(frame) {
        return Verdict::Elsewhere(redirect.kind, redirect.slot, redirect.address);
    }
    match (reply::error_word(frame), to) {
        (b"LOADING", _) => Verdict::Later(LinkError::Loading),
        (b"MASTERDOWN", _) => Verdict::Later(LinkError::Redirects),
        (b"TRYAGAIN" | b"CLUSTERDOWN" | b"READONLY", Destination::Slot(_)) => Verdict::Later(LinkError::Redirects),
        _ => Verdict::Answer,
    }
}

/// Memory of one request that waits beside its bytes: itself, and what its waiter remembers.
const ITEM_BYTES: usize = 512;

/// How much waits in all holds and barriers of a worker.
#[derive(Clone, Debug, Default)]
pub struct Held(Rc<Cell<usize>>);

impl Held {
    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.0.get()
    }

    fn add<W: Waiter>(&self, item: &Item<W>) {
        self.0.set(self.0.get() + item.request.len() + ITEM_BYTES);
    }

    fn remove<W: Waiter>(&self, item: &Item<W>) {
        self.0.set(self.0.get() - item.request.len() - ITEM_BYTES);
    }
}

/// See the module.
pub struct Hold<W: Waiter> {
    returned: VecDeque<Item<W>>,
    later: VecDeque<Item<W>>,
    held: Held,
    not_before: Option<Instant>,
    /// Set where the destination took nothing: then one request goes alone, and the rest when it has been answered. True
    /// while it is on its way.
    probes: Option<bool>,
    /// Why the destination took nothing when it was tried last.
    reason: Option<LinkError>,
    /// The link that had the requests, and how many it had been given when the hold began.
    behind: Option<(Rc<Link<Item<W>>>, u64)>,
}

impl<W: Waiter> Hold<W> {
    fn new(link: Option<Rc<Link<Item<W>>>>, held: Held) -> Self {
        let behind = link.map(|link| {
            let sent = link.progress().0;
            (link, sent)
        });
        Self {
            returned: VecDeque::new(),
            later: VecDeque::new(),
            held,
            not_before: None,
            probes: None,
            reason: None,
            behind,
        }
    }

    /// A request that arrives during the hold.
    pub(super) fn later(&mut self, mut item: Item<W>, now: Instant) {
        // Its wait begins here.
        item.is_late(now);
        self.held.add(&item);
        self.later.push_back(item);
    }

    pub(super) fn is_ready(&self, now: Instant) -> bool {
        let drained = self.behind.as_ref().is_none_or(|(link, sent)| link.progress().1 >= *sent);
        drained && self.not_before.is_none_or(|time| now >= time)
    }

    /// Whether one request is to go alone. `None`: it is on its way.
    pub(super) fn probes(&self) -> Option<bool> {
        match self.probes {
            None => Some(false),
            Some(false) => Some(true),
            Some(true) => None,
        }
    }

    /// Takes the request that goes alone.
    pub(super) fn take_probe(&mut self) -> Option<Item<W>> {
        let item = self.returned.pop_front().or_else(|| self.later.pop_front())?;
        self.held.remove(&item);
        self.probes = Some(true);
        Some(item.into_probe())
    }

    /// The request that went alone is over.
    pub(super) fn end_probe(&mut self, probe: Probe) {
        self.probes = match probe {
            Probe::Passed => None,
            Probe::Failed => Some(false),
        };
    }

    /// Takes those that have waited too long.
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<Item<W>> {
        let mut late = Vec::new();
        for queue in [&mut self.returned, &mut self.later] {
            // They came in order, so the first are the oldest.
            while queue.front_mut().is_some_and(|item| item.is_late(now)) {
                late.extend(queue.pop_front());
            }
        }
        late.iter().for_each(|item| self.held.remove(item));
        late
    }

    /// Why they have waited in vain.
    pub(super) fn reason(&self) -> LinkError {
        let unknown = || LinkError::Down("it took no requests for as long as its patience lasts".into());
        self.reason.clone().unwrap_or_else(unknown)
    }

    /// Whether nothing waits, and nothing is on its way that could come back to the front.
    pub(super) fn is_over(&self) -> bool {
        self.returned.is_empty() && self.later.is_empty() && self.probes != Some(true)
    }

    pub(super) fn into_items(self) -> impl Iterator<Item = Item<W>> {
        let Self { returned, later, held, .. } = self;
        returned.into_iter().chain(later).inspect(move |item| held.remove(item))
    }
}

/// See the module.
pub struct Barrier<W: Waiter> {
    slots: std::collections::HashSet<u16>,
    /// The former owner, and how many requests it had been given.
    behind: (Rc<Link<Item<W>>>, u64),
    later: VecDeque<Item<W>>,
    held: Held,
}

impl<W: Waiter> Barrier<W> {
    pub(super) fn new(slots: Vec<u16>, former: Rc<Link<Item<W>>>, sent: u64, held: Held) -> Self {
        Self { slots: slots.into_iter().collect(), behind: (former, sent), later: VecDeque::new(), held }
    }

    pub(super) fn covers(&self, slot: u16) -> bool {
        self.slots.contains(&slot)
    }

    pub(super) fn later(&mut self, item: Item<W>) {
        self.held.add(&item);
        self.later.push_back(item);
    }

    pub(super) fn is_over(&self) -> bool {
        self.behind.0.progress().1 >= self.behind.1
    }

    pub(super) fn take_items(&mut self) -> VecDeque<Item<W>> {
        let items = std::mem::take(&mut self.later);
        items.iter().for_each(|item| self.held.remove(item));
        items
    }
}
