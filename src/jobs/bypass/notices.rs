//! What a store tells of keys that change (notifications of keys), where its `notify-keyspace-events` says so: `K` or `E`, and
//! classes of commands that write. That setting is read and never changed.
//!
//! The proxy's own writes, effects and copies are told of as well, and a notification does not say who wrote. So a change
//! counts as the proxy's where it has sent anything that writes for that key lately ([`Recent`](crate::dual::Recent)): before
//! the change, for an effect may wait for its turn at a slow follower, or up to two seconds behind it, when an answer has come
//! that says so (a blocked command's). That is asked for at leisure and costs a write to a dual route one store into a
//! table, only while somebody listens. What is lost by it: a foreign write to a key that the proxy writes as well within
//! those seconds.
//!
//! What is no write: a key that expired or was evicted, and the end of a hash whose last field expired. What is no proof: a
//! change beside a lost answer or a node that hangs, for what was sent may run later; one of a route that has just
//! become dual; and, on the cluster, a key that goes or comes (`del`, `restore`) while slots move. Only the holder of the
//! lease listens, because it alone does dual writes. A node that tells of more than [`NOTICES_MAX`] changes between two looks is
//! listened to for a part of the time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::jobs::bypass::{FoundBy, Writer};
use crate::jobs::{Context, scan};
use crate::resp::reply::{self, Protocol};
use crate::resp::write;
use crate::routing::{RouteName, Side, Table, is_reserved};
use crate::store::PrivateLink;
use crate::store::link::Endpoint;

/// How long before a change the proxy's own write of the key may have been sent, or answered.
const OWN_SECONDS: u32 = 10;
/// How long after it.
const ANSWER_SECONDS: u32 = 2;
/// From when on changes are judged, after a route has become dual or somebody has begun to listen.
const SETTLE_SECONDS: u32 = 3;
/// What a node may tell between two looks; reading them takes a tenth of a second or so.
const NOTICES_MAX: usize = 50_000;
/// Changes that wait to be judged, of all nodes, and routes that are suspected at a time; of more nothing is said.
const HEARD_MAX: usize = 200_000;
const SUSPECTS_MAX: usize = 1_000;
/// A connection that says nothing for so long is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(10);
/// Of a key that is shown.
const KEY_BYTES_SHOWN: usize = 200;

/// Events that are no command's.
const NO_WRITES: [&[u8]; 6] = [b"expired", b"evicted", b"keymiss", b"new", b"key_trimmed", b"key-trimmed"];

/// A change of a key of a dual route.
struct Heard {
    side: Side,
    node: Arc<str>,
    /// The application's name of it.
    key: Bytes,
    event: Bytes,
    second: u32,
}

/// Where a suspicion is: side, node and route, and whether a move of slots could be behind it.
type Place = (Side, Arc<str>, RouteName, bool);

/// Changes of a route on a node that were not the proxy's.
struct Suspect {
    key: Bytes,
    event: Bytes,
    changes: u64,
    /// Of the last one.
    second: u32,
}

/// What was heard and not yet told. The locks guard lists, for an instant.
pub(super) struct Notices {
    /// Since the beginning, from 1 on.
    second: AtomicU32,
    heard: Mutex<VecDeque<Heard>>,
    suspects: Mutex<HashMap<Place, Suspect>>,
    /// When something was in the way of a judgement last, and of one about keys that come and go on the cluster; 0: never.
    unsteady: AtomicU32,
    moving: AtomicU32,
    /// How long it may take until that is noticed.
    look_seconds: u32,
}

impl Notices {
    /// Nothing was heard.
    pub fn new(look_every: Duration) -> Self {
        Self {
            second: AtomicU32::new(1),
            heard: Mutex::default(),
            suspects: Mutex::default(),
            unsteady: AtomicU32::new(0),
            moving: AtomicU32::new(0),
            look_seconds: u32::try_from(look_every.as_secs()).unwrap_or(u32::MAX / 4).min(u32::MAX / 4) + 1,
        }
    }

    fn now(&self) -> u32 {
        self.second.load(Ordering::Relaxed)
    }

    /// An answer was lost, or a node does not answer: what was sent may run later.
    pub fn note_unsteady(&self) {
        self.unsteady.store(self.now(), Ordering::Relaxed);
    }

    /// Slots of the cluster move, or may.
    pub fn note_moving(&self) {
        self.moving.store(self.now(), Ordering::Relaxed);
    }

