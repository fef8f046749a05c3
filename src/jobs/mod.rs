//! Work that walks the whole of a store: backfill and verify. Jobs run inside the proxy, on the control thread, and touch
//! data only through the lanes, so that no copy can cross a write.

mod backfill;
pub mod bypass;
pub mod checkpoint;
pub mod inventory;
pub mod patterns;
pub mod prepare;
mod reader;
pub mod readiness;
mod scan;
mod throttle;
mod verify;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::dual::adopt::Adopter;
use crate::dual::knowledge::Mark;
use crate::dual::{Copying, Peers, Recent};
use crate::jobs::checkpoint::{Checkpoint, Counts, JobFile, Place, Record, Standing};
use crate::jobs::throttle::{Baselines, Pulse};
use crate::metrics::{self, Totals};
use crate::routing::flip::{Flip, Jumps};
use crate::routing::{Key, RouteName, Side, Table};
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
    /// The proxy ends, and goes on with it at its next start.
    Interrupted,
}

/// A key that differs, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The proxy is ending, and the job goes on at its next start.
    interrupted: AtomicBool,
    /// Where it stands; at the beginning, where it goes on.
    place: Mutex<Place>,
    /// What the place is relative to; `None` where a store could not be asked, or came up anew since.
    stores: Mutex<Option<checkpoint::Stores>>,
    /// What must be the same at the end for the place to count: see `backfill::marks`.
    marks: Mutex<Marks>,
    /// Scanned in an earlier run.
    resumed_at: u64,
    pulse: Arc<Pulse>,
}

/// Of each route, what must not change while a walk proves something of it.
type Marks = HashMap<RouteName, Mark>;

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
    /// At the rate so far; none when it is over, or nothing was scanned yet.
    pub seconds_left: Option<f64>,
    /// Where an earlier run of the proxy had come to; 0: from the beginning.
    pub resumed_at: u64,
    /// How slowly the leader's nodes answer, and how much the job holds back for it, from 0 (not at all) to 5.
    pub leader_p99_ms: Option<f64>,
    pub restraint: u32,
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
        let keys_per_second = scanned.saturating_sub(self.resumed_at) as f64 / seconds.max(0.001);
        let left = get(&self.keys_total).saturating_sub(scanned) as f64;
        let is_running = state == State::Running;
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
            keys_per_second,
            seconds_left: (is_running && keys_per_second > 0.0).then(|| left / keys_per_second),
            resumed_at: self.resumed_at,
            leader_p99_ms: is_running.then(|| self.pulse.p99_ms()).flatten(),
            restraint: self.pulse.level(),
            message,
        }
    }

    fn report(&self, key: &Key, main: u32, what: impl Into<String>) {
        self.differing.fetch_add(1, Ordering::Relaxed);
        let mut differences = self.differences.lock();
        if differences.len() < DIFFERENCES_MAX {
            let name = key.name.escape_ascii();
            let key = if key.db == main { name.to_string() } else { format!("{name} (database {})", key.db) };
            differences.push(Difference { key, what: what.into() });
        }
    }

    /// Keeps to the rates, and gives the leader time. `took`: the page that was just done.
    async fn throttle(&self, context: &Context, took: Duration) {
        let mut pause = self.pulse.pause(took);
        let (began, due) =
            (self.began, |done: u64, a_second: u64| Duration::from_secs_f64(done as f64 / a_second as f64));
        if self.options.rate > 0 {
            let scanned = self.scanned.load(Ordering::Relaxed) - self.resumed_at;
            pause = pause.max(due(scanned, self.options.rate).saturating_sub(began.elapsed()));
        }
        pause = pause.max(context.bytes_pause());
        // In small steps, so that a job that is cancelled ends soon.
        while !pause.is_zero() && !self.is_cancelled() && !self.is_interrupted() {
            let step = pause.min(Duration::from_millis(100));
            tokio::time::sleep(step).await;
            pause -= step;
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

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Why to end now, if there is a reason.
    fn go_on(&self) -> Result<(), JobError> {
        match (self.is_cancelled(), self.is_interrupted()) {
            (true, _) => Err(JobError::Cancelled),
            (_, true) => Err(JobError::Interrupted),
            _ => Ok(()),
        }
    }

    /// Begins the walk of that number; `None`: an earlier run has done it already.
    fn begin_walk(&self, number: u32) -> Option<Place> {
        let mut place = self.place.lock();
        if place.walk > number {
            return None;
        }
        if place.walk < number {
            *place = Place { walk: number, ..Place::default() };
        }
        Some(place.clone())
    }

    /// Every walk is to be done once more.
    fn walk_again(&self) {
        *self.place.lock() = Place::default();
    }

    fn record(&self, at: Option<Checkpoint>) -> Record {
        let (rate, repair) = (self.options.rate, self.options.repair);
        Record { kind: self.kind, routes: self.routes.clone(), rate, repair, at }
    }

    /// Where it stands, if that may be relied on at the next start.
    fn checkpoint(&self, table: &Table) -> Option<Checkpoint> {
        let names: HashSet<RouteName> = self.routes.iter().cloned().collect();
        let is_sound = backfill::marks(table, &names) == *self.marks.lock();
        let has_diverged =
            |name| table.find(name).and_then(|route| route.dual.clone()).is_none_or(|dual| dual.divergence() > 0);
        if !is_sound || self.routes.iter().any(has_diverged) {
            return None;
        }
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Some(Checkpoint {
            place: self.place.lock().clone(),
            stores: self.stores.lock().clone()?,
            standing: standing(table, &self.routes)?,
            counts: Counts {
                scanned: get(&self.scanned),
                matched: get(&self.matched),
                copied: get(&self.copied),
                differing: get(&self.differing),
                repaired: get(&self.repaired),
                pending: get(&self.pending),
            },
            differences: self.differences.lock().clone(),
        })
    }
}

/// What is known of routes; `None` if one of them has no follower.
fn standing(table: &Table, routes: &[RouteName]) -> Option<Vec<Standing>> {
    let of = |name: &RouteName| {
        let route = table.find(name)?;
        let dual = route.dual.as_ref()?;
        let (coverage, in_doubt) = (dual.coverage(), dual.is_in_doubt());
        Some(Standing { route: name.clone(), phase: route.phase, coverage, in_doubt })
    };
    routes.iter().map(of).collect()
}

/// Why a job ended early.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("cancelled")]
    Cancelled,
    #[error("the proxy ends; the job goes on at its next start")]
    Interrupted,
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
    pub copying: Arc<Copying>,
    pub totals: Arc<Totals>,
    pub baselines: Baselines,
    /// When the bytes of copies were counted from, and how many there were: started anew with the first of the running jobs.
    pub bytes_from: Mutex<(Instant, u64)>,
    pub file: JobFile,
    pub bypass: bypass::Bypass,
    pub recent: Arc<Recent>,
}

