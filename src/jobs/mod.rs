//! Work that walks the whole of a store: backfill and verify. Jobs run inside the proxy, on the control thread, and touch
//! data only through the lanes, so that no copy can cross a write.

mod backfill;
pub mod inventory;
mod reader;
mod scan;
mod verify;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::dual::Peers;
use crate::dual::adopt::Adopter;
use crate::routing::{RouteName, Table};
use crate::store::SlotMap;
use crate::store::link::Endpoint;

/// Keys a second where nothing else is asked for: a small server still serves its application beside it.
pub const RATE_DEFAULT: u64 = 5_000;
/// Finished jobs that are remembered.
const JOBS_MAX: usize = 200;
/// Differences that a verification names one by one.
const DIFFERENCES_MAX: usize = 100;

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Copies what the follower lacks; the route is synced afterwards.
    Backfill,
    /// Compares both stores, key by key.
    Verify,
}

/// How a job is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Keys a second at most; 0: as fast as the stores answer.
    pub rate: u64,
    /// Verify only: copies what differs.
    pub repair: bool,
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    Done,
    Failed,
    Cancelled,
}

/// A key that differs, and how.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    pub key: String,
    pub what: String,
}

/// One job. The counters are read while it runs.
#[derive(Debug)]
pub struct Job {
    pub id: u64,
    pub kind: Kind,
    pub routes: Vec<RouteName>,
    pub options: Options,
    began: Instant,
    pub scanned: AtomicU64,
    /// Keys of the job's routes.
    pub matched: AtomicU64,
    pub copied: AtomicU64,
    pub differing: AtomicU64,
    pub repaired: AtomicU64,
    /// Only on the store that does not answer, where the other is still being filled.
    pub pending: AtomicU64,
    /// Keys in the stores that are walked, as DBSIZE said at the beginning.
    pub keys_total: AtomicU64,
    differences: Mutex<Vec<Difference>>,
    end: Mutex<Option<(State, String, Duration)>>,
    cancelled: AtomicBool,
}

/// Where a job stands, without the lists that may be long.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobSummary {
    pub id: u64,
    pub kind: Kind,
    pub repair: bool,
    pub state: State,
    pub scanned: u64,
    pub keys_total: u64,
    pub matched: u64,
    pub copied: u64,
    pub differing: u64,
    pub repaired: u64,
    pub pending: u64,
    pub seconds: f64,
    pub keys_per_second: f64,
    /// What was wrong, or what the end means.
    pub message: String,
}

/// What the API shows of a job.
#[derive(Debug, Serialize)]
pub struct JobView {
    #[serde(flatten)]
    pub summary: JobSummary,
    pub routes: Vec<String>,
    pub differences: Vec<Difference>,
}

impl Job {
    /// A snapshot.
    pub fn view(&self) -> JobView {
        let routes = self.routes.iter().map(ToString::to_string).collect();
        JobView { summary: self.summary(), routes, differences: self.differences.lock().clone() }
    }

    /// The same, without its routes and what it found of single keys.
    pub fn summary(&self) -> JobSummary {
        let (state, message, took) =
            self.end.lock().clone().unwrap_or_else(|| (State::Running, String::new(), self.began.elapsed()));
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (scanned, seconds) = (get(&self.scanned), took.as_secs_f64());
        JobSummary {
            id: self.id,
            kind: self.kind,
            repair: self.options.repair,
            state,
            scanned,
            keys_total: get(&self.keys_total),
            matched: get(&self.matched),
            copied: get(&self.copied),
            differing: get(&self.differing),
            repaired: get(&self.repaired),
            pending: get(&self.pending),
            seconds,
            keys_per_second: scanned as f64 / seconds.max(0.001),
            message,
        }
    }

    fn report(&self, key: &[u8], what: impl Into<String>) {
        self.differing.fetch_add(1, Ordering::Relaxed);
        let mut differences = self.differences.lock();
        if differences.len() < DIFFERENCES_MAX {
            let key = key.escape_ascii().to_string();
            differences.push(Difference { key, what: what.into() });
        }
    }

