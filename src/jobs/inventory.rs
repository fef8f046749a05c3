//! What a store holds, read without harming it: SCAN with a small COUNT (never KEYS), then type, time to live and size of
//! the page's keys in short pipelines. After each page it pauses for three times as long as the server took, so that at
//! most a quarter of the server's time goes into this, and less when it is busy with its application.
//!
//! Works beside a running proxy or without one. SCAN may give a key twice while the server resizes its table: the counts
//! are then a little high, and the report carries what DBSIZE says too.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde::Serialize;

use crate::jobs::scan;
use crate::resp::reply::{self, Protocol};
use crate::resp::write;
use crate::routing::{RouteName, Side, Table, is_reserved};
use crate::store::link::Endpoint;
use crate::store::{LinkError, PrivateLink};

/// Keys a page: SCAN holds the server up for some tens of microseconds.
const PAGE: &[u8] = b"100";
/// Keys whose questions go out together: three short commands each, under 100 µs.
const PIPELINE: usize = 32;
/// Nested values that MEMORY USAGE looks at to judge a size; 0 would be all of them, and hold up the server.
const SAMPLES: &[u8] = b"5";
/// The pause after a page, by the time that the page took.
const REST: u32 = 3;
const REST_MAX: Duration = Duration::from_secs(2);
/// First segments of keys without a provider that are told apart.
const SEGMENTS_MAX: usize = 1_000;

/// Why a walk ended early.
#[derive(Debug, thiserror::Error)]
#[error("{address} cannot be read: {reason}")]
pub struct Unreadable {
    pub address: String,
    pub reason: String,
}

/// How far a walk is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    pub scanned: u64,
    /// As DBSIZE said at the beginning.
    pub total: u64,
}

impl Progress {
    /// Behind another walk.
    fn after(self, before: Self) -> Self {
        Self { scanned: before.scanned + self.scanned, total: before.total + self.total }
    }
}

/// A key and its size.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct BigKey {
    pub bytes: u64,
    pub key: String,
    #[serde(rename = "type")]
    pub kind: String,
}

/// Keys and bytes of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    pub keys: u64,
    pub bytes: u64,
}

/// Keys by the time they have left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ttls {
    pub none: u64,
    pub under_1h: u64,
    pub under_1d: u64,
    pub more: u64,
}

/// What was found of one provider, prefix, or the other keys.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    pub keys: u64,
    pub bytes: u64,
    pub types: BTreeMap<String, Sum>,
    pub ttls: Ttls,
    /// The biggest, first.
    pub biggest: Vec<BigKey>,
    #[serde(skip)]
    heap: BinaryHeap<Reverse<BigKey>>,
}

impl Tally {
    fn add(&mut self, key: &BigKey, left_ms: i64, top: usize) {
        self.keys += 1;
        self.bytes += key.bytes;
        // Types are few; the text is copied for the first key of each only.
        let sum = match self.types.get_mut(&key.kind) {
            Some(sum) => sum,
            None => self.types.entry(key.kind.clone()).or_default(),
        };
        (sum.keys, sum.bytes) = (sum.keys + 1, sum.bytes + key.bytes);
        let class = match left_ms {
            ..0 => &mut self.ttls.none,
            0..3_600_000 => &mut self.ttls.under_1h,
            3_600_000..86_400_000 => &mut self.ttls.under_1d,
            _ => &mut self.ttls.more,
        };
        *class += 1;
        if self.heap.len() < top {
            self.heap.push(Reverse(key.clone()));
        } else if let Some(mut least) = self.heap.peek_mut()
            && *key > least.0
        {
            least.0 = key.clone();
        }
    }

    fn settle(&mut self) {
        let heap = std::mem::take(&mut self.heap);
        self.biggest = heap.into_sorted_vec().into_iter().map(|Reverse(key)| key).collect();
    }
}

/// The report.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Inventory {
    pub address: String,
    pub database: u32,
    /// All that move, that one first: what was counted of them is added up.
    pub databases: Vec<u32>,
    pub dbsize: u64,
    pub seconds: f64,
    pub total: Tally,
    pub providers: BTreeMap<String, Tally>,
    /// The prefixes that the configuration names.
    pub prefixes: BTreeMap<String, Tally>,
    pub other_keys: Tally,
    /// Keys without a provider by what stands before their first ':', with a '*' for the rest; up to 1,000.
    pub other_segments: BTreeMap<String, Sum>,
    /// Keys whose size the server did not tell (no MEMORY USAGE); they count with 0 bytes.
    pub unsized_keys: u64,
}