/// Keys of each route that its last backfill has copied. The lock guards the map, for a page of keys at a time.
#[derive(Debug, Default)]
pub struct Copied(Mutex<HashMap<RouteName, u64>>);

impl Copied {
    /// A walk over these routes begins.
    fn begin(&self, routes: &HashSet<RouteName>) {
        self.0.lock().extend(routes.iter().map(|route| (route.clone(), 0)));
    }

    fn add(&self, table: &Table, keys: &[Key]) {
        let mut copied = self.0.lock();
        for key in keys {
            if let Some(count) = copied.get_mut(&table.route_of(&key.name).0.name) {
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

    /// How long to wait until the bytes that were copied are within their rate.
    fn bytes_pause(&self) -> Duration {
        let a_second = self.copying.bytes_per_second();
        if a_second == 0 {
            return Duration::ZERO;
        }
        let (since, before) = *self.bytes_from.lock();
        let copied = self.copying.copies().bytes - before;
        Duration::from_secs_f64(copied as f64 / a_second as f64).saturating_sub(since.elapsed())
    }
}

/// Notes what is usual, while no job runs.
async fn watch_latency(jobs: std::sync::Weak<Jobs>) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let Some(jobs) = jobs.upgrade() else { return };
        if jobs.list.lock().iter().any(|job| job.end.lock().is_none()) {
            continue;
        }
        let totals = &jobs.context.totals;
        for (side, micros) in
            [(Side::Standalone, &totals.standalone.latency_us), (Side::Cluster, &totals.cluster.latency_us)]
        {
            // 0: it did not answer.
            if let Some(micros) = u32::try_from(metrics::get(micros)).ok().filter(|micros| *micros > 0) {
                jobs.context.baselines.of(side).note(micros);
            }
        }
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
        let jobs = Arc::new(Self { context: Arc::new(context), list: Mutex::new(Vec::new()) });
        tokio::spawn(watch_latency(Arc::downgrade(&jobs)));
        jobs
    }

    /// Which flips a key that is there, on either store, would make; or why that cannot be told.
    pub async fn found(&self, jumps: &Jumps) -> Result<Vec<Flip>, String> {
        scan::found(&self.context, jumps).await
    }

    /// Looks for writers that go around the proxy, from time to time; never, if that is zero.
    pub fn watch_bypass(&self, every: Duration) {
        let context = self.context.clone();
        tokio::spawn(bypass::watch(context, every));
    }

    /// What was found of them.
    pub fn bypass(&self) -> &bypass::Bypass {
        &self.context.bypass
    }

    /// Ends the running jobs at the next page, for the next start to go on with them.
    pub async fn interrupt(&self) {
        let running: Vec<Arc<Job>> = self.list().into_iter().filter(|job| job.end.lock().is_none()).collect();
        running.iter().for_each(|job| job.interrupted.store(true, Ordering::Relaxed));
        let all = async {
            for job in &running {
                job.ended().await;
            }
        };
        if !running.is_empty() && tokio::time::timeout(INTERRUPT, all).await.is_err() {
            tracing::warn!("a job did not come to the end of a page in time; it begins anew at the next start");
        }
    }

    /// Notes for the next start how far the jobs are that were interrupted. `is_clean`: every effect has reached its follower.
    pub fn keep(&self, is_clean: bool) {
        let table = self.context.table();
        let interrupted = |job: &Arc<Job>| matches!(&*job.end.lock(), Some((State::Interrupted, ..)) | None);
        let record = |job: Arc<Job>| {
            let has_stopped = job.end.lock().is_some();
            job.record((is_clean && has_stopped).then(|| job.checkpoint(&table)).flatten())
        };
        let kept = self.list().into_iter().filter(interrupted).map(record).collect();
        tell_unwritten(self.context.file.write_last(kept));
    }

    /// Notes which jobs run; it is on disk when this returns. Not on this thread, which answers the admin side meanwhile.
    async fn note(self: Arc<Self>) {
        let write = move || {
            self.context.file.write(|| {
                let running = self.list().into_iter().filter(|job| job.end.lock().is_none());
                running.map(|job| job.record(None)).collect()
            })
        };
        tell_unwritten(
            tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(std::io::Error::other(error))),
        );
    }

