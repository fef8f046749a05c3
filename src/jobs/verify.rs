//! Compares both stores while traffic runs: value and TTL of every key of the routes, on either side. A first sight of a
//! difference is most often a race with a write, so it is looked at again before it counts.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::dual::Message;
use crate::dual::lane::Outcome;
use crate::jobs::reader::Reader;
use crate::jobs::scan::{Visit, Walk};
use crate::jobs::{Context, Job, JobError};
use crate::resp::reply;
use crate::routing::{Coverage, Key, Phase, RouteName, Side, Table};

/// TTLs may differ by this much: the stores' clocks do.
const TTL_TOLERANCE_MS: i64 = 1_000;
/// How often a difference is looked at again, and how long it gets before each time.
const LOOKS: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_millis(1_000),
];

/// Runs the job.
pub async fn run(context: &Context, job: &Job, routes: &HashSet<RouteName>) -> Result<String, JobError> {
    let leads =
        context.table().routes().iter().find(|route| routes.contains(&route.name)).map(|route| route.phase.leader());
    let _beat = job.pulse.begin(context, leads.unwrap_or(Side::Standalone));
    for (number, side) in [Side::Standalone, Side::Cluster].into_iter().enumerate() {
        let mut comparer = Comparer { context, job, side, reader: Reader::new(context) };
        Walk { context, job, number: number as u32, side, routes }.run(&mut comparer).await?;
    }
    let (differing, repaired) = (job.differing.load(Ordering::Relaxed), job.repaired.load(Ordering::Relaxed));
    let pending = match job.pending.load(Ordering::Relaxed) {
        0 => String::new(),
        keys => format!("; {keys} keys are still to be brought over from the standalone"),
    };
    Ok(match (differing, repaired) {
        (0, 0) => format!("equal: every key has the same value and TTL on both stores{pending}"),
        (0, repaired) => format!("{repaired} keys differed and were repaired{pending}"),
        (differing, _) => {
            format!("{differing} keys differ{pending}; `cutover verify --repair` copies them from the leader")
        }
    })
}

struct Comparer<'c> {
    context: &'c Context,
    job: &'c Job,
    side: Side,
    reader: Reader<'c>,
}

/// Why two copies of a key are not equal.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unequal {
    Only(Side),
    Ttl(i64, i64),
    Value,
    /// Not to be read now: a slot that moves, a type that changed between two reads.
    Unread,
}

impl Unequal {
    fn describe(&self) -> String {
        match self {
            Self::Only(side) => format!("only on the {side}"),
            Self::Ttl(standalone, cluster) => format!(
                "expires at {standalone} on the standalone, at {cluster} on the cluster (ms since 1970, -1 never)"
            ),
            Self::Value => "the values differ".into(),
            Self::Unread => "could not be read on both stores".into(),
        }
    }
}

impl Visit for Comparer<'_> {
    async fn visit(&mut self, keys: Vec<Key>) -> Result<(), JobError> {
        let mut suspects = match self.side {
            Side::Standalone => {
                self.job.matched.fetch_add(keys.len() as u64, Ordering::Relaxed);
                self.unequal(&keys).await?
            }
            // What is on both was compared in the first walk.
            Side::Cluster => {
                let found = self.reader.ask(Side::Standalone, &keys, &[b"EXISTS", b""]).await?;
                let lacks = |reply: &Option<Bytes>| reply.as_ref().and_then(|reply| reply::integer(reply)) != Some(1);
                let only: Vec<Key> =
                    keys.into_iter().zip(found).filter(|(_, reply)| lacks(reply)).map(|(key, _)| key).collect();
                self.job.matched.fetch_add(only.len() as u64, Ordering::Relaxed);
                self.unequal(&only).await?
            }
        };
        for pause in LOOKS {
            if suspects.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            let keys: Vec<Key> = suspects.into_iter().map(|(key, _)| key).collect();
            suspects = self.unequal(&keys).await?;
        }
        self.judge(suspects).await
    }
}

