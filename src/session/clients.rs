//! All clients of the proxy, for CLIENT LIST, KILL, UNBLOCK and PAUSE. Shared by the workers; a request costs it two relaxed
//! stores, everything else happens when a client comes, goes or asks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::session::bell::Bell;
use crate::session::client_command;
use crate::session::users;

/// What others may want of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Wish {
    None,
    /// To be closed.
    Kill,
    /// A blocked command is to end as if its time were over.
    Unblock,
    /// A blocked command is to end with an error.
    UnblockWithError,
    /// To be closed, unless it waits for an answer.
    CloseIfIdle,
}

/// What a client is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub name: Bytes,
    /// As whom it logged in.
    pub user: Bytes,
    pub library: Bytes,
    pub library_version: Bytes,
}

impl Default for Names {
    fn default() -> Self {
        let user = users::DEFAULT.into();
        Self { name: Bytes::new(), user, library: Bytes::new(), library_version: Bytes::new() }
    }
}

/// What stands in CLIENT LIST of a server's buffers, of which a proxy has none: clients (redis-py up to 5) read these as numbers
/// and fail without them.
const UNKNOWN: &str = "qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r";

/// One client, as the others see it. Each value stands for itself, so relaxed ordering is enough; `wish` is followed by
/// `bell`, which orders it.
#[derive(Debug)]
pub struct Client {
    pub id: u64,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    created: Instant,
    /// Held for a copy only. `None`: as a client that has said nothing of itself, which most have not.
    names: Mutex<Option<Box<Names>>>,
    pub db: AtomicU32,
    pub is_resp3: AtomicBool,
    pub is_blocked: AtomicBool,
    /// Channels, patterns and shard channels.
    pub subscriptions: [AtomicU32; 3],
    /// Commands queued in a transaction; -1 outside of one.
    pub queued: AtomicI64,
    /// [`crate::command::place`] of the last command; in the upper half that of CLIENT's sub-command, one added.
    pub last_command: AtomicU32,
    /// By [`Clients::clock`].
    pub last_active: AtomicU64,
    wish: AtomicU8,
    /// Rung when there is a wish, when the client is to be closed, and when the program ends.
    pub bell: Bell,
}

impl Client {
    /// Takes the wish, which is fulfilled once.
    pub fn take_wish(&self) -> Wish {
        match self.wish.swap(Wish::None as u8, Ordering::AcqRel) {
            1 => Wish::Kill,
            2 => Wish::Unblock,
            3 => Wish::UnblockWithError,
            4 => Wish::CloseIfIdle,
            _ => Wish::None,
        }
    }

    fn ask(&self, wish: Wish) {
        self.wish.store(wish as u8, Ordering::Release);
        self.bell.ring();
    }

    /// How long ago it connected.
    pub fn age(&self) -> Duration {
        self.created.elapsed()
    }

    /// Whether it has asked for nothing in `seconds`. Whoever waits for others, or listens to them, is not idle.
    fn is_idle(&self, now: u64, seconds: u64) -> bool {
        now.saturating_sub(self.last_active.load(Ordering::Relaxed)) >= seconds
            && !self.is_blocked.load(Ordering::Relaxed)
            && !self.is_pubsub()
    }

    /// What it is called.
    pub fn names(&self) -> Names {
        self.names.lock().as_deref().cloned().unwrap_or_default()
    }

    /// Changes what it is called.
    pub fn rename(&self, change: impl FnOnce(&mut Names)) {
        let mut held = self.names.lock();
        let mut names = held.take().map_or_else(Names::default, |names| *names);
        change(&mut names);
        *held = (names != Names::default()).then(|| Box::new(names));
    }

    /// As CLIENT LIST writes it, but for the file descriptor.
    fn describe(&self, out: &mut String, now: u64) {
        let names = self.names();
        let get = |value: &AtomicU32| value.load(Ordering::Relaxed);
        let queued = self.queued.load(Ordering::Relaxed);
        let [sub, psub, ssub] = [0, 1, 2].map(|family| get(&self.subscriptions[family]));
        let mut flags = String::new();
        for (flag, is_set) in
            [('P', self.is_pubsub()), ('x', queued >= 0), ('b', self.is_blocked.load(Ordering::Relaxed))]
        {
            flags.extend(is_set.then_some(flag));
        }
        let (place, sub_command) = (get(&self.last_command) & 0xffff, get(&self.last_command) >> 16);
        let mut command = crate::command::at(place).map_or("NULL".into(), |spec| spec.name.to_lowercase());
        if let Some(name) = sub_command.checked_sub(1).and_then(client_command::sub_command) {
            let _ = write!(command, "|{}", name.to_lowercase());
        }
        let text = String::from_utf8_lossy;
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "id={} addr={} laddr={} name={} age={} idle={} flags={} db={} sub={sub} psub={psub} ssub={ssub} multi={queued} {UNKNOWN} cmd={command} user={} redir=-1 resp={} lib-name={} lib-ver={}",
            self.id,
            self.peer,
            self.local,
            text(&names.name),
            self.created.elapsed().as_secs(),
            now.saturating_sub(self.last_active.load(Ordering::Relaxed)),
            if flags.is_empty() { "N" } else { &flags },
            get(&self.db),
            text(&names.user),
            if self.is_resp3.load(Ordering::Relaxed) { 3 } else { 2 },
            text(&names.library),
            text(&names.library_version),
        );
    }

    fn is_pubsub(&self) -> bool {
        self.subscriptions.iter().any(|family| family.load(Ordering::Relaxed) > 0)
    }
}

