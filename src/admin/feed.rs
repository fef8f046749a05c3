//! What the dashboard shows, looked at once a second for all listeners together: each gets everything at its beginning and
//! from then on what changed. Nothing is looked at while nobody listens, but for a few numbers, so that a page that is
//! opened can show the last minutes.
//!
//! Bounded: listeners by number, a listener that falls behind by [`BEHIND_MAX`] seconds is let go, and what is remembered
//! is one table and five minutes of samples. The work is done on a thread of its own: the control thread, which flips
//! routes while their clients wait, must not be kept.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast};
use tokio::time::MissedTickBehavior;

use crate::admin::routes::{self, RouteView, Traffic};
use crate::admin::{Parts, api};
use crate::dual::history::{Entry, shortened};
use crate::jobs::JobSummary;
use crate::metrics;
use crate::routing::{Coverage, Phase, RouteName};

/// Each costs its share of a tick's bytes; operators are few.
const LISTENERS_MAX: usize = 32;
/// Ticks that a listener may be behind.
const BEHIND_MAX: usize = 8;
const TICK: Duration = Duration::from_secs(1);
/// Five minutes.
const SAMPLES_MAX: usize = 300;
/// Jobs that are shown, beside those that run.
const JOBS_SHOWN: usize = 50;
/// Routes that a job names.
const JOB_NAMES: usize = 3;

/// See the module.
pub struct Feed {
    /// What the listeners have been told. The lock guards it while one look is taken and sent, so that a new listener gets
    /// exactly what the next tick goes on from.
    told: Mutex<Told>,
    ticks: broadcast::Sender<Arc<str>>,
    samples: Mutex<VecDeque<Sample>>,
    /// Listeners that were let go because they were behind.
    dropped: AtomicU64,
    /// Something was just done that a listener waits to see.
    woken: Notify,
}

#[derive(Default)]
struct Told {
    rows: HashMap<String, Row>,
    jobs: HashMap<u64, Job>,
    newest_entry: u64,
}

/// A route, in as few bytes as there is something to say of it: ten thousand of them go to each new listener.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    id: String,
    kind: &'static str,
    phase: Phase,
    #[serde(skip_serializing_if = "is_default")]
    synced: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    coverage: Option<Coverage>,
    #[serde(skip_serializing_if = "is_default")]
    in_doubt: bool,
    #[serde(skip_serializing_if = "is_default")]
    open_divergence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys_copied: Option<u64>,
    #[serde(skip_serializing_if = "is_default")]
    ops_per_second: f64,
    #[serde(skip_serializing_if = "is_default")]
    refusals: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    covered_by: Option<String>,
    /// The job that walks over it now.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<u64>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Row {
    fn new(route: RouteView, job: Option<u64>) -> Self {
        Self {
            id: route.id,
            kind: route.kind,
            phase: route.phase,
            synced: route.synced,
            coverage: route.coverage,
            in_doubt: route.in_doubt,
            open_divergence: route.open_divergence,
            keys_copied: route.keys_copied,
            ops_per_second: steadied(route.ops_per_second),
            refusals: route.refusals,
            covered_by: route.covered_by,
            job,
        }
    }

    /// Kind and id: a provider may be called as a prefix is. The page builds the same.
    fn key(&self) -> String {
        format!("{} {}", self.kind, self.id)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Job {
    #[serde(flatten)]
    summary: JobSummary,
    route_count: usize,
    first_routes: Vec<String>,
}

/// Milliseconds since 1970, requests a second, latency of the standalone and of the cluster in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample(u64, f64, Option<f64>, Option<f64>);

/// What a listener is told: everything, or what changed.
#[derive(Serialize)]
struct Message<'t> {
    head: Value,
    rows: Vec<&'t Row>,
    /// Keys of the rows that are no more.
    gone: Vec<&'t String>,
    jobs: Vec<&'t Job>,
    history: Vec<Entry>,
    samples: Vec<Sample>,
}

impl Message<'_> {
    fn text(&self) -> String {
        serde_json::to_string(self).expect("a tree of plain values with names as keys is JSON")
    }
}

/// A listener was not let in.
#[derive(Debug, thiserror::Error)]
#[error("{LISTENERS_MAX} listeners watch already; close a dashboard, or ask GET /api/table")]
pub struct Full;

/// What a listener hears next.
#[derive(Debug)]
pub enum Heard {
    Tick(Arc<str>),
    /// It is behind, and has to begin anew.
    Behind,
}

/// One listener's place, free again when it is dropped.
pub struct Listener {
    ticks: broadcast::Receiver<Arc<str>>,
    feed: Arc<Feed>,
}

impl Listener {
    /// Waits for the next tick.
    pub async fn hear(&mut self) -> Heard {
        match self.ticks.recv().await {
            Ok(tick) => Heard::Tick(tick),
            Err(broadcast::error::RecvError::Closed) => Heard::Behind,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.feed.dropped.fetch_add(1, Ordering::Relaxed);
                Heard::Behind
            }
        }
    }
}

impl Default for Feed {
    fn default() -> Self {
        let (ticks, _) = broadcast::channel(BEHIND_MAX);
        Self {
            told: Mutex::default(),
            ticks,
            samples: Mutex::default(),
            dropped: AtomicU64::new(0),
            woken: Notify::new(),
        }
    }
}

impl Feed {
    /// Has the next tick come at once.
    pub fn wake(&self) {
        self.woken.notify_one();
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.ticks.receiver_count()
    }

