//! The keys of some routes on one side, by SCAN, page by page. SCAN gives every key that is there during the whole walk;
//! a node that is lost in the middle is walked again from its beginning, because a cursor means nothing to another process.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::jobs::checkpoint::{Place, Stores};
use crate::jobs::{Context, Job, JobError};
use crate::resp::reply::{self, Protocol};
use crate::resp::write;
use crate::routing::flip::{Flip, Jumps};
use crate::routing::{Key, RouteName, Side, Table, is_reserved};
use crate::slot::SLOTS;
use crate::store::PrivateLink;
use crate::store::link::Endpoint;

/// Keys a page, as SCAN's COUNT.
const PAGE: &[u8] = b"512";
/// How often a node is begun anew before the walk is given up.
const TRIES: u32 = 5;

/// How long the cluster gets to tell its layout.
const LAYOUT_PATIENCE: Duration = Duration::from_secs(5);

/// A page's keys, for whoever walks.
pub trait Visit {
    /// Called for each page that has keys of the routes.
    fn visit(&mut self, keys: Vec<Key>) -> impl Future<Output = Result<(), JobError>>;

    /// Whether nothing of the pages up to now is left to do; a place behind what is not done is no place to go on from.
    fn is_settled(&self) -> bool {
        true
    }
}

/// One walk of a job.
pub struct Walk<'w> {
    pub context: &'w Context,
    pub job: &'w Job,
    /// Its number in the job.
    pub number: u32,
    pub side: Side,
    pub routes: &'w HashSet<RouteName>,
}