impl Comparer<'_> {
    /// Counts, reports or repairs what still differs after the last look.
    async fn judge(&mut self, suspects: Vec<(Key, Unequal)>) -> Result<(), JobError> {
        let table = self.context.table();
        for (key, unequal) in suspects {
            if unequal == Unequal::Only(Side::Standalone) && is_filled_lazily(&table, &key) {
                self.job.pending.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if self.job.options.repair && self.repair(&key, is_filled_lazily(&table, &key)).await {
                let left = self.unequal(std::slice::from_ref(&key)).await?;
                if left.is_empty() {
                    self.job.repaired.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            }
            self.job.report(&key, table.databases().main, unequal.describe());
        }
        Ok(())
    }

    /// Copies the key from leader to follower, through its lane.
    async fn repair(&self, key: &Key, first_touch: bool) -> bool {
        let peers = &self.context.peers;
        if !first_touch {
            return peers.resync(key.clone()).await.is_ok();
        }
        let lane = peers.lane_of(&key.name);
        let (granted, wait) = oneshot::channel();
        peers.send(lane, Message::Hold { key: key.clone(), granted });
        if !matches!(wait.await, Ok(Ok(()))) {
            return false;
        }
        let (done, wait) = oneshot::channel();
        peers.send(lane, Message::Release { key: key.clone(), outcome: Outcome::Done, done });
        matches!(wait.await, Ok(Ok(())))
    }

    /// Which of the keys differ now, and how.
    async fn unequal(&mut self, keys: &[Key]) -> Result<Vec<(Key, Unequal)>, JobError> {
        let [left, right] = [self.read(Side::Standalone, keys).await?, self.read(Side::Cluster, keys).await?];
        let mut found = Vec::new();
        for ((key, left), right) in keys.iter().zip(left).zip(right) {
            let mut unequal = compare(left, right);
            if unequal == Some(Unequal::Value) {
                unequal = self.compare_by_type(key).await?;
            }
            found.extend(unequal.map(|unequal| (key.clone(), unequal)));
        }
        Ok(found)
    }

    /// Dump and expiry time of each key.
    async fn read(&mut self, side: Side, keys: &[Key]) -> Result<Vec<Option<(Bytes, i64)>>, JobError> {
        let dumps = self.reader.ask(side, keys, &[b"DUMP", b""]).await?;
        let expiries = self.reader.ask(side, keys, &[b"PEXPIRETIME", b""]).await?;
        let pair = |(dump, expiry): (Option<Bytes>, Option<Bytes>)| Some((dump?, reply::integer(&expiry?)?));
        Ok(dumps.into_iter().zip(expiries).map(pair).collect())
    }

    /// Unequal dumps may hold equal values: encodings differ, and the order of elements in sets and hashes.
    async fn compare_by_type(&mut self, key: &Key) -> Result<Option<Unequal>, JobError> {
        let mut values = HashMap::new();
        for side in [Side::Standalone, Side::Cluster] {
            let Some(value) = self.value(side, key).await? else { return Ok(Some(Unequal::Unread)) };
            values.insert(side, value);
        }
        Ok((values[&Side::Standalone] != values[&Side::Cluster]).then_some(Unequal::Value))
    }

    /// Type and elements of a key; those of sets and hashes in an order of our own.
    async fn value(&mut self, side: Side, key: &Key) -> Result<Option<Vec<Bytes>>, JobError> {
        let one = std::slice::from_ref(key);
        let Some(kind) = self.reader.ask(side, one, &[b"TYPE", b""]).await?.remove(0) else { return Ok(None) };
        let (questions, width): (&[&[&[u8]]], usize) = match &*kind {
            b"+string\r\n" => (&[&[b"GET", b""]], 1),
            b"+list\r\n" => (&[&[b"LRANGE", b"", b"0", b"-1"]], 0),
            b"+set\r\n" => (&[&[b"SMEMBERS", b""]], 1),
            b"+hash\r\n" => (&[&[b"HGETALL", b""]], 2),
            b"+zset\r\n" => (&[&[b"ZRANGE", b"", b"0", b"-1", b"WITHSCORES"]], 0),
            b"+stream\r\n" => (&[&[b"XRANGE", b"", b"-", b"+"], &[b"XINFO", b"GROUPS", b""]], 0),
            // A module's type has no other form than its dump.
            _ => (&[&[b"DUMP", b""]], 0),
        };
        let mut value = vec![kind.clone()];
        for question in questions {
            let Some(answer) = self.reader.ask(side, one, question).await?.remove(0) else { return Ok(None) };
            if question[0] == b"ZRANGE" {
                value.extend(scored(&answer));
                continue;
            }
            if width == 0 || !answer.starts_with(b"*") {
                value.push(answer);
                continue;
            }
            let Some(elements) = reply::elements(&answer) else { return Ok(None) };
            let mut groups: Vec<Bytes> =
                elements.chunks(width).map(|group| answer.slice(group[0].start..group[group.len() - 1].end)).collect();
            groups.sort_unstable();
            value.extend(groups);
        }
        Ok(Some(value))
    }
}

/// Members and scores. Servers of different versions write the same number in different ways (0.1, 0.10000000000000001).
fn scored(answer: &Bytes) -> Vec<Bytes> {
    let cells = reply::elements(answer).unwrap_or_default();
    let cell = |(index, cell): (usize, std::ops::Range<usize>)| {
        let frame = answer.slice(cell);
        let score = || std::str::from_utf8(reply::bulk(&frame)?).ok()?.parse::<f64>().ok();
        match (index % 2 == 1).then(score).flatten() {
            Some(score) => Bytes::copy_from_slice(&score.to_be_bytes()),
            None => frame,
        }
    };
    cells.into_iter().enumerate().map(cell).collect()
}

/// Whether a key that only the standalone has is merely not yet brought over.
fn is_filled_lazily(table: &Table, key: &Key) -> bool {
    let route = table.route_of(&key.name).0;
    let coverage = route.dual.as_ref().map(|dual| dual.coverage());
    route.phase == Phase::DualCluster && coverage == Some(Coverage::StandaloneOnly)
}

fn compare(left: Option<(Bytes, i64)>, right: Option<(Bytes, i64)>) -> Option<Unequal> {
    let (Some((left, left_at)), Some((right, right_at))) = (left, right) else { return Some(Unequal::Unread) };
    match (reply::is_null(&left), reply::is_null(&right)) {
        (true, true) => None,
        (true, false) => (!is_expiring(right_at)).then_some(Unequal::Only(Side::Cluster)),
        (false, true) => (!is_expiring(left_at)).then_some(Unequal::Only(Side::Standalone)),
        (false, false) => {
            let is_timed = |at: i64| at >= 0;
            let differs = is_timed(left_at) != is_timed(right_at) || (left_at - right_at).abs() > TTL_TOLERANCE_MS;
            if differs && !(is_expiring(left_at) || is_expiring(right_at)) {
                return Some(Unequal::Ttl(left_at, right_at));
            }
            (left != right).then_some(Unequal::Value)
        }
    }
}

/// Whether the key is about to go, or gone between two reads.
fn is_expiring(at_ms: i64) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    at_ms == -2 || (at_ms >= 0 && at_ms - now < TTL_TOLERANCE_MS)
}