    /// Keeps to the rate, and lets a store that answers slowly breathe as long as it took.
    async fn throttle(&self, answered_in: Duration) {
        let mut pause = if answered_in > SLOW { answered_in } else { Duration::ZERO };
        if self.options.rate > 0 {
            let due = Duration::from_secs_f64(self.scanned.load(Ordering::Relaxed) as f64 / self.options.rate as f64);
            pause = pause.max(due.saturating_sub(self.began.elapsed()));
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    /// Waits for the end.
    async fn ended(&self) -> State {
        loop {
            if let Some((state, ..)) = &*self.end.lock() {
                return state.clone();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        self.end.lock().is_none()
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// A page of SCAN takes well under a millisecond on a server that is not busy.
const SLOW: Duration = Duration::from_millis(20);

/// Why a job ended early.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("cancelled")]
    Cancelled,
    #[error("{node} cannot be read: {reason}; start the job again when it answers")]
    Store { node: String, reason: String },
    #[error("{0}")]
    Incomplete(String),
    #[error("write state file")]
    State(#[from] std::io::Error),
}

/// What jobs work with.
pub struct Context {
    pub adopter: Arc<Adopter>,
    pub peers: Peers,
    pub standalone: Endpoint,
    pub seeds: Vec<Endpoint>,
    pub slot_map: Arc<ArcSwap<SlotMap>>,
    pub refresh: Arc<Notify>,
    pub copied: Copied,
}

/// Keys of each route that its last backfill has copied. The lock guards the map, for a page of keys at a time.
#[derive(Debug, Default)]
pub struct Copied(Mutex<HashMap<RouteName, u64>>);

impl Copied {
    /// A walk over these routes begins.
    fn begin(&self, routes: &HashSet<RouteName>) {
        self.0.lock().extend(routes.iter().map(|route| (route.clone(), 0)));
    }

    fn add(&self, table: &Table, keys: &[Bytes]) {
        let mut copied = self.0.lock();
        for key in keys {
            if let Some(count) = copied.get_mut(&table.route_of(key).0.name) {
                *count += 1;
            }
        }
    }

    /// All of them.
    pub fn by_route(&self) -> HashMap<RouteName, u64> {
        self.0.lock().clone()
    }
}

impl Context {
    fn table(&self) -> Arc<Table> {
        self.adopter.table()
    }
}

/// All jobs of this run.
pub struct Jobs {
    context: Arc<Context>,
    list: Mutex<Vec<Arc<Job>>>,
}

impl Jobs {
    /// None yet.
    pub fn new(context: Context) -> Arc<Self> {
        Arc::new(Self { context: Arc::new(context), list: Mutex::new(Vec::new()) })
    }

    /// All of them, the newest last.
    pub fn list(&self) -> Vec<Arc<Job>> {
        self.list.lock().clone()
    }

    /// Keys of each route that its last backfill in this run has copied.
    pub fn copied(&self) -> HashMap<RouteName, u64> {
        self.context.copied.by_route()
    }

    /// One by its number.
    pub fn get(&self, id: u64) -> Option<Arc<Job>> {
        self.list.lock().iter().find(|job| job.id == id).cloned()
    }

    /// Asks a running job to end; what it has copied stays copied.
    pub fn cancel(&self, id: u64) -> bool {
        self.get(id).inspect(|job| job.cancelled.store(true, Ordering::Relaxed)).is_some()
    }

    /// Has the routes synced, however often the stores are in the way: what the program begins by itself must not end
    /// because a store was down. Returns when all are synced or have left their dual phase, or somebody cancelled the job.
    pub async fn sync(&self, mut routes: Vec<RouteName>, options: Options) {
        let mut pause = Duration::from_secs(1);
        loop {
            let table = self.context.table();
            let is_open = |name: &RouteName| {
                table.find(name).and_then(|route| route.dual.clone()).is_some_and(|dual| !dual.is_synced())
            };
            routes.retain(is_open);
            if routes.is_empty() {
                return;
            }
            let job = match self.start(Kind::Backfill, routes.clone(), options) {
                Ok(job) => job,
                Err(reason) => {
                    return tracing::error!(reason, "a backfill could not begin; start it with `cutover backfill`");
                }
            };
            let state = job.ended().await;
            if state == State::Cancelled {
                return;
            }
            if state == State::Failed {
                tracing::warn!(job = job.id, again_in = ?pause, "the backfill is tried again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(60));
            }
        }
    }

    /// Begins a job for routes of the adopted table, or says why it makes no sense. A job of the same kind that already
    /// runs for the same routes is joined.
    pub fn start(&self, kind: Kind, routes: Vec<RouteName>, options: Options) -> Result<Arc<Job>, String> {
        let table = self.context.table();
        for name in &routes {
            let Some(route) = table.find(name) else {
                return Err(format!(
                    "there is no route `{name}` in the table; name a provider, a range or a prefix as proxy.toml does"
                ));
            };
            if route.dual.is_none() {
                return Err(format!(
                    "route `{name}` is in phase {}: one store has its keys, so there is nothing to {}; move it to a dual phase first",
                    route.phase,
                    match kind {
                        Kind::Backfill => "copy",
                        Kind::Verify => "compare",
                    }
                ));
            }
        }
        let mut list = self.list.lock();
        let runs = |job: &&Arc<Job>| job.kind == kind && job.routes == routes && job.is_running();
        if let Some(job) = list.iter().find(runs) {
            return Ok(job.clone());
        }
        let job = Arc::new(Job {
            id: list.last().map_or(1, |job| job.id + 1),
            kind,
            routes,
            options,
            began: Instant::now(),
            scanned: AtomicU64::new(0),
            matched: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            differing: AtomicU64::new(0),
            repaired: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            keys_total: AtomicU64::new(0),
            differences: Mutex::new(Vec::new()),
            end: Mutex::new(None),
            cancelled: AtomicBool::new(false),
        });
        if list.len() >= JOBS_MAX
            && let Some(ended) = list.iter().position(|job| !job.is_running())
        {
            list.remove(ended);
        }
        list.push(job.clone());
        tokio::spawn(run(self.context.clone(), job.clone()));
        Ok(job)
    }
}

async fn run(context: Arc<Context>, job: Arc<Job>) {
    let wanted: HashSet<RouteName> = job.routes.iter().cloned().collect();
    tracing::info!(job = job.id, kind = ?job.kind, routes = ?job.view().routes, "job begins");
    let outcome = match job.kind {
        Kind::Backfill => backfill::run(&context, &job, &wanted).await,
        Kind::Verify => verify::run(&context, &job, &wanted).await,
    };
    let (state, message) = match outcome {
        Ok(message) => (State::Done, message),
        Err(JobError::Cancelled) => (State::Cancelled, "cancelled; what was copied stays copied".into()),
        Err(error) => (State::Failed, error.to_string()),
    };
    *job.end.lock() = Some((state, message, job.began.elapsed()));
    let view = job.summary();
    let (scanned, matched, copied, differing) = (view.scanned, view.matched, view.copied, view.differing);
    tracing::info!(job = job.id, state = ?view.state, scanned, matched, copied, differing, seconds = view.seconds, message = view.message, "job ended");
}
