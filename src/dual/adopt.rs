//! From a newly read table to the adopted one, by the steps of [`Adoption`]. Runs on the control thread, one adoption at a
//! time. A table that is refused changes nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::dual::channels::PUBLISHED;
use crate::dual::desk::Desk;
use crate::dual::history::History;
use crate::dual::install::{Adoption, Stage, Step, Which};
use crate::dual::lease::{Phases, Tables};
use crate::dual::message::{Message, Peers};
use crate::dual::state::{Naming, RouteRecord, Snapshot, StateFile};
use crate::routing::flip::{self, Closing, Flip, Jumps, Reason, RefusedFlip, RouteFacts};
use crate::routing::{ClusterKeys, Coverage, Pattern, Patterns, Phase, Route, RouteName, RoutingSpec, Side, Table};
use crate::store::Loss;

/// Why a table was not adopted: one text a refused flip, each naming the route and what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Refused(pub Vec<String>);

/// What must not change while a walk proves something of a route: that it was not flipped, and that no doubt came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    since: u64,
    generation: u32,
}

impl Mark {
    /// That of a route now; `None` without a follower.
    pub fn of(route: &Route) -> Option<Self> {
        let dual = route.dual.as_ref()?;
        Some(Self { since: route.since, generation: dual.generation() })
    }
}

/// Whether a route stays in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    Stays,
    Ends,
}

/// What an adoption did.
#[derive(Clone, Debug)]
pub struct Adopted {
    pub version: u64,
    pub flips: Vec<Flip>,
    /// From and to, if the channels changed sides.
    pub pubsub: Option<(Phase, Phase)>,
    pub took: Duration,
    /// For how long the routes that flipped were held up.
    pub paused: Duration,
}

/// Why the running table stays.
enum Unadopted {
    /// Flips of it are not allowed by what is known of their routes.
    Judged(Vec<RefusedFlip>),
    /// Something did not end, or could not be written.
    Refused(Refused),
}

impl Unadopted {
    /// Whether nothing else is in the way than what is repaired by itself: by what was judged, since it may be repaired by now.
    fn may_pass(&self) -> bool {
        let is_divergence = |refused: &RefusedFlip| matches!(refused.reason, Reason::Divergence { .. });
        matches!(self, Self::Judged(refused) if refused.iter().all(is_divergence))
    }
}

impl From<Refused> for Unadopted {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Unadopted> for Refused {
    fn from(unadopted: Unadopted) -> Self {
        match unadopted {
            Unadopted::Judged(refused) => Self(told(&refused)),
            Unadopted::Refused(refused) => refused,
        }
    }
}

/// Whose table is adopted.
enum Source<'s> {
    /// The file's, which is judged. `untouched`: flips of routes that have no key.
    File { spec: &'s RoutingSpec, untouched: Vec<Flip> },
    /// That of the proxy that holds the lease, or held it, which has judged it. `leaving`: one that it may still go by.
    Holder { leaving: Option<Arc<Table>> },
}

/// Whose eyes the holder's table is seen with.
#[derive(Clone, Copy)]
enum Heir {
    /// It knows of the routes what the holder does.
    Follower,
    /// It knows what the former holder did, and what it has found out itself.
    Successor(Doubt),
}

/// Why the holder's table is not this proxy's.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unfollowed {
    /// What is in flight did not end in time, or the disk refuses.
    #[error(transparent)]
    NotNow(#[from] Refused),
    /// Its keys have other names on the cluster, or providers are found in other ways.
    #[error("{0}")]
    Otherwise(String),
}

/// See the module.
pub struct Adopter {
    table: Arc<ArcSwap<Table>>,
    peers: Peers,
    /// Written on a thread of its own: the disk may take seconds, and this one answers the admin side.
    state: Arc<Mutex<StateFile>>,
    /// Guards an adoption, and what a walk has found out, as a whole: a second one waits. Held across the drain, by nobody on
    /// the byte path.
    turn: tokio::sync::Mutex<()>,
    /// How long a flip waits.
    flip_timeout: Mutex<Duration>,
    loss: Arc<Loss>,
    desk: Arc<Desk>,
    refused: Mutex<Option<String>>,
    history: History,
    /// How many files were adopted or refused, and in the lower half the CRC-32 of the newest of them, so that whoever wrote
    /// it can tell.
    considered: AtomicU64,
}

impl Adopter {
    /// `table` is the one that the workers were started with.
    pub fn new(
        table: Arc<ArcSwap<Table>>,
        peers: Peers,
        state: StateFile,
        flip_timeout: Duration,
        loss: Arc<Loss>,
        desk: Arc<Desk>,
    ) -> Self {
        Self {
            table,
            peers,
            state: Arc::new(Mutex::new(state)),
            turn: tokio::sync::Mutex::new(()),
            flip_timeout: Mutex::new(flip_timeout),
            loss,
            desk,
            refused: Mutex::new(None),
            history: History::default(),
            considered: AtomicU64::new(0),
        }
    }