/// Reads the whole store. `top`: how many of the biggest keys are kept, in all and of each provider.
pub async fn take(
    endpoint: &Endpoint,
    table: &Table,
    top: usize,
    mut tell: impl FnMut(Progress),
) -> Result<Inventory, Unreadable> {
    let began = Instant::now();
    let mut inventory = Inventory {
        address: endpoint.address.to_string(),
        database: endpoint.db,
        databases: table.databases().moving().collect(),
        ..Inventory::default()
    };
    let mut before = Progress::default();
    for db in table.databases().moving() {
        let endpoint = Endpoint { db, ..endpoint.clone() };
        let mut walk = Walk::begin(&endpoint).await?;
        inventory.dbsize += walk.progress.total;
        while let Some((keys, took)) = walk.next().await? {
            let asked = Instant::now();
            for keys in keys.chunks(PIPELINE) {
                for (key, found) in keys.iter().zip(walk.describe(keys).await?) {
                    inventory.add(table, key, found, top);
                }
            }
            tell(walk.progress.after(before));
            rest(took + asked.elapsed()).await;
        }
        before = walk.progress.after(before);
    }
    inventory.settle();
    inventory.seconds = began.elapsed().as_secs_f64();
    Ok(inventory)
}

/// Every provider that has a key on a node, by SCAN alone. On the cluster, keys that have no name of this table count not.
pub async fn providers(
    endpoint: &Endpoint,
    side: Side,
    table: &Table,
    mut tell: impl FnMut(Progress),
) -> Result<BTreeSet<Bytes>, Unreadable> {
    let databases: Vec<u32> = match side {
        Side::Standalone => table.databases().moving().collect(),
        Side::Cluster => vec![0],
    };
    let (mut found, mut before) = (BTreeSet::new(), Progress::default());
    for db in databases {
        let endpoint = Endpoint { db, ..endpoint.clone() };
        let mut walk = Walk::begin(&endpoint).await?;
        while let Some((keys, took)) = walk.next().await? {
            for name in &keys {
                let own = match side {
                    Side::Standalone => Some(&name[..]),
                    Side::Cluster => table.own_key(name).map(|(_, key)| key),
                };
                if let Some(id) = own.and_then(|key| table.provider_of(key))
                    && !found.contains(id)
                {
                    found.insert(Bytes::copy_from_slice(id));
                }
            }
            tell(walk.progress.after(before));
            rest(took).await;
        }
        before = walk.progress.after(before);
    }
    Ok(found)
}

/// Up to `max` keys of a node, which is a fair sample of them: SCAN goes by the hash of a key.
pub async fn sample(endpoint: &Endpoint, max: usize, mut tell: impl FnMut(Progress)) -> Result<Vec<Bytes>, Unreadable> {
    let mut found = Vec::new();
    let mut walk = Walk::begin(endpoint).await?;
    while found.len() < max
        && let Some((keys, took)) = walk.next().await?
    {
        found.extend(keys);
        tell(walk.progress);
        rest(took).await;
    }
    Ok(found)
}

async fn rest(took: Duration) {
    tokio::time::sleep((took * REST).min(REST_MAX)).await;
}

/// Type, time left in ms and size; `None`: the key is gone meanwhile.
type Found = Option<(String, i64, Option<u64>)>;

impl Inventory {
    fn add(&mut self, table: &Table, key: &[u8], found: Found, top: usize) {
        let Some((kind, left_ms, bytes)) = found else { return };
        self.unsized_keys += u64::from(bytes.is_none());
        let big = BigKey { bytes: bytes.unwrap_or(0), key: key.escape_ascii().to_string(), kind };
        self.total.add(&big, left_ms, top);
        if let Some(id) = table.provider_of(key) {
            let id = String::from_utf8_lossy(id).into_owned();
            return self.providers.entry(id).or_default().add(&big, left_ms, top);
        }
        if let RouteName::Prefix(prefix) = &table.route_of(key).0.name {
            return self.prefixes.entry(prefix.clone()).or_default().add(&big, left_ms, top);
        }
        self.other_keys.add(&big, left_ms, top);
        let segment = match memchr::memchr(b':', key) {
            Some(end) => format!("{}*", key[..=end].escape_ascii()),
            None => "(no ':')".to_string(),
        };
        if self.other_segments.len() < SEGMENTS_MAX || self.other_segments.contains_key(&segment) {
            let sum = self.other_segments.entry(segment).or_default();
            (sum.keys, sum.bytes) = (sum.keys + 1, sum.bytes + big.bytes);
        }
    }

    fn settle(&mut self) {
        let named = self.providers.values_mut().chain(self.prefixes.values_mut());
        for tally in named.chain([&mut self.total, &mut self.other_keys]) {
            tally.settle();
        }
    }
}