    /// Whether a change in that second is too near to something that was noticed.
    fn is_beside(&self, noticed: &AtomicU32, second: u32) -> bool {
        let noticed = noticed.load(Ordering::Relaxed);
        noticed > 0 && noticed.abs_diff(second) <= OWN_SECONDS + self.look_seconds
    }

    /// What was found since this was asked last, with its route.
    pub fn take(&self) -> Vec<(RouteName, Writer)> {
        let suspects = std::mem::take(&mut *self.suspects.lock());
        let tell = |((side, node, route, is_move_like), suspect): (Place, Suspect)| {
            if self.is_beside(&self.unsteady, suspect.second)
                || (is_move_like && self.is_beside(&self.moving, suspect.second))
            {
                return None;
            }
            let key = &suspect.key[..suspect.key.len().min(KEY_BYTES_SHOWN)];
            let writer = Writer {
                node: node.to_string(),
                command: String::from_utf8_lossy(&suspect.event).into_owned(),
                route: Some(route.to_string()),
                key: Some(key.escape_ascii().to_string()),
                writes: suspect.changes,
                ..Writer::new(FoundBy::Notification, side)
            };
            Some((route, writer))
        };
        suspects.into_iter().filter_map(tell).collect()
    }

    fn hear(&self, heard: Heard) {
        let mut all = self.heard.lock();
        if all.len() < HEARD_MAX {
            all.push_back(heard);
        }
    }

    /// Takes what is old enough to be judged.
    fn ripe(&self) -> Vec<Heard> {
        let now = self.now();
        let mut all = self.heard.lock();
        let count = all.iter().take_while(|heard| heard.second + ANSWER_SECONDS < now).count();
        all.drain(..count).collect()
    }

    fn suspect(&self, heard: Heard, route: RouteName) {
        let is_move_like = heard.side == Side::Cluster && matches!(&*heard.event, b"del" | b"restore");
        let mut suspects = self.suspects.lock();
        let is_full = suspects.len() >= SUSPECTS_MAX;
        let place = (heard.side, heard.node, route, is_move_like);
        if let Some(known) = suspects.get_mut(&place) {
            (known.changes, known.second) = (known.changes + 1, heard.second);
        } else if !is_full {
            suspects.insert(place, Suspect { key: heard.key, event: heard.event, changes: 1, second: heard.second });
        }
    }

    fn forget(&self) {
        self.heard.lock().clear();
        self.suspects.lock().clear();
    }
}

/// A task that ends with its owner.
struct Listener(JoinHandle<()>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Listens to the nodes while a route is dual and this proxy serves it, and judges what they tell.
pub(super) async fn listen(context: &Arc<Context>, notices: &Arc<Notices>, every: Duration) {
    let started = Instant::now();
    let mut listeners: HashMap<(Side, Arc<str>), Listener> = HashMap::new();
    let mut since: HashMap<RouteName, u32> = HashMap::new();
    // When somebody began to listen, so that own writes are remembered.
    let mut heeded = None;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = u32::try_from(started.elapsed().as_secs()).unwrap_or(u32::MAX / 2) + 1;
        notices.second.store(now, Ordering::Relaxed);
        let table = context.table();
        let is_dual = table.routes().iter().any(|route| route.dual.is_some());
        if !is_dual || !context.adopter.desk().fence.is_holder() {
            listeners.clear();
            since.clear();
            heeded = None;
            context.recent.set_second(0);
            notices.forget();
            continue;
        }
        let map = context.slot_map.load_full();
        let primaries = map.primaries().iter().map(|address| (Side::Cluster, scan::node(context, address)));
        let nodes: Vec<_> = std::iter::once((Side::Standalone, context.standalone.clone())).chain(primaries).collect();
        listeners.retain(|(side, address), _| {
            nodes.iter().any(|(other, endpoint)| side == other && *address == endpoint.address)
        });
        for (side, endpoint) in nodes {
            listeners.entry((side, endpoint.address.clone())).or_insert_with(|| {
                Listener(tokio::spawn(listen_on(context.clone(), notices.clone(), side, endpoint, every)))
            });
        }
        if context.bypass.listening() == 0 {
            heeded = None;
            context.recent.set_second(0);
            notices.forget();
            continue;
        }
        context.recent.set_second(now);
        let heeded = *heeded.get_or_insert(now);
        since.retain(|name, _| table.find(name).is_some_and(|route| route.dual.is_some()));
        for route in table.routes().iter().filter(|route| route.dual.is_some()) {
            since.entry(route.name.clone()).or_insert(now);
        }
        for heard in notices.ripe() {
            let route = table.route_of(&heard.key).0;
            let Some(since) = since.get(&route.name) else { continue };
            let is_settled = heard.second >= heeded.max(*since) + SETTLE_SECONDS;
            let is_own = || context.recent.has(&heard.key, heard.second.saturating_sub(OWN_SECONDS));
            if is_settled && !is_own() {
                notices.suspect(heard, route.name.clone());
            }
        }
    }
}

