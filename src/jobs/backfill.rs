//! Bulk backfill: every key of the routes goes through its lane once, then what the follower has and the leader lacks goes
//! too (an earlier stay, a lost deletion). After one whole walk without a failure the route is synced.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::dual::knowledge::{Doubt, Mark};
use crate::dual::{Message, Way};
use crate::jobs::reader::Reader;
use crate::jobs::scan::{Visit, Walk};
use crate::jobs::{Context, Job, JobError, Marks};
use crate::resp::reply;
use crate::routing::{Coverage, Key, Phase, Route, RouteName, Side, Table, in_order};

/// Copies in flight, and about how many bytes: enough to hide a round trip.
const IN_FLIGHT: usize = 256;
const BYTES_IN_FLIGHT: u64 = 4 << 20;
/// Copies that are counted at a time.
const COUNTED: usize = 64;
/// How often keys whose copy failed are tried again, a second apart.
const ROUNDS: u32 = 30;

/// What is to be done with a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Bring it over to a leader that may lack it.
    Touch,
    /// Copy it from leader to follower.
    Copy,
    /// Copy it if the leader lacks it, which deletes it.
    Sweep,
}

/// How often routes are walked whose proof a flip or a doubt spoils each time.
const WALKS: u32 = 3;

/// Runs the job. What a flip or a doubt took the proof from while it was walked is walked again.
pub async fn run(context: &Context, job: &Job, routes: &HashSet<RouteName>) -> Result<String, JobError> {
    let mut open = routes.clone();
    for walk in 1..=WALKS {
        open = walk_once(context, job, &open).await?;
        if open.is_empty() {
            return Ok("synced: both stores hold every key".into());
        }
        let is_dual = |route: &Route| route.dual.is_some();
        if walk == WALKS || select(&context.table(), &open, is_dual).len() < open.len() {
            break;
        }
        tracing::warn!(job = job.id, routes = ?names(&open), "a flip or a doubt came between: these routes are walked again");
        job.walk_again();
    }
    Err(JobError::Incomplete(format!(
        "not synced, because a flip or a doubt came between: {}; start the job again",
        names(&open).join(", ")
    )))
}

fn names(routes: &HashSet<RouteName>) -> Vec<String> {
    in_order(routes.iter().map(RouteName::to_string))
}

/// Gives those whose proof was spoiled meanwhile.
async fn walk_once(context: &Context, job: &Job, routes: &HashSet<RouteName>) -> Result<HashSet<RouteName>, JobError> {
    let first_touch = select(&context.table(), routes, is_first_touch);
    if !first_touch.is_empty() {
        let begin = marks(&context.table(), &first_touch);
        Pass { context, job, routes: &first_touch, leader: Side::Cluster }.run(Step::Touch).await?;
        // The leader has every key now. Whether the follower has is what the next walk finds out.
        if !context.adopter.set_knowledge(&begin, Coverage::Both, Doubt::Stays).await?.is_empty() {
            return Ok(routes.clone());
        }
    }
    let begin = marks(&context.table(), routes);
    // What was walked before a restart belongs to the same proof: the place of a job counts while these stay.
    *job.marks.lock() = begin.clone();
    for leader in [Side::Standalone, Side::Cluster] {
        let led = select(&context.table(), routes, |route| route.dual.is_some() && route.phase.leader() == leader);
        if led.is_empty() {
            continue;
        }
        let pass = Pass { context, job, routes: &led, leader };
        pass.run(Step::Copy).await?;
        pass.run(Step::Sweep).await?;
    }
    settle(context, routes).await?;
    Ok(context.adopter.set_knowledge(&begin, Coverage::Both, Doubt::Ends).await?.into_iter().collect())
}

fn is_first_touch(route: &Route) -> bool {
    let coverage = route.dual.as_ref().map(|dual| dual.coverage());
    route.phase == Phase::DualCluster && coverage == Some(Coverage::StandaloneOnly)
}

fn select(table: &Table, routes: &HashSet<RouteName>, of: impl Fn(&Route) -> bool) -> HashSet<RouteName> {
    let found = table.routes().iter().filter(|route| routes.contains(&route.name) && of(route));
    found.map(|route| route.name.clone()).collect()
}

pub(super) fn marks(table: &Table, routes: &HashSet<RouteName>) -> Marks {
    let known = table.routes().iter().filter(|route| routes.contains(&route.name));
    known.filter_map(|route| Some((route.name.clone(), Mark::of(route)?))).collect()
}

/// What is done with routes that one store leads.
struct Pass<'p> {
    context: &'p Context,
    job: &'p Job,
    routes: &'p HashSet<RouteName>,
    leader: Side,
}

