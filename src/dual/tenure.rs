//! Keeps the lease: looks at both stores a few times while it lasts, and does what [`Lease::decide`] says. Runs on the control
//! thread; nothing on the byte path waits for it but what the lease is needed for.
//!
//! A holder writes its tables beside the record. Before a flip it announces what comes, and every other proxy that is
//! connected says that it sends the routes in question to the holder; when all workers have drained it commits, and from there
//! on the next table is the one that a successor goes by. Whoever takes over what another left first closes that one's
//! connections on every node, so that nothing of it runs any more, takes its table, and has every route in doubt.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};

use crate::dual::adopt::Adopter;
use crate::dual::desk::{Ask, Desk};
use crate::dual::follow::Unfollowed;
use crate::dual::knowledge::Doubt;
use crate::dual::lease::{Lease, Need, Next, Phases, Record, Seen, Tables};
use crate::dual::message::{Message, Peers};
use crate::dual::remembered::phases_of;
use crate::dual::shelf::{Shelf, Where, Written};
use crate::routing::{Side, Table};
use crate::store::link::Endpoint;
use crate::store::private_link::own_name;
use crate::store::{Role, client_list};

/// Looks while a lease lasts.
const LOOKS: u32 = 5;
/// How long a store may take for one question: less than a look's turn, for a flip may wait for it.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two looks while somebody waits for the outcome.
const HURRY: Duration = Duration::from_millis(20);

/// From a proxy's URL to how it is reached.
pub type Reach = Box<dyn Fn(&str) -> Option<Endpoint>>;

/// What a tenure is made of.
pub struct TenureParts {
    /// Of the lease.
    pub name: String,
    pub lasts: Duration,
    /// Of this proxy, in every run.
    pub id: String,
    /// Where this proxy serves clients, for the others to connect to.
    pub url: String,
    pub adopter: Arc<Adopter>,
    pub desk: Arc<Desk>,
    pub asks: mpsc::UnboundedReceiver<Ask>,
    pub peers: Peers,
    /// How another proxy is reached by what its record says; `None`: not by that.
    pub reach: Reach,
}

/// Somebody waits until every other proxy has taken the tables.
struct Announcement {
    since: Instant,
    patience: Duration,
    done: oneshot::Sender<Result<(), String>>,
}

/// See the module.
pub struct Tenure {
    parts: TenureParts,
    lease: Lease,
    began: Instant,
    shelves: [Shelf; 2],
    is_held: bool,
    /// It was taken at the last look, and counts from the next one on, whose time is known.
    is_new: bool,
    tables: Tables,
    /// [`mark_of`] the table that `tables` tells.
    told: Option<u64>,
    /// Set from an announcement to the end of its adoption.
    is_announced: bool,
    announcement: Option<Announcement>,
    commit: Option<oneshot::Sender<Result<(), String>>>,
    /// Which tables of which holder were taken.
    followed: Option<(String, u64)>,
    role: Role,
    /// Since when nobody is known to hold it, and whether that was told.
    waiting: Option<(Instant, bool)>,
    /// What a former holder left, until it is taken.
    inherited: Option<(Tables, Doubt)>,
    /// The program ends.
    has_left: bool,
}

impl Tenure {
    /// Holds nothing yet.
    pub fn new(parts: TenureParts, stores: [Where; 2]) -> Self {
        let patience = ANSWER.min(parts.lasts / LOOKS);
        let mut records = parts.desk.records.iter().cloned();
        let shelves = stores.map(|place| Shelf::new(place, &parts.name, patience, records.next().unwrap_or_default()));
        let lease = Lease::new(parts.id.clone(), parts.lasts);
        let now = phases_of(&parts.adopter.table());
        parts.desk.show(|view| view.name.clone_from(&parts.name));
        let role = parts.desk.fence.role();
        Self {
            parts,
            lease,
            began: Instant::now(),
            shelves,
            is_held: false,
            is_new: false,
            waiting: None,
            inherited: None,
            tables: Tables { number: 0, now, next: None, committed: false },
            told: None,
            is_announced: false,
            announcement: None,
            commit: None,
            followed: None,
            role,
            has_left: false,
        }
    }