/// Listens to one node for as long as it is wanted.
async fn listen_on(context: Arc<Context>, notices: Arc<Notices>, side: Side, endpoint: Endpoint, every: Duration) {
    loop {
        // A node that is away, or does not tell, is asked again: its settings may change.
        let _ = listen_once(&context, &notices, side, &endpoint, every).await;
        tokio::time::sleep(every).await;
    }
}

/// Counts a node that is listened to, until it is dropped.
struct Listening<'c>(&'c Context);

impl<'c> Listening<'c> {
    fn to(context: &'c Context) -> Self {
        context.bypass.listening.fetch_add(1, Ordering::Relaxed);
        Self(context)
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.bypass.listening.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn listen_once(
    context: &Arc<Context>,
    notices: &Notices,
    side: Side,
    endpoint: &Endpoint,
    every: Duration,
) -> Option<()> {
    let mut link = PrivateLink::connect(endpoint, Protocol::Resp2).await.ok()?;
    let ask = link.call(b"*3\r\n$6\r\nCONFIG\r\n$3\r\nGET\r\n$22\r\nnotify-keyspace-events\r\n");
    let answer = tokio::time::timeout(endpoint.timeouts.reply, ask).await.ok()?.ok()?;
    let form = reply::elements(&answer)?.get(1).and_then(|flags| Form::of(reply::bulk(&answer[flags.clone()])?))?;
    let databases: Vec<u32> = match side {
        Side::Standalone => context.table().databases().moving().collect(),
        Side::Cluster => vec![0],
    };
    let patterns: Vec<String> = databases.iter().map(|db| form.pattern(*db)).collect();
    let mut subscribe: Vec<&[u8]> = vec![b"PSUBSCRIBE"];
    subscribe.extend(patterns.iter().map(String::as_bytes));
    let mut out = BytesMut::new();
    write::command(&mut out, &subscribe);
    link.send(&out).await.ok()?;
    let mut listening = None;
    let (mut began, mut told, mut is_asked) = (Instant::now(), 0, false);
    loop {
        let Ok(frame) = tokio::time::timeout(SILENCE, link.receive()).await else {
            if is_asked {
                return None;
            }
            is_asked = true;
            link.send(b"*1\r\n$4\r\nPING\r\n").await.ok()?;
            continue;
        };
        let frame = frame.ok()?;
        is_asked = false;
        if reply::is_error(&frame) {
            return None;
        }
        listening.get_or_insert_with(|| Listening::to(context));
        if let Some((db, key, event)) = form.read(&frame) {
            note(context, notices, (side, endpoint), db, key, event);
        }
        if began.elapsed() > every {
            (began, told) = (Instant::now(), 0);
        }
        told += 1;
        if told > NOTICES_MAX {
            // The rest of the time goes to the others on this thread.
            return None;
        }
    }
}

/// Notes a change of a key, if its route is dual.
fn note(context: &Context, notices: &Notices, (side, endpoint): (Side, &Endpoint), db: u32, name: Bytes, event: Bytes) {
    if is_reserved(&name) || NO_WRITES.contains(&&*event) {
        return;
    }
    let table = context.table();
    let Some(key) = own_name(&table, side, db, name) else { return };
    if &*event == b"hexpired" {
        // The hash may be deleted with its last field.
        return context.recent.note(&key);
    }
    if table.route_of(&key).0.dual.is_some() {
        let (node, second) = (endpoint.address.clone(), notices.now());
        notices.hear(Heard { side, node, key, event, second });
    }
}

/// The application's name of a key in a database that moves.
fn own_name(table: &Table, side: Side, db: u32, name: Bytes) -> Option<Bytes> {
    match side {
        Side::Standalone => table.databases().is_moving(db).then_some(name),
        Side::Cluster => table.own_name(&name).map(|own| name.slice_ref(own)),
    }
}

/// How a server tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The channel is the event, the message the key.
    Events,
    /// The other way round.
    Keys,
}

impl Form {
    /// By the setting; `None`: no command that writes is told of.
    fn of(flags: &[u8]) -> Option<Self> {
        let has = |any: &[u8]| flags.iter().any(|flag| any.contains(flag));
        match has(b"Ag$lshztd") {
            true if has(b"E") => Some(Self::Events),
            true if has(b"K") => Some(Self::Keys),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Events => "keyevent",
            Self::Keys => "keyspace",
        }
    }