/// Which clients are meant.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub ids: Option<Vec<u64>>,
    pub peer: Option<Bytes>,
    pub local: Option<Bytes>,
    /// `normal`, `pubsub`; the other types of Redis have no members here.
    pub kind: Option<Bytes>,
    pub user: Option<Bytes>,
    /// This one is not meant.
    pub but: Option<u64>,
}

impl Filter {
    fn fits(&self, client: &Client) -> bool {
        let is = |wanted: &Option<Bytes>, value: &str| wanted.as_ref().is_none_or(|wanted| *wanted == value);
        self.ids.as_ref().is_none_or(|ids| ids.contains(&client.id))
            && is(&self.peer, &client.peer.to_string())
            && is(&self.local, &client.local.to_string())
            && is(&self.kind, if client.is_pubsub() { "pubsub" } else { "normal" })
            && self.user.as_ref().is_none_or(|wanted| *wanted == client.names().user)
            && self.but != Some(client.id)
    }
}

/// Which commands a pause holds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    All,
    Writes,
}

/// See the module.
pub struct Clients {
    began: Instant,
    /// Held while a client comes or goes, and while the list is read; nothing waits inside.
    list: Mutex<BTreeMap<u64, Arc<Client>>>,
    /// Seconds since the start, told by a worker's tick.
    clock: AtomicU64,
    /// Milliseconds since the start; 0: no pause.
    paused_until: AtomicU64,
    pauses_writes_only: AtomicBool,
    unpaused: Notify,
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            list: Mutex::default(),
            clock: AtomicU64::new(0),
            paused_until: AtomicU64::new(0),
            pauses_writes_only: AtomicBool::new(false),
            unpaused: Notify::new(),
        }
    }
}

impl Clients {
    /// A client came.
    pub fn add(&self, id: u64, peer: SocketAddr, local: SocketAddr) -> Arc<Client> {
        let client = Arc::new(Client {
            id,
            peer,
            local,
            created: Instant::now(),
            names: Mutex::default(),
            db: AtomicU32::new(0),
            is_resp3: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            subscriptions: Default::default(),
            queued: AtomicI64::new(-1),
            last_command: AtomicU32::new(u32::MAX),
            last_active: AtomicU64::new(self.clock()),
            wish: AtomicU8::new(Wish::None as u8),
            bell: Bell::default(),
        });
        self.list.lock().insert(id, client.clone());
        client
    }

    /// A client went.
    pub fn remove(&self, id: u64) {
        self.list.lock().remove(&id);
    }

    /// Seconds since the start, up to a tick late.
    pub fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// Moves the clock on; one worker calls it at each tick. Whether another second has begun.
    pub fn tick(&self) -> bool {
        let now = self.began.elapsed().as_secs();
        self.clock.swap(now, Ordering::Relaxed) != now
    }

    /// A line for each client that fits.
    pub fn describe(&self, filter: &Filter) -> String {
        let mut out = String::new();
        for client in self.list.lock().values().filter(|client| filter.fits(client)) {
            client.describe(&mut out, self.clock());
        }
        out
    }

    /// Asks each that fits to end; gives how many.
    pub fn kill(&self, filter: &Filter) -> usize {
        let list = self.list.lock();
        let meant = list.values().filter(|client| filter.fits(client));
        meant.map(|client| client.ask(Wish::Kill)).count()
    }

    /// Asks those that have been idle for `seconds` to end. Another wish goes before.
    pub fn close_idle(&self, seconds: u64) {
        let (list, now) = (self.list.lock(), self.clock());
        for client in list.values().filter(|client| client.is_idle(now, seconds)) {
            let (none, wish) = (Wish::None as u8, Wish::CloseIfIdle as u8);
            if client.wish.compare_exchange(none, wish, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                client.bell.ring();
            }
        }
    }

    /// Has each look whether the program ends.
    pub fn ring_all(&self) {
        self.list.lock().values().for_each(|client| client.bell.ring());
    }

    /// Ends a blocked command; whether there was one.
    pub fn unblock(&self, id: u64, wish: Wish) -> bool {
        let list = self.list.lock();
        let found = list.get(&id).filter(|client| client.is_blocked.load(Ordering::Relaxed));
        found.map(|client| client.ask(wish)).is_some()
    }

