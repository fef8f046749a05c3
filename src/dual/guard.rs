//! A command that runs outside of the lanes: a transaction, a script, a blocking pop, a command with keys in several lanes.
//!
//! It runs on the leader between [`Engine::begin`] and [`Guard::finish`]; afterwards each key that it may have changed is
//! resynced through its lane. Where keys may be fetched from the follower, its own are held meanwhile.

use tokio::sync::oneshot;

use crate::dual::engine::Engine;
use crate::dual::gate::Ticket;
use crate::dual::lane::{Mode, Outcome};
use crate::dual::message::{Message, Way};
use crate::resp::refusal::Refusal;
use crate::routing::{Key, Plan, RouteName};

/// Whether keys that may be fetched are kept from others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Yes,
    No,
}

/// A command that runs outside of the lanes; see [`Engine::begin`].
pub struct Guard {
    engine: Engine,
    tickets: Vec<Ticket>,
    /// The plan of each key, in the order given to [`Engine::begin`].
    pub plans: Vec<Plan>,
    /// Copied in their lanes' time.
    resync: Vec<Key>,
    /// Strict keys that others may use meanwhile: copied, or in the journal, before the client hears of it.
    shared: Vec<Key>,
    /// Those of them that were brought over for this command, and are given back.
    lent: Vec<Key>,
    held: Vec<Key>,
    over: bool,
}

impl Guard {
    /// Ends the command. `Done` and `Doubt`: its keys may have changed and are copied; those of strict modes before
    /// this returns, the others in their lanes' time.
    pub async fn finish(mut self, outcome: Outcome) {
        self.note_written(outcome);
        let (shared, lent) = (std::mem::take(&mut self.shared), std::mem::take(&mut self.lent));
        for wait in self.end(outcome) {
            // A holder's keys are copied or in the journal when this comes.
            let _ = wait.await;
        }
        let peers = &self.engine.0.peers;
        let ask = |key: &Key, message: &dyn Fn(Key, oneshot::Sender<Result<(), Refusal>>) -> Message| {
            let (done, ended) = oneshot::channel();
            peers.send(peers.lane_of(&key.name), message(key.clone(), done));
            (key.clone(), ended)
        };
        let give_back = |key, done| Message::Return { key, outcome, done: Some(done) };
        let mut copies: Vec<_> = lent.iter().map(|key| ask(key, &give_back)).collect();
        if outcome != Outcome::Refused {
            let resync = |key, done| Message::Resync { key, way: Way::Whole, done: Some(done) };
            copies.extend(shared.iter().map(|key| ask(key, &resync)));
            for (key, ended) in copies {
                if !matches!(ended.await, Ok(Ok(()))) {
                    self.engine.journaled(key).await;
                }
            }
        }
        self.leave();
    }

    /// Its keys may have changed, and were not by anybody else.
    fn note_written(&self, outcome: Outcome) {
        if outcome == Outcome::Refused {
            return;
        }
        let all = [&self.resync, &self.shared, &self.lent, &self.held];
        all.into_iter().flatten().for_each(|key| self.engine.0.recent.note(&key.name));
    }

    fn end(&mut self, outcome: Outcome) -> Vec<oneshot::Receiver<Result<(), Refusal>>> {
        self.over = true;
        let peers = &self.engine.0.peers;
        if outcome != Outcome::Refused {
            for key in self.resync.drain(..).chain(self.shared.drain(..)) {
                peers.send(peers.lane_of(&key.name), Message::Resync { key, way: Way::Whole, done: None });
            }
        }
        for key in self.lent.drain(..) {
            peers.send(peers.lane_of(&key.name), Message::Return { key, outcome, done: None });
        }
        let release = |key: Key| {
            let (done, ended) = oneshot::channel();
            peers.send(peers.lane_of(&key.name), Message::Release { key, outcome, done });
            ended
        };
        self.held.drain(..).map(release).collect()
    }

    fn leave(&mut self) {
        for ticket in self.tickets.drain(..) {
            self.engine.0.pause.sessions.leave(ticket);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.over {
            self.note_written(Outcome::Doubt);
            drop(self.end(Outcome::Doubt));
        }
        self.leave();
    }
}

/// See [`Engine::begin_whole`].
pub struct WholeGuard {
    engine: Engine,
    ticket: Ticket,
}

impl Drop for WholeGuard {
    fn drop(&mut self) {
        self.engine.0.pause.sessions.leave(self.ticket);
    }
}

impl Engine {
    /// Counts in a command that runs outside of the lanes, and holds its keys where they may be fetched from the follower.
    /// Waits while a route is gated. Every way out of the command must go through [`Guard::finish`]; a guard that is
    /// dropped (its client went away) takes its keys for changed.
    pub async fn begin(&self, keys: &[Key]) -> Result<Guard, Refusal> {
        self.begin_with(keys, Hold::Yes).await
    }

