//! Bulk backfill: every key of the routes goes through its lane once, then what the follower has and the leader lacks goes
//! too (an earlier stay, a lost deletion). After one whole walk without a failure the route is synced.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::dual::Message;
use crate::dual::adopt::{Doubt, Mark};
use crate::jobs::reader::Reader;
use crate::jobs::scan::{self, Visit};
use crate::jobs::{Context, Job, JobError};
use crate::resp::reply;
use crate::routing::{Coverage, Phase, Route, RouteName, Side, Table};

/// Copies in flight: enough to hide a round trip, few enough that even large values stay within some tens of MiB.
const IN_FLIGHT: usize = 64;
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

/// Runs the job.
pub async fn run(context: &Context, job: &Job, routes: &HashSet<RouteName>) -> Result<String, JobError> {
    let first_touch = select(&context.table(), routes, is_first_touch);
    if !first_touch.is_empty() {
        let begin = marks(&context.table(), &first_touch);
        pass(context, job, &first_touch, Side::Standalone, Step::Touch).await?;
        // The leader has every key now. Whether the follower has is what the next walk finds out.
        if !context.adopter.set_knowledge(&begin, Coverage::Both, Doubt::Stays).await?.is_empty() {
            return Err(JobError::Incomplete("a route was flipped meanwhile; start the job again".into()));
        }
    }
    let begin = marks(&context.table(), routes);
    for leader in [Side::Standalone, Side::Cluster] {
        let led = select(&context.table(), routes, |route| route.dual.is_some() && route.phase.leader() == leader);
        if led.is_empty() {
            continue;
        }
        pass(context, job, &led, leader, Step::Copy).await?;
        pass(context, job, &led, leader.other(), Step::Sweep).await?;
    }
    settle(context, routes).await?;
    let doubtful = context.adopter.set_knowledge(&begin, Coverage::Both, Doubt::Ends).await?;
    let doubtful: Vec<String> = doubtful.into_iter().map(|route| route.to_string()).collect();
    match doubtful.is_empty() {
        true => Ok("synced: both stores hold every key".into()),
        false => Err(JobError::Incomplete(format!(
            "not synced, because a flip or a doubt came between: {}; start the job again",
            doubtful.join(", ")
        ))),
    }
}

fn is_first_touch(route: &Route) -> bool {
    let coverage = route.dual.as_ref().map(|dual| dual.coverage());
    route.phase == Phase::DualCluster && coverage == Some(Coverage::StandaloneOnly)
}

fn select(table: &Table, routes: &HashSet<RouteName>, of: impl Fn(&Route) -> bool) -> HashSet<RouteName> {
    let found = table.routes().iter().filter(|route| routes.contains(&route.name) && of(route));
    found.map(|route| route.name.clone()).collect()
}

fn marks(table: &Table, routes: &HashSet<RouteName>) -> HashMap<RouteName, Mark> {
    let known = table.routes().iter().filter(|route| routes.contains(&route.name));
    known.filter_map(|route| Some((route.name.clone(), Mark::of(route)?))).collect()
}

/// One walk over one side, then what failed again and again until nothing is left.
async fn pass(
    context: &Context,
    job: &Job,
    routes: &HashSet<RouteName>,
    side: Side,
    step: Step,
) -> Result<(), JobError> {
    let mut copier = Copier { context, job, step, reader: Reader::new(context), failed: Vec::new() };
    if step != Step::Sweep {
        context.copied.begin(routes);
    }
    scan::walk(context, job, side, routes, &mut copier).await?;
    for round in 0..ROUNDS {
        if copier.failed.is_empty() {
            return Ok(());
        }
        if job.is_cancelled() {
            return Err(JobError::Cancelled);
        }
        if round == 0 {
            tracing::warn!(job = job.id, keys = copier.failed.len(), "copies failed; trying them again each second");
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

struct Copier<'c> {
    context: &'c Context,
    job: &'c Job,
    step: Step,
    reader: Reader<'c>,
    failed: Vec<Bytes>,
}

impl Visit for Copier<'_> {
    async fn visit(&mut self, keys: Vec<Bytes>) -> Result<(), JobError> {
        let keys = match self.step {
            Step::Sweep => self.missing_on_leader(keys).await?,
            _ => {
                self.job.matched.fetch_add(keys.len() as u64, Ordering::Relaxed);
                keys
            }
        };
        for some in keys.chunks(IN_FLIGHT) {
            let waits: Vec<_> = some.iter().map(|key| self.send(key.clone())).collect();
            let mut copied = Vec::with_capacity(some.len());
            for (key, wait) in some.iter().zip(waits) {
                match wait.await {
                    Ok(Ok(())) => copied.push(key.clone()),
                    _ => self.failed.push(key.clone()),
                }
            }
            self.job.copied.fetch_add(copied.len() as u64, Ordering::Relaxed);
            self.context.copied.add(&self.context.table(), &copied);
        }
        Ok(())
    }
}

impl Copier<'_> {
    fn send(&self, key: Bytes) -> oneshot::Receiver<Result<(), crate::resp::refusal::Refusal>> {
        let (done, wait) = oneshot::channel();
        let peers = &self.context.peers;
        let lane = peers.lane_of(&key);
        peers.send(
            lane,
            match self.step {
                Step::Touch => Message::Touch { key, done },
                Step::Copy | Step::Sweep => Message::Resync { key, done: Some(done) },
            },
        );
        wait
    }

    async fn missing_on_leader(&mut self, keys: Vec<Bytes>) -> Result<Vec<Bytes>, JobError> {
        let table = self.context.table();
        let mut missing = Vec::new();
        for leader in [Side::Standalone, Side::Cluster] {
            let led: Vec<Bytes> =
                keys.iter().filter(|key| table.route_of(key).0.phase.leader() == leader).cloned().collect();
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