    /// Holds up commands for a while; a longer pause that is under way stays.
    pub fn pause(&self, time: Duration, pause: Pause) {
        let until = (self.began.elapsed() + time).as_millis() as u64;
        let is_stricter = self.is_paused() && !self.pauses_writes_only.load(Ordering::Relaxed);
        self.pauses_writes_only.store(pause == Pause::Writes && !is_stricter, Ordering::Relaxed);
        self.paused_until.fetch_max(until.max(1), Ordering::Relaxed);
    }

    /// Ends a pause.
    pub fn unpause(&self) {
        self.paused_until.store(0, Ordering::Relaxed);
        self.unpaused.notify_waiters();
    }

    /// Whether there may be a pause; the cheap question before [`Clients::wait_unpaused`].
    #[inline]
    pub fn is_paused(&self) -> bool {
        self.paused_until.load(Ordering::Relaxed) != 0
    }

    /// Waits for the end of a pause that holds up such a command.
    pub async fn wait_unpaused(&self, is_write: bool) {
        loop {
            let until = Duration::from_millis(self.paused_until.load(Ordering::Relaxed));
            let left = until.saturating_sub(self.began.elapsed());
            if left.is_zero() {
                // The first to see that it is over says so to the cheap question.
                let _ = self.paused_until.compare_exchange(
                    until.as_millis() as u64,
                    0,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                return;
            }
            if !is_write && self.pauses_writes_only.load(Ordering::Relaxed) {
                return;
            }
            let _ = tokio::time::timeout(left, self.unpaused.notified()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> (Clients, Arc<Client>, Arc<Client>) {
        let clients = Clients::default();
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (first, second) =
            (clients.add(1, address(1001), address(6380)), clients.add(2, address(1002), address(6380)));
        (clients, first, second)
    }

    #[test]
    fn a_filter_means_those_it_names_and_nobody_else() {
        let (clients, first, second) = clients();
        second.subscriptions[0].store(1, Ordering::Relaxed);
        let lines = |filter: Filter| clients.describe(&filter).lines().count();
        assert_eq!(lines(Filter::default()), 2);
        assert_eq!(lines(Filter { ids: Some(vec![2, 9]), ..Filter::default() }), 1);
        assert_eq!(lines(Filter { peer: Some("127.0.0.1:1001".into()), ..Filter::default() }), 1);
        assert_eq!(lines(Filter { user: Some("nobody".into()), ..Filter::default() }), 0);
        assert_eq!(clients.kill(&Filter { kind: Some("pubsub".into()), but: Some(1), ..Filter::default() }), 1);
        assert_eq!((first.take_wish(), second.take_wish(), second.take_wish()), (Wish::None, Wish::Kill, Wish::None));
        clients.remove(1);
        assert_eq!(lines(Filter::default()), 1);
    }

    #[test]
    fn only_a_blocked_client_is_unblocked() {
        let (clients, first, _) = clients();
        assert!(!clients.unblock(1, Wish::Unblock));
        first.is_blocked.store(true, Ordering::Relaxed);
        assert!(clients.unblock(1, Wish::UnblockWithError));
        assert_eq!(first.take_wish(), Wish::UnblockWithError);
    }

    #[test]
    fn who_waits_or_listens_is_not_idle_and_a_wish_is_not_lost() {
        let (clients, first, second) = clients();
        clients.clock.store(9, Ordering::Relaxed);
        clients.close_idle(10);
        assert_eq!(first.take_wish(), Wish::None);
        first.is_blocked.store(true, Ordering::Relaxed);
        second.subscriptions[0].store(1, Ordering::Relaxed);
        clients.close_idle(9);
        assert_eq!((first.take_wish(), second.take_wish()), (Wish::None, Wish::None));
        first.is_blocked.store(false, Ordering::Relaxed);
        second.subscriptions[0].store(0, Ordering::Relaxed);
        clients.kill(&Filter { ids: Some(vec![1]), ..Filter::default() });
        clients.close_idle(9);
        assert_eq!((first.take_wish(), second.take_wish()), (Wish::Kill, Wish::CloseIfIdle));
    }

    #[tokio::test]
    async fn a_pause_ends_by_itself_or_when_told_to() {
        let (clients, ..) = clients();
        assert!(!clients.is_paused());
        clients.pause(Duration::from_millis(20), Pause::Writes);
        clients.wait_unpaused(false).await;
        assert!(clients.is_paused(), "reads pass");
        std::thread::sleep(Duration::from_millis(30));
        clients.wait_unpaused(true).await;
        assert!(!clients.is_paused());
        clients.pause(Duration::from_secs(1000), Pause::All);
        let waiting = clients.wait_unpaused(false);
        tokio::join!(waiting, async { clients.unpause() });
        assert!(!clients.is_paused());
    }
}