/// The server processes of both stores, and the layout. `None`: one of them cannot be asked.
pub(super) async fn stores(context: &Context) -> Option<Stores> {
    wait_for_layout(context).await;
    let map = context.slot_map.load_full();
    let mut stores = Stores::default();
    let nodes = map.primaries().iter().map(|address| node(context, address));
    for endpoint in std::iter::once(context.standalone.clone()).chain(nodes) {
        let ask = async {
            let mut link = PrivateLink::connect(&endpoint, Protocol::Resp2).await.ok()?;
            link.call(b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n").await.ok()
        };
        let frame = tokio::time::timeout(endpoint.timeouts.reply, ask).await.ok()??;
        let text = String::from_utf8_lossy(reply::bulk(&frame)?).into_owned();
        let id = text.lines().find_map(|line| line.strip_prefix("run_id:"))?.trim().to_string();
        stores.processes.insert(endpoint.address.to_string(), id);
    }
    let owners =
        (0..SLOTS).flat_map(|slot| map.owner(slot).map_or(&b"-"[..], |owner| owner.as_bytes()).iter().copied());
    stores.layout = crc32fast::hash(&owners.collect::<Vec<u8>>());
    Some(stores)
}

/// Notes how many keys the job's walks will go by: what DBSIZE says of both stores, for it walks both.
pub(super) async fn measure(context: &Context, job: &Job) {
    let nodes = context.slot_map.load_full();
    let nodes = nodes.primaries().iter().map(|address| node(context, address));
    let mut total = 0;
    let table = context.table();
    let databases = table.databases().moving().map(|db| database(context, db));
    for endpoint in databases.chain(nodes) {
        let ask = async {
            let mut link = PrivateLink::connect(&endpoint, Protocol::Resp2).await.ok()?;
            reply::integer(&link.call(b"*1\r\n$6\r\nDBSIZE\r\n").await.ok()?)
        };
        // A store that does not answer is met again by the walk, which says so.
        let keys = tokio::time::timeout(endpoint.timeouts.reply, ask).await.ok().flatten();
        total += keys.unwrap_or(0).max(0) as u64;
    }
    job.keys_total.store(total, Ordering::Relaxed);
}

impl Walk<'_> {
    /// Walks all nodes of the side. The layout of the cluster must be the same at the end, else the walk begins again.
    pub async fn run(&self, visit: &mut impl Visit) -> Result<(), JobError> {
        let (context, job, side) = (self.context, self.job, self.side);
        let Some(mut from) = job.begin_walk(self.number) else { return Ok(()) };
        for _ in 0..TRIES {
            if side == Side::Cluster {
                wait_for_layout(context).await;
            }
            let before = context.slot_map.load_full();
            if side == Side::Cluster && before.is_empty() {
                return Err(JobError::Store { node: "the cluster".into(), reason: "its layout is not known".into() });
            }
            let nodes: Vec<Endpoint> = match side {
                Side::Standalone => context.table().databases().moving().map(|db| database(context, db)).collect(),
                Side::Cluster => before.primaries().iter().map(|address| node(context, address)).collect(),
            };
            for endpoint in nodes {
                if from.nodes_done.contains(&name_of(&endpoint, context)) {
                    continue;
                }
                let cursor = from.node.take().filter(|(name, _)| *name == name_of(&endpoint, context));
                self.node(&endpoint, cursor.map(|(_, cursor)| cursor), visit).await?;
                if visit.is_settled() {
                    let mut place = job.place.lock();
                    place.nodes_done.push(name_of(&endpoint, context));
                    place.node = None;
                }
            }
            if side == Side::Standalone || before == context.slot_map.load_full() {
                return Ok(());
            }
            tracing::info!(job = job.id, "the cluster's layout changed during the walk; walking it again");
            from = Place { walk: self.number, ..Place::default() };
            *job.place.lock() = from.clone();
            // What it was relative to is gone.
            *job.stores.lock() = None;
        }
        Err(JobError::Incomplete("the cluster's layout keeps changing; start the job again when it is stable".into()))
    }

    async fn node(
        &self,
        endpoint: &Endpoint,
        mut from: Option<String>,
        visit: &mut impl Visit,
    ) -> Result<(), JobError> {
        let mut reason = String::new();
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
            }
            match self.try_node(endpoint, from.take(), visit).await {
                Err(JobError::Store { reason: lost, .. }) => reason = lost,
                ended => return ended,
            }
        }
        Err(JobError::Store { node: endpoint.address.to_string(), reason })
    }

    async fn try_node(
        &self,
        endpoint: &Endpoint,
        from: Option<String>,
        visit: &mut impl Visit,
    ) -> Result<(), JobError> {
        let (context, job, side) = (self.context, self.job, self.side);
        let lost = |reason: String| JobError::Store { node: endpoint.address.to_string(), reason };
        let opened = PrivateLink::connect(endpoint, Protocol::Resp2).await;
        let mut link = opened.map_err(|error| lost(error.to_string()))?;
        let mut cursor = from.map_or(Bytes::from_static(b"0"), Bytes::from);
        loop {
            job.go_on()?;
            let asked = Instant::now();
            let (next, keys) = page(&mut link, endpoint, &cursor).await.map_err(lost)?;
            let found = keys.len() as u64;
            let table = context.table();
            let own = keys.into_iter().filter_map(|name| own_key(&table, side, endpoint, name));
            let mine: Vec<Key> = own.filter(|key| self.routes.contains(&table.route_of(&key.name).0.name)).collect();
            if !mine.is_empty() {
                visit.visit(mine).await?;
            }
            job.scanned.fetch_add(found, Ordering::Relaxed);
            if &*next == b"0" {
                return Ok(());
            }
            if visit.is_settled() {
                let at = String::from_utf8_lossy(&next).into_owned();
                job.place.lock().node = Some((name_of(endpoint, context), at));
            }
            cursor = next;
            job.throttle(context, asked.elapsed()).await;
        }
    }
}

/// The next cursor, and the keys of a page.
async fn page(link: &mut PrivateLink, endpoint: &Endpoint, cursor: &[u8]) -> Result<(Bytes, Vec<Bytes>), String> {
    let mut ask = BytesMut::new();
    write::command(&mut ask, &[b"SCAN", cursor, b"COUNT", PAGE]);
    let call = tokio::time::timeout(endpoint.timeouts.reply, link.call(&ask)).await;
    let page = call.map_err(|_| "no reply in time".to_string())?.map_err(|error| error.to_string())?;
    parse(&page).ok_or_else(|| String::from_utf8_lossy(&page[..page.len().min(80)]).into_owned())
}