    /// The same for a command that waits for others to write: its keys are brought over but not held.
    pub async fn begin_blocking(&self, keys: &[Key]) -> Result<Guard, Refusal> {
        self.begin_with(keys, Hold::No).await
    }

    async fn begin_with(&self, keys: &[Key], hold: Hold) -> Result<Guard, Refusal> {
        let mut plans;
        loop {
            plans = keys.iter().map(|key| self.plan(key)).collect::<Vec<_>>();
            if !plans.iter().any(|plan| self.is_gated(plan)) {
                break;
            }
            self.opened().await;
        }
        if !self.0.stores.fence().is_holder() && plans.iter().any(|plan| plan.follower.is_some()) {
            return Err(Refusal::NoHolder);
        }
        let tickets = plans.iter().map(|plan| self.0.pause.sessions.enter(plan.route_hash)).collect();
        {
            let table = self.0.table.borrow();
            let mut moving = keys.iter().zip(&plans).filter(|(key, _)| table.databases().is_moving(key.db));
            if let Some((key, plan)) = moving.next() {
                self.0.traffic.count(&table, &key.name, plan.route_hash);
            }
        }
        let mut dual: Vec<(Key, Mode, bool)> = keys
            .iter()
            .zip(&plans)
            .filter(|(_, plan)| plan.follower.is_some())
            .map(|(key, plan)| (key.clone(), Mode::of(plan), plan.may_be_fetching()))
            .collect();
        // In one order for everybody, so that two commands never wait for each other.
        dual.sort_by(|one, other| one.0.cmp(&other.0));
        dual.dedup_by(|one, other| one.0 == other.0);
        let mut guard = Guard {
            engine: self.clone(),
            tickets,
            plans,
            resync: Vec::new(),
            shared: Vec::new(),
            lent: Vec::new(),
            held: Vec::new(),
            over: false,
        };
        for (key, mode, may_be_fetching) in dual {
            self.0.recent.note(&key.name);
            if !may_be_fetching {
                let keys = if mode.is_strict() { &mut guard.shared } else { &mut guard.resync };
                keys.push(key);
                continue;
            }
            let (answer, wait) = oneshot::channel();
            let message = match hold {
                Hold::Yes => Message::Hold { key: key.clone(), granted: answer },
                Hold::No => Message::Lend { key: key.clone(), done: answer },
            };
            self.0.peers.send(self.0.peers.lane_of(&key.name), message);
            if let Err(refusal) = wait.await.unwrap_or(Err(Refusal::UnknownOutcome)) {
                guard.finish(Outcome::Refused).await;
                return Err(refusal);
            }
            if hold == Hold::Yes { guard.held.push(key) } else { guard.lent.push(key) }
        }
        Ok(guard)
    }

    /// Counts in a command that concerns all keys: no route flips before what this returns is dropped.
    pub async fn begin_whole(&self) -> WholeGuard {
        while self.has_closed() {
            self.opened().await;
        }
        WholeGuard { ticket: self.0.pause.sessions.enter_whole(), engine: self.clone() }
    }

    /// Something may have changed on one store alone, or will, that no lane hears of: the route of this key is in doubt. Gives
    /// its name if it was not so before.
    pub fn doubt_route_of(&self, key: &Key) -> Option<RouteName> {
        let table = self.0.table.borrow();
        let route = table.route_of(&key.name).0;
        let dual = route.dual.as_ref().filter(|dual| table.databases().is_moving(key.db) && !dual.is_in_doubt())?;
        dual.set_in_doubt(true);
        Some(route.name.clone())
    }

    /// Copies a key from leader to follower through its lane.
    pub async fn resync(&self, key: Key) -> Result<(), Refusal> {
        self.0.peers.resync(key).await
    }

    /// Has a diverged key in the journal, on disk.
    async fn journaled(&self, key: Key) {
        let (written, wait) = oneshot::channel();
        self.0.journal.add(key, move || {
            let _ = written.send(());
        });
        // The journal's thread ends with the program only.
        let _ = wait.await;
    }
}