    /// How many files were adopted or refused, and the CRC-32 of the newest; 0 before the first.
    pub fn considered(&self) -> (u32, u32) {
        let considered = self.considered.load(Ordering::Acquire);
        ((considered >> 32) as u32, considered as u32)
    }

    fn consider(&self, file_crc: u32) {
        let number = u64::from(self.considered().0.wrapping_add(1));
        self.considered.store(number << 32 | u64::from(file_crc), Ordering::Release);
    }

    fn flip_timeout(&self) -> Duration {
        *self.flip_timeout.lock()
    }

    /// How long the next flip waits for repairs, and for what is in flight.
    pub fn set_flip_timeout(&self, flip_timeout: Duration) {
        *self.flip_timeout.lock() = flip_timeout;
    }

    /// The adopted table.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Why the newest file was refused, if it was.
    pub fn refused(&self) -> Option<String> {
        self.refused.lock().clone()
    }

    /// The last flips and refusals.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Notes that the newest file could not even be read.
    pub fn note_refusal(&self, reason: String, file_crc: u32) {
        self.history.refused(self.table().version(), &reason);
        *self.refused.lock() = Some(reason);
        self.consider(file_crc);
    }

    /// Adopts a table, or says why not. `file_crc`: of the file it was read from. `find`: which flips of a key that is there,
    /// on either store, would make; or why that cannot be told.
    pub async fn propose(
        &self,
        spec: &RoutingSpec,
        file_crc: u32,
        find: impl AsyncFn(&Jumps) -> Result<Vec<Flip>, String>,
    ) -> Result<Adopted, Refused> {
        let outcome = self.judge_file(spec, find).await;
        match &outcome {
            Ok(adopted) => self.history.flipped(adopted),
            Err(refused) => self.history.refused(self.table().version(), &refused.to_string()),
        }
        *self.refused.lock() = outcome.as_ref().err().map(ToString::to_string);
        self.consider(file_crc);
        match &outcome {
            Ok(adopted) => {
                for flip in &adopted.flips {
                    tracing::info!(route = %flip.route, from = %flip.from, to = %flip.to, version = adopted.version, paused_ms = %format_args!("{:.1}", adopted.paused.as_secs_f64() * 1e3), "flipped");
                }
            }
            Err(refused) => tracing::error!(reason = %refused, "the new table is refused; the running one stays"),
        }
        outcome
    }

    /// Who holds the lease of the dual routes.
    pub fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    async fn judge_file(
        &self,
        spec: &RoutingSpec,
        find: impl AsyncFn(&Jumps) -> Result<Vec<Flip>, String>,
    ) -> Result<Adopted, Refused> {
        let _turn = self.turn.lock().await;
        let old = self.table.load_full();
        self.note_loss_in(&[&old]).await;
        let new = Arc::new(Table::build(spec, old.version() + 1, Some(&old)));
        if let Some(reason) = renames(&old, &new).or_else(|| flip::mixed(&old, &new)) {
            return Err(Refused(vec![reason]));
        }
        let flips = flip::flips(&old, &new);
        if let Some(holder) = self.desk.followed() {
            self.compare(&flips, &old, &new, &holder)?;
            let source = Source::File { spec, untouched: Vec::new() };
            return self.adopt((&old, &new), flips, source).await.map_err(Refused::from);
        }
        let forced = |route: &RouteName| spec.is_forced(route);
        let jumps = Jumps::of(&old, &new, &flips, forced);
        let deadline = Instant::now() + self.flip_timeout();
        // Whatever else is refused is known sooner.
        self.wait_for_repairs(&old, &flips, jumps.flips(), forced, deadline).await?;
        let is_dual = |table: &Table| table.routes().iter().any(|route| route.dual.is_some());
        if is_dual(&old) || is_dual(&new) {
            let announced = self.desk.announce(phases_of(&old), phases_of(&new), self.flip_timeout()).await;
            if let Err(reason) = announced {
                self.desk.settle();
                return Err(Refused(vec![reason]));
            }
        }
        let adopted = loop {
            let untouched = self.untouched(&jumps, &find).await;
            let adopted = match flip::judge(&flips, facts_of(&old, &untouched), forced) {
                Ok(()) => self.adopt((&old, &new), flips.clone(), Source::File { spec, untouched }).await,
                Err(refused) => {
                    // What was looked through is closed.
                    self.open();
                    Err(Unadopted::Judged(refused))
                }
            };
            match adopted {
                // Keys came to differ since the judgement before. Everything is open again, so that they are repaired.
                Err(unadopted) if unadopted.may_pass() && Instant::now() < deadline => {
                    if let Err(refused) = self.wait_for_repairs(&old, &flips, jumps.flips(), forced, deadline).await {
                        break Err(refused);
                    }
                }
                adopted => break adopted.map_err(Refused::from),
            }
        };
        self.desk.settle();
        adopted
    }