    /// Keeps it until the program ends.
    pub async fn run(mut self) {
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                ask = self.parts.asks.recv() => match ask {
                    Some(ask) => self.hear(ask).await,
                    None => return,
                },
                () = tokio::time::sleep(pause) => {}
            }
            if self.has_left {
                return;
            }
            let pace = self.round().await;
            self.expire_waiting();
            pause = match pace {
                _ if self.announcement.is_some() || self.commit.is_some() => HURRY,
                Pace::AtOnce => Duration::ZERO,
                Pace::Soon => self.parts.lasts / (10 * LOOKS),
                Pace::Steady => self.parts.lasts / LOOKS,
            };
        }
    }

    async fn hear(&mut self, ask: Ask) {
        match ask {
            Ask::Announce { phases, patience, done } => {
                let [now, next] = *phases;
                self.is_announced = true;
                self.tell(now, Some(next), false);
                self.announcement = Some(Announcement { since: Instant::now(), patience, done });
            }
            Ask::Commit { done } => {
                self.tables.committed = true;
                self.tables.number += 1;
                self.commit = Some(done);
            }
            Ask::Settle => {
                self.is_announced = false;
                self.told = None;
            }
            Ask::Leave { is_clean, done } => {
                self.leave(is_clean).await;
                // The program goes on ending whether it hears of it or not.
                let _ = done.send(());
            }
        }
    }

    fn tell(&mut self, now: Phases, next: Option<Phases>, committed: bool) {
        self.tables = Tables { number: self.tables.number + 1, now, next, committed };
    }

    /// The lease's own record.
    fn record(&self, released: bool) -> Record {
        let TenureParts { id, url, .. } = &self.parts;
        let (connections, number) = (own_name().to_string(), self.tables.number);
        Record { id: id.clone(), connections, url: url.clone(), until_ms: 0, released, number }
    }

    async fn round(&mut self) -> Pace {
        let asked = (Instant::now(), SystemTime::now());
        let table = self.parts.adopter.table();
        let is_wanted = self.is_announced || table.routes().iter().any(|route| route.dual.is_some());
        self.parts.desk.fence.check();
        // One that ended unnoticed may have been another's since, and then it is that one's tables that count.
        self.is_held &= self.parts.desk.fence.is_holder() || self.is_new;
        let wants = is_wanted && !self.is_held;
        let [standalone, cluster] = &mut self.shelves;
        let (standalone, cluster) = tokio::join!(standalone.look(wants), cluster.look(wants));
        let seen = [standalone, cluster];
        let next = self.lease.decide(self.began.elapsed(), Need { is_held: self.is_held, is_wanted }, &seen);
        if !matches!(next, Next::Wait(_) | Next::Stay(_)) {
            self.waiting = None;
        }
        let pace = match next {
            Next::Nothing => {
                self.be_free();
                Pace::Steady
            }
            Next::Take { former } => self.take(former, &seen).await,
            Next::Renew => self.renew(asked, &table, &seen).await,
            Next::Release => self.release(asked, &table, &seen).await,
            Next::GiveWay(holder) => {
                tracing::error!(holder = %holder.url, "another proxy holds the lease of the dual routes, which this one held, too: it does no dual write any more, and sends their traffic there");
                self.lose(&holder.url);
                Pace::AtOnce
            }
            Next::Follow(holder) => self.follow(&holder, &seen).await,
            // It is asked all the same: if it is there it answers, and if it does not hold it any more it refuses.
            Next::Stay(_) if self.parts.desk.followed().is_some() => Pace::Soon,
            Next::Stay(reason) | Next::Wait(reason) => {
                self.wait(reason);
                Pace::Soon
            }
        };
        self.announce_role();
        pace
    }

    /// Workers look again at what waits for the lease, or may not go on without it.
    fn announce_role(&mut self) {
        let role = self.parts.desk.fence.role();
        if std::mem::replace(&mut self.role, role) == role {
            return;
        }
        for worker in 0..self.parts.peers.0.len() {
            self.parts.peers.send(worker, Message::Lease);
        }
    }

    fn be_free(&mut self) {
        self.followed = None;
        if self.parts.desk.leaving.load().is_some() {
            self.parts.desk.leaving.store(None);
        }
        if self.role != Role::Holds {
            self.parts.desk.fence.free();
        }
        self.show("not needed", None, None);
    }

    fn show(&self, role: &'static str, holder: Option<&str>, reason: Option<&str>) {
        self.parts.desk.show(|view| {
            (view.role, view.holder, view.reason) = (role, holder.map(Into::into), reason.map(Into::into));
        });
    }

    fn wait(&mut self, reason: &'static str) {
        // A holder that reaches no store has it until it ends by its own clock.
        if self.is_held && self.parts.desk.fence.is_holder() {
            return;
        }
        let (since, is_told) = self.waiting.get_or_insert_with(|| (Instant::now(), false));
        // The first looks of a run come before the stores answer.
        if since.elapsed() >= self.parts.lasts / 2 && !std::mem::replace(is_told, true) {
            tracing::warn!(
                reason,
                "nobody is known to hold the lease of the dual routes: their commands wait, and are refused if it lasts"
            );
        }
        self.is_held = false;
        self.parts.desk.fence.end(Role::Waits, None);
        self.show("waits", None, Some(reason));
    }

    fn lose(&mut self, holder: &str) {
        self.is_held = false;
        self.fail_waiting(&format!("the proxy at {holder} holds the lease of the dual routes"));
        self.parts.desk.fence.end(Role::Waits, None);
    }

    /// Whoever waits for the holder's part of a flip.
    fn fail_waiting(&mut self, reason: &str) {
        for done in self.announcement.take().map(|announcement| announcement.done).into_iter().chain(self.commit.take())
        {
            // The adoption may have been given up.
            let _ = done.send(Err(reason.to_string()));
        }
    }

    /// What cannot be done for long is not done at all.
    fn expire_waiting(&mut self) {
        let limit = self.parts.lasts;
        if self.announcement.as_ref().is_some_and(|waiting| waiting.since.elapsed() > waiting.patience + limit) {
            let reason = self.parts.desk.view().reason.unwrap_or_else(|| "the stores do not take its record".into());
            self.fail_waiting(&format!(
                "the lease of the dual routes cannot be taken: {reason}; save proxy.toml again"
            ));
        }
    }

    /// Writes to the stores that were reached, one after the other: of two proxies the first on the first store wins.
    async fn write(&mut self, seen: &[Seen; 2], record: &Record, lasts: Duration) -> [Written; 2] {
        let mut written = [Written::Unreachable; 2];
        for side in (0..2).filter(|side| seen[*side] != Seen::Unreachable) {
            written[side] = self.shelves[side].write(record, lasts, &self.tables).await;
            if written[side] == Written::Overtaken {
                break;
            }
        }
        written
    }

    async fn take(&mut self, former: Option<Record>, seen: &[Seen; 2]) -> Pace {
        let left = match &former {
            Some(former) if former.id != self.parts.id => self.tables_of(former, seen).await,
            _ => None,
        };
        // What was given back with no route dual says nothing that this proxy does not know.
        let is_news = |left: &Tables| {
            let is_over = former.as_ref().is_some_and(|former| former.released) && !left.now.has_dual();
            !(is_over && self.parts.adopter.has_phases(&left.now))
        };
        let left = left.filter(is_news);
        self.tables.number = self.tables.number.max(former.as_ref().map_or(0, |former| former.number)) + 1;
        if let Some((former, left)) = former.as_ref().zip(left.as_ref()) {
            // The table that is being adopted knows nothing of it, and has to make room.
            self.fail_waiting(&format!(
                "this proxy first takes over what the one at {} left; proxy.toml is judged again when it has",
                former.url
            ));
            self.is_announced = false;
            // What it left is what a third one finds if this one ends before it has taken it.
            self.tables = Tables { number: self.tables.number, ..left.clone() };
        } else if !self.is_announced {
            self.tables.now = phases_of(&self.parts.adopter.table());
        }
        let record = self.record(false);
        let written = self.write(seen, &record, self.parts.lasts).await;
        if written.contains(&Written::Overtaken) {
            if written[0] == Written::Done {
                self.shelves[0].look(false).await;
                self.shelves[0].write(&self.record(true), Duration::ZERO, &self.tables).await;
            }
            return Pace::AtOnce;
        }
        if !written.iter().any(|written| matches!(written, Written::Done | Written::Prolonged)) {
            self.wait("no store takes the record");
            return Pace::Steady;
        }
        let former = former.filter(|former| former.connections != own_name());
        if let Some(former) = former.as_ref().filter(|former| !former.released) {
            self.end_connections(&former.connections).await;
        }
        if let (Some(former), Some(left)) = (&former, left) {
            tracing::warn!(former = %former.url, released = former.released, "this proxy takes over the dual routes, with the phases that the former holder had");
            self.inherited = Some((left, if former.released { Doubt::Ends } else { Doubt::Stays }));
        }
        let inherits = self.inherited.is_some();
        if let Some((left, doubt)) = &self.inherited
            && let Err(refused) = self.parts.adopter.succeed(left, *doubt).await
        {
            tracing::error!(reason = %refused, "the former holder's table cannot be taken; trying again");
            return Pace::Steady;
        }
        self.inherited = None;
        tracing::info!(name = %self.parts.name, "this proxy holds the lease of the dual routes");
        (self.is_held, self.followed, self.told) = (true, None, None);
        self.parts.desk.set_differs(Vec::new());
        self.parts.desk.leaving.store(None);
        if inherits {
            self.parts.desk.changed.notify_one();
            self.parts.desk.taken.notify_one();
        }
        self.is_new = true;
        Pace::AtOnce
    }

    /// Of a store that has that record.
    async fn tables_of(&mut self, record: &Record, seen: &[Seen; 2]) -> Option<Tables> {
        for (shelf, seen) in self.shelves.iter_mut().zip(seen) {
            let has = |found: &Record| (found.number, &found.id) == (record.number, &record.id);
            if matches!(seen, Seen::Found { record, .. } if has(record))
                && let Some(tables) = shelf.tables().await
            {
                return Some(tables);
            }
        }
        None
    }

    /// Of a holder that did not give the lease back: what it had sent must not run any more.
    async fn end_connections(&self, proxy: &str) {
        for node in self.shelves.iter().flat_map(Shelf::nodes) {
            let ended = tokio::time::timeout(self.parts.lasts / LOOKS, client_list::end_all(&node, proxy)).await;
            match ended.ok().flatten() {
                Some(connections) if connections > 0 => {
                    tracing::info!(node = %node.address, connections, "connections that the former holder had left were closed");
                }
                Some(_) => {}
                None => {
                    tracing::warn!(node = %node.address, "the former holder's connections cannot be looked for on this node; what it had sent there may still run, and its routes are in doubt");
                }
            }
        }
    }

    async fn renew(&mut self, asked: (Instant, SystemTime), table: &Table, seen: &[Seen; 2]) -> Pace {
        if !self.is_announced {
            let mark = mark_of(table);
            if self.told != Some(mark) {
                self.tell(phases_of(table), None, false);
                self.told = Some(mark);
            }
        }
        let written = self.write(seen, &self.record(false), self.parts.lasts).await;
        if written.contains(&Written::Overtaken) {
            return Pace::AtOnce;
        }
        let is_written = written.contains(&Written::Done);
        if !is_written && !written.contains(&Written::Prolonged) {
            return Pace::Soon;
        }
        // Clocks do not go alike, and what was sent at the last moment takes its time.
        self.is_new = false;
        self.parts.desk.fence.hold(asked, self.parts.lasts * 4 / 5);
        self.show("holds", Some(&self.parts.url.clone()), None);
        // The others learn of a table from what is written.
        if is_written {
            self.answer_waiting().await;
        }
        Pace::Steady
    }

    /// The other proxies that are connected and have not taken the newest tables.
    async fn behind(&mut self) -> Vec<String> {
        let mut taken = std::collections::BTreeMap::new();
        for shelf in &mut self.shelves {
            for (proxy, number) in shelf.companions().await.unwrap_or_default() {
                let known = taken.entry(proxy).or_insert(number);
                *known = (*known).max(number);
            }
        }
        let number = Some(self.tables.number);
        taken.into_iter().filter(|(_, taken)| *taken < number).map(|(proxy, _)| proxy).collect()
    }

    async fn answer_waiting(&mut self) {
        if let Some(done) = self.commit.take() {
            let _ = done.send(Ok(()));
        }
        let Some(announcement) = self.announcement.take() else { return };
        let behind = self.behind().await;
        if behind.is_empty() {
            let _ = announcement.done.send(Ok(()));
        } else if announcement.since.elapsed() > announcement.patience {
            let reason = format!(
                "other proxies of this lease are connected to the stores and have not taken the table that is announced ({}); see their logs, then save proxy.toml again",
                behind.join(", ")
            );
            let _ = announcement.done.send(Err(reason));
        } else {
            self.announcement = Some(announcement);
        }
    }

    /// No worker has a dual route any more, and what they had was drained when they left it. Others go on sending such traffic
    /// here until they know it.
    async fn release(&mut self, asked: (Instant, SystemTime), table: &Table, seen: &[Seen; 2]) -> Pace {
        if matches!(self.renew(asked, table, seen).await, Pace::AtOnce) {
            return Pace::AtOnce;
        }
        if !self.behind().await.is_empty() {
            return Pace::Soon;
        }
        let looks = [self.shelves[0].look(false).await, self.shelves[1].look(false).await];
        if looks[0] != Seen::Unreachable {
            // The standalone's keys are told to clients as they are while no route is on the cluster.
            self.shelves[0].clear().await;
        }
        if looks[1] != Seen::Unreachable {
            self.shelves[1].write(&self.record(true), Duration::ZERO, &self.tables).await;
        }
        tracing::info!("no route is dual any more: the lease is given back");
        (self.is_held, self.told) = (false, None);
        self.parts.desk.fence.free();
        self.show("not needed", None, None);
        Pace::Steady
    }

    async fn follow(&mut self, holder: &Record, seen: &[Seen; 2]) -> Pace {
        self.fail_waiting(&format!("the proxy at {} holds the lease of the dual routes; flip them there", holder.url));
        self.inherited = None;
        let Some(endpoint) = (self.parts.reach)(&holder.url) else {
            self.wait("the address that the holder gives cannot be used; see its lease.advertise");
            return Pace::Steady;
        };
        let fence = &self.parts.desk.fence;
        let is_new = self.parts.desk.followed().as_deref() != Some(holder.url.as_str());
        self.show("follows", Some(&holder.url), None);
        if is_new || !matches!(fence.role(), Role::Follows | Role::Defers) {
            // Until its table is known, everything goes there.
            fence.end(Role::Defers, Some(endpoint.clone()));
            self.announce_role();
        }
        if is_new {
            tracing::info!(holder = %holder.url, "another proxy holds the lease of the dual routes: their traffic goes there");
        }
        let place = (holder.id.clone(), holder.number);
        if self.followed.as_ref() == Some(&place) {
            return self.tell_taken(holder.number).await;
        }
        let Some(tables) = self.tables_of(holder, seen).await else { return Pace::Soon };
        self.tables.number = tables.number;
        match self.parts.adopter.follow(&tables).await {
            Ok(()) => {
                self.parts.desk.fence.end(Role::Follows, Some(endpoint));
                self.followed = Some(place);
                self.tell_taken(tables.number).await
            }
            Err(Unfollowed::Otherwise(reason)) => {
                tracing::error!(reason, holder = %holder.url, "the holder's table cannot be taken: everything goes there");
                self.parts.desk.set_differs(vec![reason]);
                self.followed = Some(place);
                self.tell_taken(tables.number).await
            }
            Err(Unfollowed::NotNow(refused)) => {
                tracing::warn!(reason = %refused, holder = %holder.url, "the holder's table cannot be taken yet; trying again");
                Pace::Steady
            }
        }
    }

    async fn tell_taken(&mut self, number: u64) -> Pace {
        for shelf in &mut self.shelves {
            shelf.tell(number).await;
        }
        Pace::Steady
    }

    async fn leave(&mut self, is_clean: bool) {
        self.has_left = true;
        if !self.is_held {
            return;
        }
        self.tell(phases_of(&self.parts.adopter.table()), None, false);
        let record = self.record(is_clean);
        let mut seen = [Seen::Unreachable, Seen::Unreachable];
        for (side, seen) in seen.iter_mut().enumerate() {
            *seen = self.shelves[side].look(false).await;
        }
        let is_own = seen.iter().all(|seen| !matches!(seen, Seen::Found { record, .. } if record.id != self.parts.id));
        if is_own {
            self.write(&seen, &record, Duration::ZERO).await;
        }
    }
}

/// When to look again.
enum Pace {
    AtOnce,
    /// Somebody waits, and a store may answer any moment.
    Soon,
    Steady,
}

/// Another one when the table, or what is known of its routes, has become another.
fn mark_of(table: &Table) -> u64 {
    use std::hash::{BuildHasher, Hash, Hasher};
    let mut hasher = foldhash::fast::FixedState::with_seed(3).build_hasher();
    (table.version(), table.pubsub().leader() == Side::Cluster).hash(&mut hasher);
    for route in table.routes() {
        let Some(dual) = &route.dual else { continue };
        (route.hash, dual.coverage(), dual.is_in_doubt() || dual.divergence() > 0).hash(&mut hasher);
    }
    hasher.finish()
}
