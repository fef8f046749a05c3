//! `cutover migrate`: the whole way, step by step. Each step is an edit that the proxy adopted or a job that runs in the
//! proxy, so whenever this program stops, every route is in a phase in which nothing can be lost, and the same command
//! goes on from there.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::json;

use crate::change::{self, Changed, Judgement, Missing};
use crate::cli::api_client::ApiClient;
use crate::cli::bake::{Baked, bake};
use crate::cli::facts::{Fact, Facts, Silence};
use crate::cli::interrupt::Interrupt;
use crate::cli::job::Flow;
use crate::cli::lines;
use crate::cli::output::{names, say, time};
use crate::cli::progress::Progress;
use crate::cli::{DONE, Migrate, REFUSED, job};
use crate::config::Config;
use crate::jobs::Kind;
use crate::routing::Phase;

/// Routes that go together with `--all`: each backfill walks the whole standalone once, so one by one a thousand
/// providers would walk it a thousand times; and what falls short still stops the rest.
const TOGETHER_OF_ALL: usize = 100;

/// How long a store gets to answer before a flip.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// Why the way ended early.
enum Stop {
    Short(String),
    Interrupted,
    Error(anyhow::Error),
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::Error(error)
    }
}

/// Takes the routes along, some at a time.
pub fn run(config: &Config, path: &Path, asked: &Migrate, as_json: bool) -> anyhow::Result<u8> {
    let client = ApiClient::new(config);
    let facts = Facts::of_adopted_file(&client)?;
    let interrupt = Interrupt::listen()?;
    let routes = match asked.all {
        true => everyone(config, path, &facts, as_json)?,
        false => change::select(config, &asked.routes, Missing::GetsLine)?,
    };
    if routes.is_empty() {
        bail!(
            "there is no provider: proxy.toml names none, and no key in the stores fits the patterns of routing.keys"
        );
    }
    if routes.iter().any(|route| route == "pubsub") {
        bail!("pubsub has no keys to migrate; `cutover move pubsub --to cluster` flips it");
    }
    let together = match (asked.at_once, asked.all) {
        (None, false) => 1,
        (None, true) => TOGETHER_OF_ALL,
        (Some(0), _) => routes.len(),
        (Some(count), _) => count,
    };
    let way = Way { config, path, asked, client, interrupt, as_json, progress: Progress::new(as_json) };
    let began = Instant::now();
    for (index, batch) in routes.chunks(together).enumerate() {
        if let Err(stop) = way.go(batch) {
            let rest: Vec<String> = routes.iter().skip((index + 1) * together).cloned().collect();
            return way.stopped(batch, &rest, stop);
        }
    }
    way.arrived(&routes, began.elapsed());
    Ok(DONE)
}

/// All providers. Those that only the stores know get a line each, in one edit that flips nothing.
fn everyone(config: &Config, path: &Path, facts: &Facts, as_json: bool) -> anyhow::Result<Vec<String>> {
    let everyone = lines::everyone(config, as_json)?;
    let phase = |id: &String| (id.clone(), facts.phase(config, id).unwrap_or(config.routing.new_providers));
    let named: Vec<(String, Phase)> = everyone.unnamed.iter().map(phase).collect();
    if !named.is_empty() {
        match change::change(config, path, &named, Judgement::Stands, &ApiClient::new(config))? {
            Changed::Refused(reason) => {
                bail!("the providers that were found in the stores could not be given lines: {reason}")
            }
            Changed::Written => bail!("the proxy went away; start it, and run this again"),
            Changed::Already | Changed::Adopted(_) => {}
        }
        if !as_json {
            say!("{} got lines in {}: found in the stores", names(&everyone.unnamed), path.display());
        }
    }
    Ok(everyone.lines.into_iter().chain(everyone.unnamed).collect())
}

struct Way<'w> {
    config: &'w Config,
    path: &'w Path,
    asked: &'w Migrate,
    client: ApiClient,
    interrupt: Interrupt,
    as_json: bool,
    progress: Progress,
}