    /// The phases are the holder's, whatever this proxy's file says: what differs there is told.
    fn compare(&self, flips: &[Flip], old: &Table, new: &Table, holder: &str) -> Result<(), Refused> {
        let differs = |flip: &Flip| format!("{} is {} there and {} here", flip.route, flip.from, flip.to);
        let mut all: Vec<String> = flips.iter().map(differs).collect();
        if old.pubsub().leader() != new.pubsub().leader() {
            all.push(format!("pubsub is {} there and {} here", old.pubsub(), new.pubsub()));
        }
        self.desk.set_differs(all.clone());
        if all.is_empty() {
            return Ok(());
        }
        Err(Refused(vec![format!(
            "the proxy at {holder} holds the lease of the dual routes, so this one goes by its phases, and its proxy.toml says otherwise: {}; change both files",
            named(&all)
        )]))
    }

    /// Takes the phases of the proxy that holds the lease: where it is about to flip, those that it will have.
    pub async fn follow(&self, tables: &Tables) -> Result<(), Unfollowed> {
        let _turn = self.turn.lock().await;
        let old = self.table.load_full();
        let target = tables.next.as_ref().unwrap_or(&tables.now);
        let leaving = tables.next.as_ref().map(|_| Arc::new(table_of(&tables.now, &old, None)));
        self.take_over(&old, target, leaving, Heir::Follower).await
    }

    /// Whether the running table has the phases that another proxy tells of.
    pub fn has_phases(&self, phases: &Phases) -> bool {
        let own = self.table();
        flip::flips(&own, &table_of(phases, &own, None)).is_empty()
    }

    /// Takes the phases that a former holder left.
    pub async fn succeed(&self, tables: &Tables, doubt: Doubt) -> Result<(), Unfollowed> {
        let _turn = self.turn.lock().await;
        let old = self.table.load_full();
        self.take_over(&old, tables.valid(), None, Heir::Successor(doubt)).await
    }

    async fn take_over(
        &self,
        old: &Arc<Table>,
        phases: &Phases,
        leaving: Option<Arc<Table>>,
        heir: Heir,
    ) -> Result<(), Unfollowed> {
        let named = |naming: &Naming| naming == &naming_of(old);
        if !phases.snapshot.naming.as_ref().is_some_and(named) {
            let what = "routing.keys, routing.cluster_keys or [databases] differ from the holder's, so that keys would be looked for by other names; make both files say the same, and start this proxy again";
            return Err(Unfollowed::Otherwise(what.into()));
        }
        let new = Arc::new(table_of(phases, old, Some(old)));
        for record in &phases.snapshot.routes {
            let Some(dual) = new.find(&record.route).and_then(|route| route.dual.as_ref()) else { continue };
            dual.set_coverage(record.coverage.unwrap_or(Coverage::StandaloneOnly));
            // What the lanes knew of single keys counts no longer: another proxy has written to them.
            let stays = match heir {
                Heir::Follower => false,
                Heir::Successor(doubt) => doubt == Doubt::Stays || dual.is_in_doubt(),
            };
            dual.set_in_doubt(true);
            dual.set_in_doubt(record.in_doubt || stays);
        }
        let flips = flip::flips(old, &new);
        let has_flipped = !flips.is_empty() || old.pubsub().leader() != new.pubsub().leader();
        let has_line = |route: &Route| old.find(&route.name).is_some_and(|known| known.phase == route.phase);
        let is_same = !has_flipped && old.routes().len() == new.routes().len() && new.routes().iter().all(has_line);
        if is_same && leaving.is_none() && self.desk.leaving.load().is_none() {
            // Only what is known of the routes is news, and both tables share it.
            return self.save(old, false).await.map_err(|error| unwritten(&error).into());
        }
        self.adopt((old, &new), flips, Source::Holder { leaving }).await.map_err(Refused::from)?;
        if has_flipped {
            self.desk.changed.notify_one();
        }
        Ok(())
    }