/// A key by the application's name. On the cluster, what has a name that no key of this table has is somebody else's.
fn own_key(table: &Table, side: Side, endpoint: &Endpoint, name: Bytes) -> Option<Key> {
    if is_reserved(&name) {
        return None;
    }
    match side {
        Side::Standalone => Some(Key { name, db: endpoint.db }),
        Side::Cluster => table.own_key(&name).map(|(db, own)| Key { name: name.slice_ref(own), db }),
    }
}

/// Which of the flips a key that is there would make, on either store. The server works half of the time.
pub async fn found(context: &Context, jumps: &Jumps) -> Result<Vec<Flip>, String> {
    wait_for_layout(context).await;
    let map = context.slot_map.load_full();
    if map.is_empty() {
        return Err("the cluster's layout is not known".into());
    }
    let databases = jumps.table().databases().moving().map(|db| (Side::Standalone, database(context, db)));
    let nodes = map.primaries().iter().map(|address| (Side::Cluster, node(context, address)));
    let mut found = Vec::new();
    for (side, endpoint) in databases.chain(nodes) {
        let lost = |reason: String| format!("{} does not answer: {reason}", endpoint.address);
        let opened = PrivateLink::connect(&endpoint, Protocol::Resp2).await;
        let mut link = opened.map_err(|error| lost(error.to_string()))?;
        let mut cursor = Bytes::from_static(b"0");
        loop {
            let asked = Instant::now();
            let (next, keys) = page(&mut link, &endpoint, &cursor).await.map_err(lost)?;
            for key in keys.into_iter().filter_map(|name| own_key(jumps.table(), side, &endpoint, name)) {
                let flip = jumps.flip_of(&key.name).filter(|flip| !found.contains(*flip));
                found.extend(flip.cloned());
            }
            if &*next == b"0" || found.len() == jumps.flips().len() {
                break;
            }
            cursor = next;
            tokio::time::sleep(asked.elapsed()).await;
        }
    }
    match map == context.slot_map.load_full() {
        true => Ok(found),
        false => Err("slots of the cluster moved meanwhile".into()),
    }
}

/// A job that begins with the program comes before the cluster's layout.
async fn wait_for_layout(context: &Context) {
    let deadline = Instant::now() + LAYOUT_PATIENCE;
    while context.slot_map.load().is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How to open a connection to a database of the standalone.
pub fn database(context: &Context, db: u32) -> Endpoint {
    Endpoint { db, ..context.standalone.clone() }
}

/// What a place calls a node, or a further database of the standalone.
fn name_of(endpoint: &Endpoint, context: &Context) -> String {
    match endpoint.address == context.standalone.address && endpoint.db != context.standalone.db {
        true => format!("{}/{}", endpoint.address, endpoint.db),
        false => endpoint.address.to_string(),
    }
}

/// How to open a connection to a primary.
pub fn node(context: &Context, address: &Arc<str>) -> Endpoint {
    let pattern = context.seeds.first().unwrap_or(&context.standalone);
    Endpoint { address: address.clone(), db: 0, ..pattern.clone() }
}

pub(super) fn parse(page: &Bytes) -> Option<(Bytes, Vec<Bytes>)> {
    let parts = reply::elements(page)?;
    let (cursor, list) = (page.slice(parts.first()?.clone()), page.slice(parts.get(1)?.clone()));
    let keys = reply::elements(&list)?.into_iter().map(|range| {
        let frame = list.slice(range);
        Some(frame.slice_ref(reply::bulk(&frame)?))
    });
    Some((cursor.slice_ref(reply::bulk(&cursor)?), keys.collect::<Option<_>>()?))
}