/// SCAN over one node.
struct Walk<'e> {
    endpoint: &'e Endpoint,
    link: PrivateLink,
    /// `None` when the walk is over.
    cursor: Option<Bytes>,
    progress: Progress,
}

impl<'e> Walk<'e> {
    async fn begin(endpoint: &'e Endpoint) -> Result<Self, Unreadable> {
        let opened = PrivateLink::connect(endpoint, Protocol::Resp2).await;
        let link = opened.map_err(|error| unreadable(endpoint, error.to_string()))?;
        let mut walk = Self { endpoint, link, cursor: Some(Bytes::from_static(b"0")), progress: Progress::default() };
        let mut ask = BytesMut::new();
        write::command(&mut ask, &[b"DBSIZE"]);
        let size = walk.exchange(&ask, 1).await?.remove(0);
        walk.progress.total = reply::integer(&size).unwrap_or(0).max(0) as u64;
        Ok(walk)
    }

    /// The next page, and how long the server took for it.
    async fn next(&mut self) -> Result<Option<(Vec<Bytes>, Duration)>, Unreadable> {
        let Some(cursor) = self.cursor.take() else { return Ok(None) };
        let mut ask = BytesMut::new();
        write::command(&mut ask, &[b"SCAN", &cursor, b"COUNT", PAGE]);
        let asked = Instant::now();
        let page = self.exchange(&ask, 1).await?.remove(0);
        let text = || String::from_utf8_lossy(&page[..page.len().min(80)]).trim().to_string();
        let (next, mut keys) = scan::parse(&page).ok_or_else(|| unreadable(self.endpoint, text()))?;
        self.progress.scanned += keys.len() as u64;
        self.cursor = (&*next != b"0").then_some(next);
        keys.retain(|key| !is_reserved(key));
        Ok(Some((keys, asked.elapsed())))
    }

    async fn describe(&mut self, keys: &[Bytes]) -> Result<Vec<Found>, Unreadable> {
        let mut ask = BytesMut::new();
        for key in keys {
            write::command(&mut ask, &[b"TYPE", key]);
            write::command(&mut ask, &[b"PTTL", key]);
            write::command(&mut ask, &[b"MEMORY", b"USAGE", key, b"SAMPLES", SAMPLES]);
        }
        let replies = self.exchange(&ask, 3 * keys.len()).await?;
        let found = replies.chunks(3).map(|answers| {
            let kind = reply::bulk(&answers[0]).filter(|kind| *kind != b"none")?;
            let left_ms = reply::integer(&answers[1]).filter(|left_ms| *left_ms != -2)?;
            let bytes = reply::integer(&answers[2]).map(|bytes| bytes.max(0) as u64);
            Some((String::from_utf8_lossy(kind).into_owned(), left_ms, bytes))
        });
        Ok(found.collect())
    }

    async fn exchange(&mut self, ask: &[u8], replies: usize) -> Result<Vec<Bytes>, Unreadable> {
        let link = &mut self.link;
        let talk = async {
            link.send(ask).await?;
            let mut answers = Vec::with_capacity(replies);
            while answers.len() < replies {
                answers.push(link.receive().await?);
            }
            Ok::<_, LinkError>(answers)
        };
        let answered = tokio::time::timeout(self.endpoint.timeouts.reply, talk).await;
        let answered = answered.unwrap_or(Err(LinkError::TimedOut));
        answered.map_err(|error| unreadable(self.endpoint, error.to_string()))
    }
}

fn unreadable(endpoint: &Endpoint, reason: String) -> Unreadable {
    Unreadable { address: endpoint.address.to_string(), reason }
}

/// The providers with the most bytes, first.
pub fn by_bytes(tallies: &BTreeMap<String, Tally>) -> Vec<(&String, &Tally)> {
    let mut sorted: Vec<_> = tallies.iter().collect();
    sorted.sort_by_key(|(name, tally)| (Reverse(tally.bytes), (*name).clone()));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_keeps_the_biggest_and_counts_each_key_in_one_class_of_time() {
        let mut tally = Tally::default();
        for (bytes, left_ms) in [(10, -1), (50, 5_000), (30, 3_600_000), (20, 90_000_000), (40, 3_599_999)] {
            tally.add(&BigKey { bytes, key: format!("k{bytes}"), kind: "string".into() }, left_ms, 2);
        }
        tally.settle();
        assert_eq!(tally.biggest.iter().map(|key| key.bytes).collect::<Vec<_>>(), [50, 40]);
        assert_eq!(tally.ttls, Ttls { none: 1, under_1h: 2, under_1d: 1, more: 1 });
        assert_eq!(tally.types["string"], Sum { keys: 5, bytes: 150 });
    }
}