    /// Goes from one table to the other.
    async fn adopt(
        &self,
        (old, new): (&Arc<Table>, &Arc<Table>),
        flips: Vec<Flip>,
        source: Source<'_>,
    ) -> Result<Adopted, Unadopted> {
        let began = Instant::now();
        let forced = |route: &RouteName| match &source {
            Source::File { spec, .. } => spec.is_forced(route),
            Source::Holder { .. } => true,
        };
        let untouched: &[Flip] = match &source {
            Source::File { untouched, .. } => untouched,
            Source::Holder { .. } => &[],
        };
        // What went to the holder while it left a table stays in its order when it comes back.
        let left = self.desk.leaving.load_full().map(|leaving| flip::flips(&leaving, new)).unwrap_or_default();
        let turns = old.pubsub().leader() != new.pubsub().leader();
        let closed: Vec<Flip> = flips.iter().cloned().chain(flip::unlearnt(old, new)).chain(left).collect();
        let mut adoption = Adoption::begin(!closed.is_empty(), turns);
        let table = |which| if which == Which::Old { old } else { new };
        let (mut refused, mut took, mut paused) = (None, Duration::ZERO, Duration::ZERO);
        // What was looked through is closed already.
        let mut closing = (!untouched.is_empty()).then(Instant::now);
        loop {
            let outcome = match adoption.step() {
                Step::Close(stage) => {
                    closing.get_or_insert_with(Instant::now);
                    self.close(stage, &closed, turns).await.map_err(Unadopted::from)
                }
                Step::Turn(which) => self.turn(table(which).pubsub().leader()).await.map_err(Unadopted::from),
                Step::Judge => {
                    self.note_loss_in(&[old, new]).await;
                    flip::judge(&flips, facts_of(old, untouched), forced).map_err(Unadopted::Judged)
                }
                Step::Prepare => {
                    begin_phases(&flips, new, |route| self.state.lock().has_stale_cluster_keys(route));
                    let draft = snapshot_of(new, false);
                    self.on_disk(move |state| state.prepare(&draft)).await.map_err(|error| unwritten(&error).into())
                }
                Step::Commit => {
                    let decided = snapshot_of(new, false);
                    match self.commit_lease(&flips).await {
                        Ok(()) => {
                            let written = self.on_disk(move |state| state.commit(&decided)).await;
                            written.map_err(|error| unwritten(&error).into())
                        }
                        Err(refused) => Err(refused.into()),
                    }
                }
                Step::Install(which) => self.install(table(which)).await.map_err(Unadopted::from),
                Step::Open(which) => {
                    self.table.store(table(which).clone());
                    if let (Source::Holder { leaving }, Which::New) = (&source, which) {
                        self.desk.leaving.store(leaving.clone());
                    }
                    self.open();
                    paused = closing.map_or(Duration::ZERO, |began| began.elapsed());
                    Ok(())
                }
                Step::Settle => {
                    took = began.elapsed();
                    if let Err(error) = self.on_disk(StateFile::settle).await {
                        tracing::warn!(%error, "write state file: the new table stands in one file instead of two until the next change; free the disk or mend the directory");
                    }
                    Ok(())
                }
                Step::Over(Which::New) => break,
                Step::Over(Which::Old) => {
                    return Err(refused.unwrap_or_else(|| Refused(vec!["the adoption was given up".into()]).into()));
                }
            };
            adoption.done(outcome.is_ok());
            // The first reason is the one that counts.
            refused = refused.or(outcome.err());
        }
        if turns {
            let (from, to) = (old.pubsub().leader(), new.pubsub().leader());
            tracing::info!(%from, %to, version = new.version(), "channels flipped");
        }
        let pubsub = turns.then(|| (old.pubsub(), new.pubsub()));
        Ok(Adopted { version: new.version(), flips, pubsub, took, paused })
    }

