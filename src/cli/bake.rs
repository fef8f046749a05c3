//! The wait after a cutover, with open eyes: what a route shows only under its real traffic shows now, while the way back
//! costs nothing. What passes by itself (a key that is repaired, a store that fails over) gets [`PATIENCE`]; a request that
//! was refused because the cluster cannot do it does not pass by itself.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::cli::api_client::ApiClient;
use crate::cli::facts::Facts;
use crate::cli::interrupt::Interrupt;
use crate::cli::output::time;
use crate::cli::progress::Progress;
use crate::routing::Phase;

/// How long something may be wrong that can mend itself: a failover takes some seconds, a repair less.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(500);

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Baked {
    Good(String),
    Short(String),
    Interrupted,
}

/// What is wrong at one look.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trouble {
    /// Falls short if it lasts.
    Passing(String),
    /// Falls short at once.
    Final(String),
}

/// Watches the routes for `length`. `refusals_max`: how many refused requests of a route are let pass.
pub fn bake(
    client: &ApiClient,
    routes: &[String],
    length: Duration,
    refusals_max: u64,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Baked {
    let began = Instant::now();
    let mut watch = Watch { routes, refusals_max, refusals_before: HashMap::new(), operations: 0.0, looks: 0 };
    let mut troubled: Option<Instant> = None;
    loop {
        if interrupt.is_asked() {
            progress.end();
            return Baked::Interrupted;
        }
        let trouble = match Facts::read(client) {
            Ok(facts) => watch.look(&facts),
            Err(error) => Some(Trouble::Passing(format!("{error:#}"))),
        };
        match trouble {
            None => {
                troubled = None;
                if began.elapsed() >= length {
                    progress.end();
                    let rate = watch.operations / f64::from(watch.looks.max(1));
                    return Baked::Good(format!(
                        "no open divergence, no refusals above {refusals_max} a route, {rate:.0} requests/s"
                    ));
                }
            }
            Some(Trouble::Final(reason)) => {
                progress.end();
                return Baked::Short(reason);
            }
            Some(Trouble::Passing(reason)) => {
                let since = *troubled.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    progress.end();
                    return Baked::Short(format!("for {}: {reason}", time(PATIENCE)));
                }
            }
        }
        let passed = began.elapsed();
        progress.show(passed.as_secs_f64(), length.as_secs_f64(), || {
            format!("bake: {} of {}, {:.0} requests/s", time(passed), time(length), watch.rate_now())
        });
        interrupt.sleep(LOOK.min(length.saturating_sub(passed).max(Duration::from_millis(20))));
    }
}

struct Watch<'r> {
    routes: &'r [String],
    refusals_max: u64,
    /// At the first look.
    refusals_before: HashMap<String, u64>,
    /// Sum of the rates of all looks.
    operations: f64,
    looks: u32,
}

impl Watch<'_> {
    fn rate_now(&self) -> f64 {
        self.operations / f64::from(self.looks.max(1))
    }

    fn look(&mut self, facts: &Facts) -> Option<Trouble> {
        self.looks += 1;
        let mut passing = None;
        for route in self.routes {
            let Some(fact) = facts.routes.get(route) else {
                return Some(Trouble::Final(format!("{route} has no line any more")));
            };
            if fact.phase != Phase::DualCluster {
                return Some(Trouble::Final(format!("{route} was flipped to {} meanwhile", fact.phase)));
            }
            self.operations += fact.ops_per_second;
            let before = *self.refusals_before.entry(route.clone()).or_insert(fact.refusals);
            // A proxy that was restarted counts from zero.
            let refused = fact.refusals.saturating_sub(before);
            if refused > self.refusals_max {
                return Some(Trouble::Final(format!(
                    "the proxy refused {refused} requests of {route} whose keys are in different slots or on different stores (CROSSSLOT)"
                )));
            }
            if fact.open_divergence > 0 {
                passing.get_or_insert(format!(
                    "{} keys of {route} may differ between the stores and are not repaired",
                    fact.open_divergence
                ));
            }
            if fact.in_doubt {
                passing.get_or_insert(format!(
                    "{route} is in doubt since an unclean stop, until a backfill has gone through it"
                ));
            }
        }
        if let Some(store) = facts.silent_store() {
            passing.get_or_insert(format!("the {store} does not answer"));
        }
        if let Some(reason) = &facts.refused {
            passing.get_or_insert(format!("the newest proxy.toml is refused: {reason}"));
        }
        passing.map(Trouble::Passing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::facts::{Fact, Store};

    fn facts(change: impl FnOnce(&mut Fact)) -> Facts {
        let mut fact = Fact {
            id: "42".into(),
            phase: Phase::DualCluster,
            synced: true,
            coverage: None,
            in_doubt: false,
            open_divergence: 0,
            ops_per_second: 1.0,
            refusals: 5,
        };
        change(&mut fact);
        let up = Store { up: true };
        Facts { routes: HashMap::from([("42".into(), fact)]), refused: None, standalone: up.clone(), cluster: up }
    }

    #[test]
    fn refusals_and_flips_end_a_bake_at_once_and_what_can_mend_itself_does_not() {
        let routes = ["42".to_string()];
        let mut watch =
            Watch { routes: &routes, refusals_max: 1, refusals_before: HashMap::new(), operations: 0.0, looks: 0 };
        assert_eq!(watch.look(&facts(|_| {})), None, "what was refused before does not count");
        assert_eq!(watch.look(&facts(|fact| fact.refusals = 6)), None);
        assert!(matches!(watch.look(&facts(|fact| fact.refusals = 7)), Some(Trouble::Final(_))));
        assert_eq!(watch.look(&facts(|fact| fact.refusals = 0)), None, "a proxy that was restarted");
        assert!(matches!(watch.look(&facts(|fact| fact.phase = Phase::Cluster)), Some(Trouble::Final(_))));
        assert!(matches!(watch.look(&facts(|fact| fact.open_divergence = 1)), Some(Trouble::Passing(_))));
        assert!(matches!(watch.look(&facts(|fact| fact.in_doubt = true)), Some(Trouble::Passing(_))));
        let mut down = facts(|_| {});
        down.cluster.up = false;
        assert!(matches!(watch.look(&down), Some(Trouble::Passing(_))));
    }
}