    /// How many were let go because they were behind.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Everything that is shown now, and a place to hear what changes. Blocks for one look.
    pub fn listen(self: Arc<Self>, parts: &Parts) -> Result<(String, Listener), Full> {
        let mut told = self.told.lock();
        if self.listeners() >= LISTENERS_MAX {
            return Err(Full);
        }
        if self.listeners() == 0 {
            // What others were told before is of no use.
            *told = look(parts);
        }
        let full = Message {
            head: head(parts),
            rows: told.rows.values().collect(),
            gone: Vec::new(),
            jobs: told.jobs.values().collect(),
            history: parts.adopter.history().after(0),
            samples: self.samples.lock().iter().copied().collect(),
        };
        let full = full.text();
        let ticks = self.ticks.subscribe();
        drop(told);
        Ok((full, Listener { ticks, feed: self }))
    }

    /// Looks, and tells what changed. Blocks for one look.
    fn tick(&self, parts: &Parts) {
        let mut told = self.told.lock();
        let now = look(parts);
        let changed = now.rows.iter().filter(|(key, row)| told.rows.get(*key) != Some(row));
        let worked = now.jobs.iter().filter(|(id, job)| told.jobs.get(id) != Some(job));
        let tick = Message {
            head: head(parts),
            rows: changed.map(|(_, row)| row).collect(),
            gone: told.rows.keys().filter(|key| !now.rows.contains_key(*key)).collect(),
            jobs: worked.map(|(_, job)| job).collect(),
            history: parts.adopter.history().after(told.newest_entry),
            samples: self.samples.lock().back().copied().into_iter().collect(),
        };
        // Whoever listened may have gone meanwhile.
        let _ = self.ticks.send(tick.text().into());
        *told = now;
    }

    fn sample(&self, parts: &Parts, requests_before: u64, took: Duration) -> u64 {
        let requests = metrics::get(&parts.totals.requests);
        let milliseconds = |micros: u64| (micros > 0).then(|| micros as f64 / 1e3);
        let rate = requests.saturating_sub(requests_before) as f64 / took.as_secs_f64().max(0.001);
        let mut samples = self.samples.lock();
        if samples.len() >= SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(Sample(
            now_ms(),
            rate.round(),
            milliseconds(metrics::get(&parts.totals.standalone.latency_us)),
            milliseconds(metrics::get(&parts.totals.cluster.latency_us)),
        ));
        requests
    }
}

/// Ticks for as long as it is polled.
pub async fn run(parts: Parts) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut requests, mut last) = (metrics::get(&parts.totals.requests), Instant::now());
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                requests = parts.feed.sample(&parts, requests, last.elapsed());
                last = Instant::now();
            }
            () = parts.feed.woken.notified() => {}
        }
        if parts.feed.listeners() > 0 {
            let parts = parts.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || parts.feed.tick(&parts)).await {
                tracing::error!(%error, "the dashboard's feed failed; it is tried again");
            }
        }
    }
}

fn head(parts: &Parts) -> Value {
    let mut head = api::head(parts, &parts.adopter.table());
    head["now_ms"] = json!(now_ms());
    head["needs_token"] = json!(parts.token.is_some());
    head["version"] = json!(env!("CARGO_PKG_VERSION"));
    head["refused"] = json!(parts.adopter.refused().map(|reason| shortened(&reason)));
    head
}

fn look(parts: &Parts) -> Told {
    let table = parts.adopter.table();
    let traffic = Traffic::now(parts, &table);
    let all = parts.jobs.list();
    let mut walks: HashMap<&RouteName, u64> = HashMap::new();
    for job in all.iter().filter(|job| job.is_running()) {
        walks.extend(job.routes.iter().map(|route| (route, job.id)));
    }
    let lines = routes::lines(parts, &table, &traffic, |_| true);
    let walked = table.routes().iter().map(|route| walks.get(&route.name).copied());
    let rows = lines.into_iter().zip(walked).map(|(route, job)| Row::new(route, job));
    let others = routes::others(&table, &traffic).into_iter().chain([routes::channels(&table)]);
    let rows = rows.chain(others.map(|route| Row::new(route, None))).map(|row| (row.key(), row)).collect();
    let newest = all.len().saturating_sub(JOBS_SHOWN);
    let shown = all.iter().enumerate().filter(|(index, job)| *index >= newest || job.is_running());
    let job = |job: &crate::jobs::Job| Job {
        summary: job.summary(),
        route_count: job.routes.len(),
        first_routes: job.routes.iter().take(JOB_NAMES).map(ToString::to_string).collect(),
    };
    let jobs = shown.map(|(_, shown)| (shown.id, job(shown))).collect();
    let newest_entry = parts.adopter.history().after(0).last().map_or(0, |entry| entry.number);
    Told { rows, jobs, newest_entry }
}

/// Two digits are what a person reads of a rate, and it changes less often.
fn steadied(rate: f64) -> f64 {
    if rate < 10.0 {
        return rate;
    }
    let unit = 10_f64.powi(rate.log10().floor() as i32 - 1);
    (rate / unit).round() * unit
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_told_with_two_digits() {
        let told = [0.0, 0.4, 9.7, 12.3, 128.0, 4_449.0, 99_999.0].map(steadied);
        assert_eq!(told, [0.0, 0.4, 9.7, 12.0, 130.0, 4_400.0, 100_000.0]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_falls_behind_is_let_go_and_counted() {
        let feed = Arc::new(Feed::default());
        let place = || Listener { ticks: feed.ticks.subscribe(), feed: feed.clone() };
        let (mut slow, mut quick) = (place(), place());
        for number in 0..=BEHIND_MAX {
            feed.ticks.send(number.to_string().into()).unwrap();
            assert!(matches!(quick.hear().await, Heard::Tick(tick) if *tick == *number.to_string()));
        }
        assert!(matches!(slow.hear().await, Heard::Behind));
        assert_eq!((feed.dropped(), feed.listeners()), (1, 2));
        drop((slow, quick));
        assert_eq!(feed.listeners(), 0);
    }
}
