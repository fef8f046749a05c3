//! From a newly read table to the adopted one, by the steps of [`Adoption`]. Runs on the control thread, one adoption at a
//! time. A table that is refused changes nothing.

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
use crate::dual::message::{Message, Peers};
use crate::dual::remembered::{begin_phases, phases_of, snapshot_of};
use crate::dual::state::{Snapshot, StateFile};
use crate::dual::verdict::{Refused, Unadopted, facts_of, renames, unwritten};
use crate::routing::flip::{self, Closing, Flip, Jumps};
use crate::routing::{Phase, RouteName, RoutingSpec, Side, Table};
use crate::store::Loss;

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

/// Whose table is adopted.
pub(super) enum Source<'s> {
    /// The file's, which is judged. `untouched`: flips of routes that have no key.
    File { spec: &'s RoutingSpec, untouched: Vec<Flip> },
    /// That of the proxy that holds the lease, or held it, which has judged it. `leaving`: one that it may still go by.
    Holder { leaving: Option<Arc<Table>> },
}

/// See the module.
pub struct Adopter {
    pub(super) table: Arc<ArcSwap<Table>>,
    peers: Peers,
    /// Written on a thread of its own: the disk may take seconds, and this one answers the admin side.
    state: Arc<Mutex<StateFile>>,
    /// Guards an adoption, and what a walk has found out, as a whole: a second one waits. Held across the drain, by nobody on
    /// the byte path.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// How long a flip waits.
    flip_timeout: Mutex<Duration>,
    pub(super) loss: Arc<Loss>,
    pub(super) desk: Arc<Desk>,
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

    /// Goes from one table to the other.
    pub(super) async fn adopt(
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

    /// Writes the state file; `clean` at a regular end only.
    pub async fn save(&self, table: &Table, clean: bool) -> std::io::Result<()> {
        self.write(snapshot_of(table, clean)).await
    }

    pub(super) async fn write(&self, snapshot: Snapshot) -> std::io::Result<()> {
        self.on_disk(move |state| state.save(&snapshot)).await
    }

    async fn on_disk(
        &self,
        write: impl FnOnce(&mut StateFile) -> std::io::Result<()> + Send + 'static,
    ) -> std::io::Result<()> {
        let state = self.state.clone();
        tokio::task::spawn_blocking(move || write(&mut state.lock())).await.map_err(std::io::Error::other)?
    }
}

/// A worker did not answer in time.
struct TimedOut;
