//! The keys of some routes on one side, by SCAN, page by page. SCAN gives every key that is there during the whole walk;
//! a node that is lost in the middle is walked again from its beginning, because a cursor means nothing to another process.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::jobs::{Context, Job, JobError};
use crate::resp::reply::{self, Protocol};
use crate::resp::write;
use crate::routing::{RouteName, Side};
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
    fn visit(&mut self, keys: Vec<Bytes>) -> impl Future<Output = Result<(), JobError>>;
}

/// Walks all nodes of one side. The layout of the cluster must be the same at the end, else the walk begins again.
pub async fn walk(
    context: &Context,
    job: &Job,
    side: Side,
    routes: &HashSet<RouteName>,
    visit: &mut impl Visit,
) -> Result<(), JobError> {
    if side == Side::Standalone {
        return walk_node(context, job, (side, &context.standalone), routes, visit).await;
    }
    for _ in 0..TRIES {
        wait_for_layout(context).await;
        let before = context.slot_map.load_full();
        if before.is_empty() {
            return Err(JobError::Store { node: "the cluster".into(), reason: "its layout is not known".into() });
        }
        for address in before.primaries() {
            walk_node(context, job, (side, &node(context, address)), routes, visit).await?;
        }
        if before == context.slot_map.load_full() {
            return Ok(());
        }
        tracing::info!(job = job.id, "the cluster's layout changed during the walk; walking it again");
    }
    Err(JobError::Incomplete("the cluster's layout keeps changing; start the job again when it is stable".into()))
}

/// A job that begins with the program comes before the cluster's layout.
async fn wait_for_layout(context: &Context) {
    let deadline = Instant::now() + LAYOUT_PATIENCE;
    while context.slot_map.load().is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How to open a connection to a primary.
pub fn node(context: &Context, address: &Arc<str>) -> Endpoint {
    let pattern = context.seeds.first().unwrap_or(&context.standalone);
    Endpoint { address: address.clone(), db: 0, ..pattern.clone() }
}

async fn walk_node(
    context: &Context,
    job: &Job,
    (side, endpoint): (Side, &Endpoint),
    routes: &HashSet<RouteName>,
    visit: &mut impl Visit,
) -> Result<(), JobError> {
    let mut reason = String::new();
    for attempt in 0..TRIES {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
        }
        match try_node(context, job, (side, endpoint), routes, visit).await {
            Err(JobError::Store { reason: lost, .. }) => reason = lost,
            ended => return ended,
        }
    }
    Err(JobError::Store { node: endpoint.address.to_string(), reason })
}

async fn try_node(
    context: &Context,
    job: &Job,
    (side, endpoint): (Side, &Endpoint),
    routes: &HashSet<RouteName>,
    visit: &mut impl Visit,
) -> Result<(), JobError> {
    let lost = |reason: String| JobError::Store { node: endpoint.address.to_string(), reason };
    let opened = PrivateLink::connect(endpoint, Protocol::Resp2).await;
    let mut link = opened.map_err(|error| lost(error.to_string()))?;
    let size = link.call(b"*1\r\n$6\r\nDBSIZE\r\n").await.map_err(|error| lost(error.to_string()))?;
    job.keys_total.fetch_add(reply::integer(&size).unwrap_or(0).max(0) as u64, Ordering::Relaxed);
    let mut cursor = Bytes::from_static(b"0");
    loop {
        if job.is_cancelled() {
            return Err(JobError::Cancelled);
        }
        let mut ask = BytesMut::new();
        write::command(&mut ask, &[b"SCAN", &cursor, b"COUNT", PAGE]);
        let asked = Instant::now();
        let call = tokio::time::timeout(endpoint.timeouts.reply, link.call(&ask)).await;
        let page = call.map_err(|_| lost("no reply in time".into()))?.map_err(|error| lost(error.to_string()))?;
        let answered_in = asked.elapsed();
        let (next, keys) =
            parse(&page).ok_or_else(|| lost(String::from_utf8_lossy(&page[..page.len().min(80)]).into_owned()))?;
        job.scanned.fetch_add(keys.len() as u64, Ordering::Relaxed);
        let table = context.table();
        // On the cluster, what has a name that no key of this table has is somebody else's.
        let own =
            |key: Bytes| if side == Side::Cluster { Some(key.slice_ref(table.own_name(&key)?)) } else { Some(key) };
        let own = keys.into_iter().filter_map(own);
        let mine: Vec<Bytes> = own.filter(|key| routes.contains(&table.route_of(key).0.name)).collect();
        if !mine.is_empty() {
            visit.visit(mine).await?;
        }
        if &*next == b"0" {
            return Ok(());
        }
        cursor = next;
        job.throttle(answered_in).await;
    }
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
