//! How fast a walk may go: keys a second, bytes a second, and what the leader's latency allows.
//!
//! While no job runs, the proxy's own PINGs (twice a second, behind the application's requests) say what is usual: their p99
//! is the baseline. While a job runs it asks the leader's nodes itself, a hundred times a second; a p99 that leaves the
//! baseline makes it pause after each page, longer and longer, and it goes back step by step when the leader is at ease again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::jobs::{Context, scan};
use crate::resp::reply::Protocol;
use crate::routing::Side;
use crate::store::PrivateLink;
use crate::store::link::Endpoint;

/// PINGs whose answers make one judgement, and the time between two of them.
const WINDOW: usize = 100;
const BETWEEN: Duration = Duration::from_millis(10);
/// Answers of which the baseline is made: two minutes.
const BASELINE: usize = 240;
/// The leader is slower than usual when its p99 is so many times the baseline's, and above what a network or a host whose
/// cores are busy does by itself: below it no application would notice, and a walk that holds back does not end.
const FACTOR: u32 = 3;
const UNSUSPICIOUS_US: u32 = 20_000;
/// A single answer that takes longer is judged at once.
const ALARMING_US: u32 = 300_000;
/// At the highest level a page is followed by a pause of 31 times its own duration, up to a second.
const LEVEL_MAX: u32 = 5;
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The p99 of some answer times.
fn p99(times: impl IntoIterator<Item = u32>) -> Option<u32> {
    let mut sorted: Vec<u32> = times.into_iter().collect();
    sorted.sort_unstable();
    sorted.get((sorted.len() * 99).div_ceil(100).checked_sub(1)?).copied()
}

/// What is usual, of one store.
#[derive(Debug, Default)]
pub struct Baseline(Mutex<VecDeque<u32>>);

impl Baseline {
    /// An answer of a quiet time.
    pub fn note(&self, micros: u32) {
        let mut times = self.0.lock();
        if times.len() >= BASELINE {
            times.pop_front();
        }
        times.push_back(micros);
    }

    fn p99(&self) -> Option<u32> {
        p99(self.0.lock().iter().copied())
    }
}

/// From answer times to a level of restraint. Pure.
#[derive(Debug, Default)]
struct Pace {
    window: Vec<u32>,
    level: u32,
    p99: u32,
}

impl Pace {
    fn note(&mut self, micros: u32, baseline: Option<u32>) {
        self.window.push(micros);
        if self.window.len() < WINDOW && micros < ALARMING_US {
            return;
        }
        self.p99 = p99(self.window.drain(..)).unwrap_or(0);
        let limit = baseline.unwrap_or(0).saturating_mul(FACTOR).max(UNSUSPICIOUS_US);
        self.level = if self.p99 > limit { (self.level + 1).min(LEVEL_MAX) } else { self.level.saturating_sub(1) };
    }
}

/// What a job shares with those who ask its leader.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Of each node: level and p99. The lock guards the map, for an instant a second.
    nodes: Mutex<HashMap<Arc<str>, (u32, u32)>>,
}

impl Pulse {
    /// Begins to ask the nodes of a side, until what this gives is dropped.
    pub(super) fn begin(self: &Arc<Self>, context: &Context, side: Side) -> Beat {
        let nodes: Vec<Endpoint> = match side {
            Side::Standalone => vec![context.standalone.clone()],
            Side::Cluster => {
                context.slot_map.load().primaries().iter().map(|address| scan::node(context, address)).collect()
            }
        };
        let baseline = context.baselines.of(side).clone();
        let tasks = nodes.into_iter().map(|node| tokio::spawn(ask(node, self.clone(), baseline.clone()))).collect();
        Beat { tasks, pulse: self.clone() }
    }

    /// Gives the level before.
    fn set(&self, node: &Arc<str>, level: u32, p99_us: u32) -> u32 {
        self.nodes.lock().insert(node.clone(), (level, p99_us)).map_or(0, |(level, _)| level)
    }

    /// Of the slowest node; 0: at full speed.
    pub(super) fn level(&self) -> u32 {
        self.nodes.lock().values().map(|(level, _)| *level).max().unwrap_or(0)
    }