    /// What ran when the proxy ended. Read before any job begins, which writes the file anew.
    pub fn cut_off(&self) -> Vec<Record> {
        self.context.file.read()
    }

    /// Goes on with what ran when the proxy ended. `is_clean`: it had a clean end.
    pub async fn go_on(self: Arc<Self>, records: Vec<Record>, is_clean: bool) {
        let mut all = Vec::new();
        for record in records {
            all.push(self.clone().go_on_with(record, is_clean));
        }
        for going in all.into_iter().map(tokio::spawn).collect::<Vec<_>>() {
            // A task that panicked has said so.
            let _ = going.await;
        }
    }

    async fn go_on_with(self: Arc<Self>, record: Record, is_clean: bool) {
        let table = self.context.table();
        let is_dual = |name: &RouteName| table.find(name).is_some_and(|route| route.dual.is_some());
        let routes: Vec<RouteName> = record.routes.iter().filter(|name| is_dual(name)).cloned().collect();
        if routes.is_empty() {
            return;
        }
        let kept = record.at.clone().filter(|_| is_clean);
        let kept = kept.filter(|at| standing(&table, &record.routes).as_ref() == Some(&at.standing));
        let kept = match kept {
            Some(at) => (scan::stores(&self.context).await.as_ref() == Some(&at.stores)).then_some(at),
            None => None,
        };
        let how = if kept.is_some() { "from where it was" } else { "from the beginning" };
        tracing::info!(kind = ?record.kind, routes = routes.len(), how, "going on with a job that ran when the proxy ended");
        let options = Options { rate: record.rate, repair: record.repair };
        match record.kind {
            Kind::Backfill => self.sync_from(routes, options, kept).await,
            Kind::Verify => {
                if let Err(reason) = self.start_from(record.kind, routes, options, kept) {
                    tracing::warn!(
                        reason,
                        "a verification that a restart cut off could not begin again; start it with `cutover verify`"
                    );
                }
            }
        }
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
    pub async fn sync(self: Arc<Self>, routes: Vec<RouteName>, options: Options) {
        self.sync_from(routes, options, None).await;
    }

    async fn sync_from(self: Arc<Self>, mut routes: Vec<RouteName>, options: Options, mut at: Option<Checkpoint>) {
        let mut pause = Duration::from_secs(1);
        loop {
            // Whoever holds the lease has what it does walked by itself.
            self.context.adopter.desk().holder().await;
            let table = self.context.table();
            let is_open = |name: &RouteName| {
                table.find(name).and_then(|route| route.dual.clone()).is_some_and(|dual| !dual.is_synced())
            };
            routes.retain(is_open);
            if routes.is_empty() {
                return;
            }
            let job = match self.start_from(Kind::Backfill, routes.clone(), options, at.take()) {
                Ok(job) => job,
                Err(reason) => {
                    return tracing::error!(
                        reason,
                        ?routes,
                        "a backfill could not begin, and these routes stay as they are; start it with `cutover backfill`"
                    );
                }
            };
            let state = job.ended().await;
            if matches!(state, State::Cancelled | State::Interrupted) {
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
    pub fn start(self: &Arc<Self>, kind: Kind, routes: Vec<RouteName>, options: Options) -> Result<Arc<Job>, String> {
        if let Some(holder) = self.context.adopter.desk().followed() {
            return Err(format!(
                "the proxy at {holder} holds the lease of the dual routes, and copies and compares; start the job there"
            ));
        }
        self.start_from(kind, routes, options, None)
    }

    fn start_from(
        self: &Arc<Self>,
        kind: Kind,
        routes: Vec<RouteName>,
        options: Options,
        at: Option<Checkpoint>,
    ) -> Result<Arc<Job>, String> {
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
        let is_first = list.iter().all(|job| job.end.lock().is_some());
        if is_first {
            *self.context.bytes_from.lock() = (Instant::now(), self.context.copying.copies().bytes);
        }
        let (place, counts, differences) = match at {
            Some(at) => (at.place, at.counts, at.differences),
            None => (Place::default(), Counts::default(), Vec::new()),
        };
        let job = Arc::new(Job {
            id: list.last().map_or(1, |job| job.id + 1),
            kind,
            routes,
            options,
            began: Instant::now(),
            scanned: AtomicU64::new(counts.scanned),
            matched: AtomicU64::new(counts.matched),
            copied: AtomicU64::new(counts.copied),
            differing: AtomicU64::new(counts.differing),
            repaired: AtomicU64::new(counts.repaired),
            pending: AtomicU64::new(counts.pending),
            keys_total: AtomicU64::new(0),
            differences: Mutex::new(differences),
            end: Mutex::new(None),
            cancelled: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            place: Mutex::new(place),
            stores: Mutex::new(None),
            marks: Mutex::new(Marks::new()),
            resumed_at: counts.scanned,
            pulse: Arc::default(),
        });
        if list.len() >= JOBS_MAX
            && let Some(ended) = list.iter().position(|job| !job.is_running())
        {
            list.remove(ended);
        }
        list.push(job.clone());
        drop(list);
        let (jobs, running) = (self.clone(), job.clone());
        tokio::spawn(async move {
            jobs.clone().note().await;
            run(&jobs.context, &running).await;
            // One that is interrupted stays in the file.
            if !running.is_interrupted() {
                jobs.note().await;
            }
        });
        Ok(job)
    }
}

fn tell_unwritten(outcome: std::io::Result<()>) {
    if let Err(error) = outcome {
        tracing::error!(%error, "write jobs.json: a job that a restart cuts off is not begun again by itself");
    }
}

/// How long jobs get to come to the end of a page when the proxy ends.
const INTERRUPT: Duration = Duration::from_secs(2);

async fn run(context: &Context, job: &Job) {
    let wanted: HashSet<RouteName> = job.routes.iter().cloned().collect();
    tracing::info!(job = job.id, kind = ?job.kind, routes = ?job.view().routes, "job begins");
    *job.marks.lock() = backfill::marks(&context.table(), &wanted);
    *job.stores.lock() = scan::stores(context).await;
    scan::measure(context, job).await;
    let outcome = match job.kind {
        Kind::Backfill => backfill::run(context, job, &wanted).await,
        Kind::Verify => verify::run(context, job, &wanted).await,
    };
    let (state, message) = match outcome {
        Ok(message) => (State::Done, message),
        Err(JobError::Cancelled) => (State::Cancelled, "cancelled; what was copied stays copied".into()),
        Err(JobError::Interrupted) => (State::Interrupted, JobError::Interrupted.to_string()),
        Err(error) => (State::Failed, error.to_string()),
    };
    *job.end.lock() = Some((state, message, job.began.elapsed()));
    let view = job.summary();
    let (scanned, matched, copied, differing) = (view.scanned, view.matched, view.copied, view.differing);
    tracing::info!(job = job.id, state = ?view.state, scanned, matched, copied, differing, seconds = view.seconds, message = view.message, "job ended");
}