    fn pattern(self, db: u32) -> String {
        format!("__{}@{db}__:*", self.word())
    }

    /// Database, key and event of a message.
    fn read(self, frame: &Bytes) -> Option<(u32, Bytes, Bytes)> {
        let cells = reply::elements(frame)?;
        let cell = |index: usize| {
            let cell = frame.slice(cells.get(index)?.clone());
            Some(cell.slice_ref(reply::bulk(&cell)?))
        };
        if cells.len() != 4 || &*cell(0)? != b"pmessage" {
            return None;
        }
        let (channel, message) = (cell(2)?, cell(3)?);
        let rest = channel.strip_prefix(b"__")?.strip_prefix(self.word().as_bytes())?.strip_prefix(b"@")?;
        let end = memchr::memmem::find(rest, b"__:")?;
        let db = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
        let rest = channel.slice_ref(&rest[end + 3..]);
        Some(match self {
            Self::Events => (db, message, rest),
            Self::Keys => (db, rest, message),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_notification_are_read() {
        let message = |channel: &str, text: &str| {
            let mut out = BytesMut::new();
            let pattern = &b"__key*"[..];
            write::command(&mut out, &[b"pmessage", pattern, channel.as_bytes(), text.as_bytes()]);
            out.freeze()
        };
        let read = |form: Form, channel: &str, text: &str| {
            let (db, key, event) = form.read(&message(channel, text))?;
            Some((db, String::from_utf8_lossy(&key).into_owned(), String::from_utf8_lossy(&event).into_owned()))
        };
        let wanted = Some((12, "a__:b".to_string(), "set".to_string()));
        assert_eq!(read(Form::Events, "__keyevent@12__:set", "a__:b"), wanted);
        assert_eq!(read(Form::Keys, "__keyspace@12__:a__:b", "set"), wanted);
        assert_eq!(read(Form::Keys, "news", "set"), None);
        for (flags, form) in [
            ("AKE", Some(Form::Events)),
            ("AK", Some(Form::Keys)),
            ("Kg$", Some(Form::Keys)),
            ("Ex", None),
            ("KEx", None),
            ("A", None),
            ("", None),
        ] {
            assert_eq!(Form::of(flags.as_bytes()), form, "{flags}");
        }
    }

    fn heard(event: &'static str, second: u32) -> Heard {
        let key = Bytes::from_static(b"provider:1:k\xff");
        Heard { side: Side::Cluster, node: "n".into(), key, event: Bytes::from_static(event.as_bytes()), second }
    }

    #[test]
    fn a_change_is_told_once_with_one_of_its_keys_unless_something_was_in_the_way() {
        let notices = Notices::new(Duration::from_secs(5));
        let route = || RouteName::Provider("1".into());
        for event in ["set", "del", "set"] {
            notices.suspect(heard(event, 100), route());
        }
        let mut told = notices.take();
        told.sort_by_key(|(_, writer)| writer.writes);
        let [(_, deleted), (_, set)] = &told[..] else { panic!("{told:?}") };
        assert_eq!((&*deleted.command, deleted.writes), ("del", 1));
        assert_eq!((&*set.command, set.writes, set.key.as_deref()), ("set", 2, Some("provider:1:k\\xff")));
        assert!(notices.take().is_empty());
        notices.second.store(110, Ordering::Relaxed);
        notices.note_moving();
        for event in ["set", "restore"] {
            notices.suspect(heard(event, 100), route());
        }
        let told: Vec<String> = notices.take().into_iter().map(|(_, writer)| writer.command).collect();
        assert_eq!(told, ["set"], "what goes and comes may be a slot that moves");
        notices.note_unsteady();
        notices.suspect(heard("set", 100), route());
        assert!(notices.take().is_empty(), "it may have been sent long ago");
    }

    #[test]
    fn a_change_is_judged_when_the_answer_has_had_its_time() {
        let notices = Notices::new(Duration::from_secs(5));
        notices.second.store(7, Ordering::Relaxed);
        notices.hear(heard("set", 7));
        for (now, ripe) in [(8, 0), (9, 0), (10, 1), (11, 0)] {
            notices.second.store(now, Ordering::Relaxed);
            assert_eq!(notices.ripe().len(), ripe, "{now}");
        }
    }
}