impl Way<'_> {
    /// The steps. Each takes along those of the routes that are not further on.
    fn go(&self, routes: &[String]) -> Result<(), Stop> {
        self.tell_who_is_further_on(routes)?;
        self.flip(routes, Phase::Standalone, Phase::DualStandalone)?;
        self.backfill(&self.those(routes, |fact| fact.phase.is_dual() && !fact.synced)?)?;
        self.verify(&self.those(routes, |fact| fact.phase == Phase::DualStandalone)?)?;
        self.flip(routes, Phase::DualStandalone, Phase::DualCluster)?;
        let cut_over = self.those(routes, |fact| fact.phase == Phase::DualCluster)?;
        self.bake(&cut_over)?;
        self.verify(&cut_over)?;
        if self.asked.finish {
            self.flip(routes, Phase::DualCluster, Phase::Cluster)?;
        }
        Ok(())
    }

    fn those(&self, routes: &[String], is: impl Fn(&Fact) -> bool) -> Result<Vec<String>, Stop> {
        let facts = Facts::read(&self.client)?;
        Ok(routes.iter().filter(|route| facts.routes.get(*route).is_some_and(&is)).cloned().collect())
    }

    fn tell_who_is_further_on(&self, routes: &[String]) -> Result<(), Stop> {
        if self.as_json {
            return Ok(());
        }
        for phase in [Phase::DualStandalone, Phase::DualCluster, Phase::Cluster] {
            let there = self.those(routes, |fact| fact.phase == phase)?;
            if !there.is_empty() {
                say!("{}: in phase {phase} already", names(&there));
            }
        }
        Ok(())
    }

    /// Those that are in `from` go to `to`, in one edit.
    fn flip(&self, routes: &[String], from: Phase, to: Phase) -> Result<(), Stop> {
        self.check_interrupt()?;
        let facts = Facts::of_adopted_file(&self.client)?;
        let flipping = routes.iter().filter(|route| facts.phase(self.config, route) == Some(from));
        let changes: Vec<(String, Phase)> = flipping.map(|route| (route.clone(), to)).collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.wait_for_stores(to)?;
        let flipped: Vec<String> = changes.iter().map(|(route, _)| route.clone()).collect();
        let changed = change::change(self.config, self.path, &changes, Judgement::Stands, &self.client);
        match changed.map_err(anyhow::Error::from)? {
            Changed::Adopted(took) => self.tell(&flipped, &to.to_string(), took, "adopted"),
            Changed::Refused(reason) => return Err(Stop::Short(reason)),
            Changed::Already => {
                return Err(Stop::Short(format!(
                    "proxy.toml says {to} already, and the proxy goes by something else; `cutover status` tells"
                )));
            }
            Changed::Written => return Err(Stop::Short("the proxy went away; start it again".into())),
        }
        Ok(())
    }

    /// A flip that needs a store which does not answer would only pile up what it misses. A proxy that has just been started
    /// may not have reached it yet.
    fn wait_for_stores(&self, to: Phase) -> Result<(), Stop> {
        let deadline = Instant::now() + STORE_PATIENCE;
        while let Some(store) = Facts::read(&self.client)?.silent_store() {
            if Instant::now() >= deadline {
                return Err(Stop::Short(format!(
                    "the {store} does not answer, and a route in phase {to} needs it; `cutover check` says more"
                )));
            }
            self.check_interrupt()?;
            self.interrupt.sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn backfill(&self, routes: &[String]) -> Result<(), Stop> {
        self.walk(Kind::Backfill, "backfill", routes)
    }

    fn verify(&self, routes: &[String]) -> Result<(), Stop> {
        self.walk(Kind::Verify, "verify", routes)
    }

    /// One walk for all of the routes.
    fn walk(&self, kind: Kind, step: &str, routes: &[String]) -> Result<(), Stop> {
        self.check_interrupt()?;
        if routes.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let body = json!({ "routes": routes, "rate": self.asked.rate });
        let begun = job::begin(&self.client, kind, &body)?;
        let (mut silence, mut reason, mut looks) = (Silence::default(), None, 0);
        let ended = job::watch(&self.client, begun, &self.progress, || {
            looks += 1;
            // The whole table is large; a store is not silent for long enough in less than many looks.
            if looks % 10 == 0 {
                reason = silence.look(&Facts::read(&self.client)?);
            }
            Ok(if self.interrupt.is_asked() || reason.is_some() { Flow::Stop } else { Flow::GoOn })
        })?;
        match (ended["state"] == "running", reason) {
            (true, Some(reason)) => {
                return Err(Stop::Short(format!("{step}: {reason}; the walk goes on in the proxy and ends by itself")));
            }
            (true, None) => return Err(Stop::Interrupted),
            (false, _) => {}
        }
        let message = ended["message"].as_str().unwrap_or_default();
        if job::is_good(&ended) {
            let copied =
                if kind == Kind::Backfill { format!("{} keys copied, ", ended["copied"]) } else { String::new() };
            self.tell(routes, step, began.elapsed(), &format!("{copied}{message}"));
            if ended["matched"] == 0 && !self.as_json {
                eprintln!(
                    "{}: no key is on either store; is that how the keys have it? `cutover inventory` lists the providers",
                    names(routes)
                );
            }
            return Ok(());
        }
        let differing = job::differences(&ended);
        let few: Vec<&str> = differing.iter().take(5).map(String::as_str).collect();
        let few = if few.is_empty() { String::new() } else { format!("\n  {}", few.join("\n  ")) };
        Err(Stop::Short(format!("{step}: {message}{few}")))
    }

    fn bake(&self, routes: &[String]) -> Result<(), Stop> {
        self.check_interrupt()?;
        let length = self.asked.bake;
        if routes.is_empty() || length.is_zero() {
            return Ok(());
        }
        let began = Instant::now();
        match bake(&self.client, routes, length, self.asked.refusals, &self.progress, &self.interrupt) {
            Baked::Good(message) => self.tell(routes, "bake", began.elapsed(), &message),
            Baked::Short(reason) => return Err(Stop::Short(format!("bake: {reason}"))),
            Baked::Interrupted => return Err(Stop::Interrupted),
        }
        Ok(())
    }

    fn check_interrupt(&self) -> Result<(), Stop> {
        if self.interrupt.is_asked() { Err(Stop::Interrupted) } else { Ok(()) }
    }

    fn tell(&self, routes: &[String], step: &str, took: Duration, message: &str) {
        match self.as_json {
            true => say!(
                "{}",
                json!({ "routes": routes, "step": step, "outcome": "done", "seconds": took.as_secs_f64(), "message": message })
            ),
            false => say!("{}: {step}: {message} ({})", names(routes), time(took)),
        }
    }

    /// Says where the routes are, that it is safe there, and what comes next.
    fn stopped(&self, routes: &[String], rest: &[String], stop: Stop) -> anyhow::Result<u8> {
        let (outcome, reason) = match stop {
            Stop::Error(error) => {
                return Err(error.context(format!(
                    "migrate {}: each route is safe in its phase; run the same command again to go on",
                    names(routes)
                )));
            }
            Stop::Interrupted => {
                ("interrupted", "stopped by Ctrl-C; a walk that was begun goes on in the proxy".to_string())
            }
            Stop::Short(reason) => ("short", reason),
        };
        let facts = Facts::read(&self.client)?;
        let phases: Vec<(String, Phase)> =
            routes.iter().filter_map(|route| Some((route.clone(), facts.phase(self.config, route)?))).collect();
        if self.as_json {
            let stay: serde_json::Map<_, _> =
                phases.iter().map(|(route, phase)| (route.clone(), json!(phase))).collect();
            say!(
                "{}",
                json!({ "routes": routes, "outcome": outcome, "message": reason, "phases": stay, "not_begun": rest })
            );
            return Ok(REFUSED);
        }
        eprintln!("{} stopped: {reason}", names(routes));
        for phase in Phase::ALL {
            let there: Vec<String> =
                phases.iter().filter(|(_, at)| *at == phase).map(|(route, _)| route.clone()).collect();
            if !there.is_empty() {
                eprintln!("{} stays in phase {phase}: {}", names(&there), whats_next(phase));
            }
        }
        if !rest.is_empty() {
            eprintln!("not begun: {}", names(rest));
        }
        eprintln!("next: when the reason is gone, the same command goes on from here");
        Ok(REFUSED)
    }

    fn arrived(&self, routes: &[String], took: Duration) {
        let at = if self.asked.finish { Phase::Cluster } else { Phase::DualCluster };
        if self.as_json {
            say!("{}", json!({ "routes": routes, "outcome": "arrived", "phase": at, "seconds": took.as_secs_f64() }));
            return;
        }
        say!("{} {} through, in {}", names(routes), if routes.len() == 1 { "is" } else { "are" }, time(took));
        if !self.asked.finish {
            say!(
                "next: the cluster answers and the standalone still gets every write; `cutover rollback` undoes it, `cutover migrate --finish` ends it"
            );
        }
    }
}

fn whats_next(phase: Phase) -> &'static str {
    match phase {
        Phase::Standalone => "nothing was begun",
        Phase::DualStandalone => {
            "the standalone answers as ever; `cutover verify --repair` copies what differs, `cutover rollback` undoes the copying"
        }
        Phase::DualCluster => {
            "the cluster answers and the standalone gets every write; `cutover rollback` loses nothing"
        }
        Phase::Cluster => "it is moved",
    }
}