impl Pass<'_> {
    /// One walk, then what failed again and again until nothing is left.
    async fn run(&self, step: Step) -> Result<(), JobError> {
        let Self { context, job, routes, leader } = *self;
        // Touch reads what the cluster, which leads, may lack; a sweep reads what the leader may have deleted.
        let side = if step == Step::Copy { leader } else { leader.other() };
        let number = match (step, leader) {
            (Step::Touch, _) => 0,
            (Step::Copy, Side::Standalone) => 1,
            (Step::Sweep, Side::Standalone) => 2,
            (Step::Copy, Side::Cluster) => 3,
            (Step::Sweep, Side::Cluster) => 4,
        };
        let mut copier = Copier { context, job, step, side, reader: Reader::new(context), failed: Vec::new() };
        if step != Step::Sweep {
            context.copied.begin(routes);
        }
        let _beat = job.pulse.begin(context, leader);
        Walk { context, job, number, side, routes }.run(&mut copier).await?;
        for round in 0..ROUNDS {
            if copier.failed.is_empty() {
                return Ok(());
            }
            job.go_on()?;
            if round == 0 {
                tracing::warn!(
                    job = job.id,
                    keys = copier.failed.len(),
                    "copies failed; trying them again each second"
                );
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let again = std::mem::take(&mut copier.failed);
            copier.visit(again).await?;
        }
        Err(JobError::Incomplete(format!(
            "{} keys could not be copied; see the log for the reason and start the job again",
            copier.failed.len()
        )))
    }
}

struct Copier<'c> {
    context: &'c Context,
    job: &'c Job,
    step: Step,
    /// Which store is walked.
    side: Side,
    reader: Reader<'c>,
    failed: Vec<Key>,
}

impl Visit for Copier<'_> {
    async fn visit(&mut self, keys: Vec<Key>) -> Result<(), JobError> {
        let keys = match self.step {
            Step::Sweep => self.missing_on_leader(keys).await?,
            _ => {
                self.job.matched.fetch_add(keys.len() as u64, Ordering::Relaxed);
                keys
            }
        };
        let sizes = self.sizes(&keys).await?;
        let mut sized = keys.into_iter().zip(sizes);
        let (mut waits, mut bytes) = (VecDeque::with_capacity(IN_FLIGHT), 0);
        let mut copied = Vec::with_capacity(COUNTED);
        loop {
            while waits.len() < IN_FLIGHT
                && bytes < BYTES_IN_FLIGHT
                && let Some((key, size)) = sized.next()
            {
                bytes += size;
                waits.push_back((key.clone(), size, self.send(key, size)));
            }
            let Some((key, size, wait)) = waits.pop_front() else { break };
            match wait.await {
                Ok(Ok(())) => copied.push(key),
                _ => self.failed.push(key),
            }
            bytes -= size;
            if copied.len() == COUNTED || waits.is_empty() {
                self.job.copied.fetch_add(copied.len() as u64, Ordering::Relaxed);
                self.context.copied.add(&self.context.table(), &copied);
                copied.clear();
            }
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        self.failed.is_empty()
    }
}

impl Copier<'_> {
    fn send(&self, key: Key, bytes: u64) -> oneshot::Receiver<Result<(), crate::resp::refusal::Refusal>> {
        let (done, wait) = oneshot::channel();
        let peers = &self.context.peers;
        let lane = peers.lane_of(&key.name);
        let way = if self.context.copying.is_large(bytes) { Way::InPieces } else { Way::IfDifferent };
        peers.send(
            lane,
            match self.step {
                Step::Touch => Message::Touch { key, way, done },
                Step::Copy | Step::Sweep => Message::Resync { key, way, done: Some(done) },
            },
        );
        wait
    }

    /// How large the keys are, about: what is large must not be asked for as a whole.
    async fn sizes(&mut self, keys: &[Key]) -> Result<Vec<u64>, JobError> {
        let found = self.reader.ask(self.side, keys, &[b"MEMORY", b"USAGE", b"", b"SAMPLES", b"5"]).await?;
        // 0 for what has gone meanwhile, and where the server does not tell: then the copy finds out.
        let size = |reply: Option<Bytes>| reply.and_then(|reply| reply::integer(&reply)).unwrap_or(0).max(0) as u64;
        Ok(found.into_iter().map(size).collect())
    }

    async fn missing_on_leader(&mut self, keys: Vec<Key>) -> Result<Vec<Key>, JobError> {
        let table = self.context.table();
        let mut missing = Vec::new();
        for leader in [Side::Standalone, Side::Cluster] {
            let led: Vec<Key> =
                keys.iter().filter(|key| table.route_of(&key.name).0.phase.leader() == leader).cloned().collect();
            if led.is_empty() {
                continue;
            }
            let found = self.reader.ask(leader, &led, &[b"EXISTS", b""]).await?;
            let lacks = |reply: &Option<Bytes>| reply.as_ref().and_then(|reply| reply::integer(reply)) != Some(1);
            missing.extend(led.into_iter().zip(found).filter(|(_, reply)| lacks(reply)).map(|(key, _)| key));
        }
        Ok(missing)
    }
}

/// Waits until what diverged meanwhile is repaired.
async fn settle(context: &Context, routes: &HashSet<RouteName>) -> Result<(), JobError> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let table = context.table();
        let open: u64 = table
            .routes()
            .iter()
            .filter(|route| routes.contains(&route.name))
            .filter_map(|route| route.dual.as_ref())
            .map(|dual| dual.divergence())
            .sum();
        if open == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(JobError::Incomplete(format!(
                "{open} keys are still diverged; they are repaired when both stores answer; then start the job again"
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