    /// Judges while nothing is closed; open divergence gets until `deadline` to be repaired.
    async fn wait_for_repairs(
        &self,
        old: &Table,
        flips: &[Flip],
        untouched: &[Flip],
        forced: impl Fn(&RouteName) -> bool + Copy,
        deadline: Instant,
    ) -> Result<(), Refused> {
        loop {
            let Err(refused) = flip::judge(flips, facts_of(old, untouched), forced) else { return Ok(()) };
            let unadopted = Unadopted::Judged(refused);
            if !unadopted.may_pass() || Instant::now() >= deadline {
                return Err(unadopted.into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Those of the jumps of which no key is there. They are closed while that is looked for, and stay closed; a request for
    /// one of them ends the search, and waits for no more than that.
    async fn untouched(&self, jumps: &Jumps, find: impl AsyncFn(&Jumps) -> Result<Vec<Flip>, String>) -> Vec<Flip> {
        if jumps.flips().is_empty() {
            return Vec::new();
        }
        let Closing { hashes, is_many } = flip::closing(jumps.flips());
        let asked_for = Arc::new(tokio::sync::Notify::new());
        let watch =
            |drained| Message::Watch { routes: hashes.clone(), all: is_many, asked_for: asked_for.clone(), drained };
        let search = async {
            self.ask_all(watch).await.map_err(|TimedOut| "what is in flight for them does not end".to_string())?;
            find(jumps).await
        };
        let found = tokio::select! {
            found = tokio::time::timeout(self.flip_timeout(), search) => {
                found.unwrap_or_else(|_| Err(format!("the stores could not be looked through within flip_timeout ({:?})", self.flip_timeout())))
            }
            () = asked_for.notified() => Err("one of them was asked for meanwhile".into()),
        };
        match found {
            Ok(found) => {
                let free: Vec<Flip> = jumps.flips().iter().filter(|flip| !found.contains(flip)).cloned().collect();
                if !found.is_empty() {
                    self.open();
                }
                free
            }
            Err(reason) => {
                self.open();
                tracing::warn!(routes = jumps.flips().len(), %reason, "whether the routes that would go past a neighbouring phase have keys cannot be told, so they may not; save the file again when both stores answer");
                Vec::new()
            }
        }
    }

    /// Closes a gate for the flipping routes on every worker and waits until nothing of them is in flight behind it.
    async fn close(&self, stage: Stage, flips: &[Flip], turns: bool) -> Result<(), Refused> {
        let Closing { mut hashes, is_many: all } = flip::closing(flips);
        hashes.extend(turns.then_some(PUBLISHED));
        let close = |drained| Message::Close { stage, routes: hashes.clone(), all, drained };
        self.ask_all(close).await.map_err(|TimedOut| {
            let routes = flips.iter().map(|flip| flip.route.to_string()).collect::<Vec<_>>().join(", ");
            Refused(vec![format!(
                "what is in flight for {routes} did not end within flip_timeout ({:?}); see which store is slow with `cutover status`, then save proxy.toml again",
                self.flip_timeout()
            )])
        })
    }

    /// Asks every worker, and waits until all have answered, but not too long.
    async fn ask_all(&self, message: impl Fn(oneshot::Sender<()>) -> Message) -> Result<(), TimedOut> {
        let ask = |worker: usize| {
            let (answered, wait) = oneshot::channel();
            self.peers.send(worker, message(answered));
            wait
        };
        let waits: Vec<_> = (0..self.peers.0.len()).map(ask).collect();
        let deadline = tokio::time::Instant::now() + self.flip_timeout();
        for wait in waits {
            if !matches!(tokio::time::timeout_at(deadline, wait).await, Ok(Ok(()))) {
                return Err(TimedOut);
            }
        }
        Ok(())
    }

    /// Has every subscriber on a side.
    async fn turn(&self, side: Side) -> Result<(), Refused> {
        self.ask_all(|done| Message::Turn { side, done }).await.map_err(|TimedOut| {
            Refused(vec![format!(
                "pubsub cannot go to the {side}: not every subscriber could subscribe there within flip_timeout ({:?}); see that it answers, then save proxy.toml again",
                self.flip_timeout()
            )])
        })
    }

    /// Has every worker take a table, however long one of them is busy: there is no way back from here that would be shorter.
    async fn install(&self, table: &Arc<Table>) -> Result<(), Refused> {
        let give = |worker: usize| {
            let (done, wait) = oneshot::channel();
            self.peers.send(worker, Message::Install { table: table.clone(), done });
            wait
        };
        let waits: Vec<_> = (0..self.peers.0.len()).map(give).collect();
        for wait in waits {
            // A worker that has ended has no lane that anybody could come to.
            let _ = wait.await;
        }
        Ok(())
    }

    fn open(&self) {
        for worker in 0..self.peers.0.len() {
            self.peers.send(worker, Message::Open);
        }
    }

    /// Has the flips count for whoever holds the lease next. Everything of their routes is drained: either table is right.
    async fn commit_lease(&self, flips: &[Flip]) -> Result<(), Refused> {
        if self.desk.fence.remaining().is_none() || flips.is_empty() {
            return Ok(());
        }
        let committed = tokio::time::timeout(self.flip_timeout(), self.desk.commit()).await;
        committed
            .unwrap_or_else(|_| Err("neither store took the record of the lease in time".into()))
            .map_err(|reason| Refused(vec![format!("{reason}; save proxy.toml again")]))
    }

    /// Puts every dual route in doubt if a store may have lost something since this was asked last.
    pub async fn note_loss(&self) {
        let _turn = self.turn.lock().await;
        self.note_loss_in(&[&self.table.load_full()]).await;
    }

    /// Puts every dual route in doubt, whatever was known of it.
    pub async fn doubt_all(&self) {
        let _turn = self.turn.lock().await;
        self.doubt_in(&[&self.table.load_full()], |_| true).await;
    }

    /// Puts some dual routes in doubt.
    pub async fn doubt(&self, routes: &[RouteName]) {
        let _turn = self.turn.lock().await;
        self.doubt_in(&[&self.table.load_full()], |route| routes.contains(&route.name)).await;
    }

    /// The first of the tables is the running one.
    async fn note_loss_in(&self, tables: &[&Table]) {
        if self.loss.take() && self.doubt_in(tables, |_| true).await > 0 {
            tracing::warn!("what a store may have lost is copied again: a backfill of every dual route begins now");
        }
    }

    /// Gives how many routes are concerned.
    async fn doubt_in(&self, tables: &[&Table], is_in: impl Fn(&Route) -> bool) -> usize {
        let duals = |table: &Table| {
            let routes = table.routes().iter().filter(|route| is_in(route));
            routes.filter_map(|route| route.dual.clone()).collect::<Vec<_>>()
        };
        let is_news = duals(tables[0]).iter().any(|dual| !dual.is_in_doubt());
        tables.iter().flat_map(|table| duals(table)).for_each(|dual| dual.set_in_doubt(true));
        let routes = duals(tables[0]).len();
        if is_news {
            let all = tables[0].routes().iter().filter(|route| route.dual.is_some()).count();
            match routes == all {
                true => tracing::warn!(routes, "every dual route is in doubt until a backfill has gone through it"),
                false => tracing::warn!(routes, "these routes are in doubt until a backfill has gone through them"),
            }
            if let Err(error) = self.save(tables[0], false).await {
                tracing::error!(%error, "write state file: the doubt is remembered by this run only; an unclean end puts the routes in doubt all the same");
            }
        }
        routes
    }

    /// Writes the state file; `clean` at a regular end only.
    pub async fn save(&self, table: &Table, clean: bool) -> std::io::Result<()> {
        self.write(snapshot_of(table, clean)).await
    }

    async fn write(&self, snapshot: Snapshot) -> std::io::Result<()> {
        self.on_disk(move |state| state.save(&snapshot)).await
    }

    async fn on_disk(
        &self,
        write: impl FnOnce(&mut StateFile) -> std::io::Result<()> + Send + 'static,
    ) -> std::io::Result<()> {
        let state = self.state.clone();
        tokio::task::spawn_blocking(move || write(&mut state.lock())).await.map_err(std::io::Error::other)?
    }

    /// Notes what a whole walk has found out about routes that are still as they were marked; gives the others. It is on disk
    /// before it counts: were it the other way round, a crash could bring back the mode in which keys are fetched from a
    /// follower that has missed deletions since. One writing for all of them, because a walk over a thousand providers would
    /// else sync a thousand files.
    pub async fn set_knowledge(
        &self,
        marks: &HashMap<RouteName, Mark>,
        coverage: Coverage,
        doubt: Doubt,
    ) -> std::io::Result<Vec<RouteName>> {
        // Not beside an adoption: the state file would get the table that is about to go.
        let _turn = self.turn.lock().await;
        let table = self.table.load_full();
        let is_as_marked = |route: &&Route| Mark::of(route).is_some_and(|mark| marks.get(&route.name) == Some(&mark));
        let found: Vec<&Route> = table.routes().iter().filter(is_as_marked).collect();
        let names: HashSet<&RouteName> = found.iter().map(|route| &route.name).collect();
        let mut snapshot = snapshot_of(&table, false);
        for record in snapshot.routes.iter_mut().filter(|record| names.contains(&record.route)) {
            record.coverage = Some(coverage);
            record.in_doubt = doubt == Doubt::Stays;
        }
        self.write(snapshot).await?;
        found.iter().for_each(|route| learn(&table, route, coverage, doubt));
        Ok(marks.keys().filter(|name| !names.contains(name)).cloned().collect())
    }
}

/// What a walk has found out about a route counts from now on.
pub fn learn(table: &Table, route: &Route, coverage: Coverage, doubt: Doubt) {
    table.set_coverage(route, coverage);
    if let Some(dual) = &route.dual
        && dual.is_in_doubt() != (doubt == Doubt::Stays)
    {
        dual.set_in_doubt(doubt == Doubt::Stays);
    }
}

/// The first of many, and how many more there are.
fn named(all: &[String]) -> String {
    const NAMED_MAX: usize = 8;
    let first = all[..all.len().min(NAMED_MAX)].join(", ");
    match all.len().saturating_sub(NAMED_MAX) {
        0 => first,
        more => format!("{first}, and {more} more"),
    }
}

fn unwritten(error: &std::io::Error) -> Refused {
    Refused(vec![format!(
        "the state file cannot be written ({error}), and a flip that a crash forgets could lose data; free the disk or mend the directory and save proxy.toml again"
    )])
}

/// A worker did not answer in time.
struct TimedOut;

/// What a new phase begins with. A route that was on the cluster before may have left stale keys there, which only a whole
/// backfill finds: it is in doubt until then.
pub fn begin_phases(flips: &[Flip], new: &Table, is_stale: impl Fn(&RouteName) -> bool) {
    for flip in flips.iter().filter(|flip| flip.from == Phase::Standalone && is_stale(&flip.route)) {
        let Some(dual) = new.find(&flip.after).and_then(|route| route.dual.clone()) else { continue };
        tracing::warn!(route = %flip.route, "the cluster may hold old keys of this route; it is in doubt until `cutover backfill` has gone through it");
        dual.set_in_doubt(true);
    }
}

/// What the state file remembers of a table. Routes in phase `standalone` are left out where nothing could cover them
/// that is not, so that a large table makes a small file.
pub fn snapshot_of(table: &Table, clean: bool) -> Snapshot {
    let covers_many = |route: &Route| !matches!(route.name, RouteName::Provider(_)) && route.phase != Phase::Standalone;
    let needs_all = table.routes().iter().any(covers_many);
    let routes = table.routes().iter().filter(|route| needs_all || route.phase != Phase::Standalone);
    let records = routes.map(|route| RouteRecord {
        route: route.name.clone(),
        phase: route.phase,
        coverage: route.dual.as_ref().map(|dual| dual.coverage()),
        // Diverged keys of a mirrored route are known to this run only.
        in_doubt: route.dual.as_ref().is_some_and(|dual| dual.is_in_doubt() || dual.divergence() > 0),
    });
    Snapshot { version: table.version(), clean, routes: records.collect(), naming: Some(naming_of(table)) }
}

fn naming_of(table: &Table) -> Naming {
    Naming {
        cluster_keys: table.cluster_keys(),
        keys: table.patterns().0.iter().map(ToString::to_string).collect(),
        databases: Some(table.databases().clone()),
    }
}

/// A table as other proxies of its lease are told of it.
pub fn phases_of(table: &Table) -> Phases {
    Phases { snapshot: snapshot_of(table, true), pubsub: table.pubsub() }
}

/// The table that another proxy tells of, beside one of this proxy's.
fn table_of(phases: &Phases, own: &Table, previous: Option<&Table>) -> Table {
    let spec = RoutingSpec {
        keys: own.patterns().clone(),
        new_providers: Phase::Standalone,
        other_keys: Phase::Standalone,
        pubsub: phases.pubsub,
        ack: own.ack(),
        cluster_keys: own.cluster_keys(),
        databases: own.databases().clone(),
        prefixes: Vec::new(),
        providers: Vec::new(),
        ranges: Vec::new(),
        share: Vec::new(),
        force: Vec::new(),
    };
    Table::build(&with_routes(spec, &phases.snapshot), own.version() + 1, previous)
}

/// The same with the routes that are remembered.
fn with_routes(mut spec: RoutingSpec, snapshot: &Snapshot) -> RoutingSpec {
    for record in &snapshot.routes {
        match &record.route {
            RouteName::Provider(id) => spec.providers.push((id.clone(), record.phase)),
            RouteName::Prefix(prefix) => spec.prefixes.push((prefix.clone(), record.phase)),
            RouteName::Range(first, last) => spec.ranges.push((*first, *last, record.phase)),
            RouteName::NewProviders => spec.new_providers = record.phase,
            RouteName::Share(share) => spec.share.push((*share, record.phase)),
            RouteName::OtherKeys => spec.other_keys = record.phase,
        }
    }
    spec
}

/// The table that a state file remembers, with what was known of its dual routes. What is not remembered, because nothing
/// depends on it, is taken from `spec`.
pub fn remembered(snapshot: &Snapshot, spec: &RoutingSpec) -> Table {
    let mut old = RoutingSpec {
        prefixes: Vec::new(),
        providers: Vec::new(),
        ranges: Vec::new(),
        share: Vec::new(),
        ..spec.clone()
    };
    (old.new_providers, old.other_keys) = (Phase::Standalone, Phase::Standalone);
    if let Some(naming) = &snapshot.naming {
        old.cluster_keys = naming.cluster_keys;
        old.databases = naming.databases.clone().unwrap_or(old.databases);
        // What could be read once can be read again; a pattern of another version is one that finds nothing.
        old.keys = Patterns(naming.keys.iter().filter_map(|text| Pattern::parse(text).ok()).collect());
    }
    let table = Table::build(&with_routes(old, snapshot), snapshot.version, None);
    for record in &snapshot.routes {
        let Some(dual) = table.find(&record.route).and_then(|route| route.dual.as_ref()) else { continue };
        dual.set_coverage(record.coverage.unwrap_or(Coverage::StandaloneOnly));
        // Effects that had not reached the follower when the program was killed are known to nobody.
        dual.set_in_doubt(record.in_doubt || !snapshot.clean);
    }
    table
}

/// The table to start with: the file's, judged as flips against what the state file remembers; where they are not
/// allowed, the remembered one, and why. `is_stale`: whether the cluster may hold old keys of a route.
pub fn first_table(
    snapshot: Option<&Snapshot>,
    is_stale: impl Fn(&RouteName) -> bool,
    spec: &RoutingSpec,
) -> (Table, Option<Refused>) {
    let Some(snapshot) = snapshot else { return (Table::build(spec, 1, None), None) };
    let old = remembered(snapshot, spec);
    let new = Table::build(spec, snapshot.version + 1, Some(&old));
    if let Some(reason) = renames(&old, &new).or_else(|| flip::mixed(&old, &new)) {
        return (old, Some(Refused(vec![reason])));
    }
    let flips = flip::flips(&old, &new);
    match judge(&flips, &old, &[], |route| spec.is_forced(route)) {
        Ok(()) => {
            begin_phases(&flips, &new, is_stale);
            (new, None)
        }
        Err(refused) => (old, Some(refused)),
    }
}

/// Why a table cannot be adopted although no route flips: keys that are on the cluster would be looked for by other names.
fn renames(old: &Table, new: &Table) -> Option<String> {
    if old.routes().iter().all(|route| route.phase == Phase::Standalone) {
        return None;
    }
    if old.cluster_keys() != new.cluster_keys() {
        return Some("cluster_keys cannot be changed while any route has keys on the cluster, where they would be looked for by other names; put it back, or first bring every route to phase standalone".into());
    }
    let (before, after) = (old.databases(), new.databases());
    if before.main != after.main {
        return Some(format!(
            "database {} is the one that moves, and any route has keys of it on the cluster; put it back into the standalone's URL, or first bring every route to phase standalone",
            before.main
        ));
    }
    if before.prefixes != after.prefixes {
        return Some("[databases] cannot be changed while any route has keys on the cluster: the keys of a database that is added are not there yet, and those of one that is removed or renamed would not be found; put it back, or first bring every route to phase standalone".into());
    }
    (old.cluster_keys() == ClusterKeys::Tagged && old.patterns() != new.patterns()).then(|| {
        "routing.keys cannot be changed with cluster_keys = \"tagged\" while any route has keys on the cluster: the provider that the patterns find in a key is part of its name there; put them back".into()
    })
}

/// Judges flips by what is known of the running table. `untouched`: those of which no key is there.
pub fn judge(
    flips: &[Flip],
    old: &Table,
    untouched: &[Flip],
    forced: impl Fn(&RouteName) -> bool,
) -> Result<(), Refused> {
    flip::judge(flips, facts_of(old, untouched), forced).map_err(|refused| Refused(told(&refused)))
}

fn facts_of(old: &Table, untouched: &[Flip]) -> impl Fn(&Flip) -> RouteFacts {
    |flip| RouteFacts { untouched: untouched.contains(flip), ..facts(old, &flip.before) }
}

/// A text each; parts of the share that are refused for the same reason have one together.
fn told(refused: &[RefusedFlip]) -> Vec<String> {
    let (parts, others): (Vec<_>, Vec<_>) =
        refused.iter().partition(|refused| matches!(refused.flip.route, RouteName::Share(_)));
    let mut alike: Vec<(&RefusedFlip, usize)> = Vec::new();
    let kind = |refused: &RefusedFlip| (refused.flip.from, refused.flip.to, std::mem::discriminant(&refused.reason));
    for part in parts {
        match alike.iter_mut().find(|(first, _)| kind(first) == kind(part)) {
            Some((_, more)) => *more += 1,
            None => alike.push((part, 0)),
        }
    }
    let of_parts = alike.into_iter().map(|(first, more)| match more {
        0 => first.to_string(),
        more => format!("{first} (and {more} more parts of the share)"),
    });
    others.into_iter().map(ToString::to_string).chain(of_parts).collect()
}

/// What is known of a route, by its own line or the one that covers it.
pub fn facts(table: &Table, route: &RouteName) -> RouteFacts {
    let dual = table.covering(route).and_then(|route| route.dual.clone());
    RouteFacts {
        coverage: dual.as_ref().map(|dual| dual.coverage()),
        divergence: dual.as_ref().map_or(0, |dual| dual.divergence()),
        in_doubt: dual.as_ref().is_some_and(|dual| dual.is_in_doubt()),
        ..RouteFacts::default()
    }
}