    /// Of the slowest node of the leader, in the last second; `None`: not judged yet.
    pub(super) fn p99_ms(&self) -> Option<f64> {
        self.nodes.lock().values().map(|(_, p99_us)| f64::from(*p99_us) / 1e3).reduce(f64::max)
    }

    /// How long to pause after a page that took so long.
    pub(super) fn pause(&self, took: Duration) -> Duration {
        (took * ((1 << self.level()) - 1)).min(PAUSE_MAX)
    }
}

/// The asking; it ends when this is dropped.
pub(super) struct Beat {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    pulse: Arc<Pulse>,
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
        self.pulse.nodes.lock().clear();
    }
}

/// Asks one node again and again. Of several the slowest counts.
async fn ask(node: Endpoint, pulse: Arc<Pulse>, baseline: Arc<Baseline>) {
    let (mut pace, usual) = (Pace::default(), baseline.p99());
    loop {
        let Ok(mut link) = PrivateLink::connect(&node, Protocol::Resp2).await else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        loop {
            let asked = Instant::now();
            let answer = tokio::time::timeout(node.timeouts.reply, link.call(b"*1\r\n$4\r\nPING\r\n")).await;
            pace.note(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX), usual);
            if pace.window.is_empty() {
                let before = pulse.set(&node.address, pace.level, pace.p99);
                if before == 0 && pace.level > 0 {
                    tracing::info!(node = %node.address, p99_us = pace.p99, usual_us = usual.unwrap_or(0), "the leader answers slower than usual; the job holds back");
                }
            }
            if !matches!(answer, Ok(Ok(_))) {
                break;
            }
            tokio::time::sleep(BETWEEN).await;
        }
    }
}

/// Of both stores.
#[derive(Debug, Default)]
pub struct Baselines {
    standalone: Arc<Baseline>,
    cluster: Arc<Baseline>,
}

impl Baselines {
    /// Of one.
    pub fn of(&self, side: Side) -> &Arc<Baseline> {
        match side {
            Side::Standalone => &self.standalone,
            Side::Cluster => &self.cluster,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(pace: &mut Pace, micros: u32, baseline: Option<u32>) {
        (0..WINDOW).for_each(|_| pace.note(micros, baseline));
    }

    #[test]
    fn a_leader_that_is_slower_than_usual_is_given_time_and_one_that_was_always_slow_is_not() {
        let mut pace = Pace::default();
        second(&mut pace, 400, Some(300));
        assert_eq!(pace.level, 0);
        for level in [1, 2, 3, 4, 5, 5] {
            second(&mut pace, 29_000, Some(300));
            assert_eq!((pace.level, pace.p99), (level, 29_000));
        }
        second(&mut pace, 500, Some(300));
        assert_eq!(pace.level, 4, "back step by step");
        let mut pace = Pace::default();
        second(&mut pace, 29_000, Some(10_000));
        assert_eq!(pace.level, 0);
    }

    #[test]
    fn a_few_slow_answers_count_and_a_single_one_does_not_unless_it_is_very_slow() {
        assert_eq!(p99([]), None);
        assert_eq!(p99((1..=100).rev()), Some(99));
        let mut pace = Pace::default();
        pace.note(20_000, Some(300));
        (1..WINDOW).for_each(|_| pace.note(300, Some(300)));
        assert_eq!(pace.level, 0);
        pace.note(400_000, Some(300));
        assert_eq!(pace.level, 1, "a stall is seen before the second is over");
    }

    #[test]
    fn the_pause_grows_with_the_level_and_has_an_end() {
        let pulse = Pulse::default();
        assert_eq!(pulse.pause(Duration::from_millis(10)), Duration::ZERO);
        pulse.set(&"a:1".into(), 3, 0);
        assert_eq!(pulse.pause(Duration::from_millis(10)), Duration::from_millis(70));
        pulse.set(&"b:1".into(), LEVEL_MAX, 0);
        assert_eq!(pulse.pause(Duration::from_millis(100)), PAUSE_MAX);
    }
}
