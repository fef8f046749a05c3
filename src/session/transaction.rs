//! MULTI, EXEC, DISCARD, WATCH, UNWATCH: commands are queued in the proxy and planned at EXEC.
//!
//! Everything led by the standalone, or in one slot, is one real transaction there. What spans more is split only where
//! each command stands for itself and nothing is watched; else it is refused before anything ran. WATCH keeps a connection
//! of its own to the store of its keys until the transaction ends. What concerns the connection alone runs in `asides`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use crate::audit::Kind as Unlike;
use crate::command::{self, CommandSpec, Kind};
use crate::dual::{ReplyTo, Target, Wrote, refusal_of};
use crate::resp::refusal::Refusal;
use crate::resp::request::Request;
use crate::resp::{reply, write};
use crate::routing::{Key, Side, places_of};
use crate::session::asides::{Aside, PLACEHOLDER, is_aside, unfit};
use crate::session::commands::{Once, outcome_of};
use crate::session::keyspace::reaches_all;
use crate::session::local::database;
use crate::session::session::{Flow, Session, keys_at};
use crate::session::split::{merge, parts_of};
use crate::store::{LinkError, PrivateLink, StoreSide};

/// Commands that one transaction may queue.
const QUEUE_MAX: usize = 1 << 16;

/// What a session has begun.
#[derive(Default)]
pub struct Transaction {
    queue: Option<Vec<Queued>>,
    /// The database that a queued SELECT has chosen for what comes behind it.
    selected: Option<u32>,
    is_spoiled: bool,
    watch: Option<Watch>,
}

/// A command that waits for EXEC.
struct Queued {
    request: Request,
    spec: &'static CommandSpec,
    /// The database that it is meant for.
    db: u32,
}

struct Watch {
    link: PrivateLink,
    target: Target,
    keys: Vec<Key>,
}

impl Transaction {
    /// What of it concerns no store.
    fn asides(&self) -> Vec<Aside> {
        let queued = self.queue.iter().flatten().enumerate().filter(|(_, queued)| is_aside(queued.spec));
        let aside =
            |(number, queued): (usize, &Queued)| Aside { number, request: queued.request.clone(), spec: queued.spec };
        queued.map(aside).collect()
    }
}

impl Session {
    /// Whether commands are queued instead of run.
    pub(super) fn is_queueing(&self) -> bool {
        self.transaction.as_ref().is_some_and(|transaction| transaction.queue.is_some())
    }

    /// A command could not be queued: EXEC will refuse.
    pub(super) fn spoil(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.is_spoiled = transaction.queue.is_some();
        }
    }

    pub(super) fn queue(&mut self, request: Request, spec: &'static CommandSpec) {
        let refusal = match spec.kind {
            Kind::Refused(reason) => Some(Refusal::NotSupported { command: spec.name.to_lowercase(), reason }),
            _ => unfit(spec, &request, self.protocol),
        };
        if let Some(refusal) = refusal {
            self.spoil();
            return self.refuse(refusal);
        }
        let Some(Transaction { queue: Some(queue), selected, is_spoiled, .. }) = self.transaction.as_deref_mut() else {
            return;
        };
        if queue.len() >= QUEUE_MAX {
            *is_spoiled = true;
            return self.refuse(Refusal::Text(format!(
                "more than {QUEUE_MAX} commands in one transaction; send them in several"
            )));
        }
        let db = selected.unwrap_or(self.db);
        if spec.name == "SELECT" {
            *selected = database(request.arg(1)).ok().or(*selected);
        }
        queue.push(Queued { request, spec, db });
        self.client.queued.fetch_add(1, Ordering::Relaxed);
        self.answer(b"+QUEUED\r\n");
    }

    pub(super) async fn transaction_command(&mut self, request: Request, spec: &'static CommandSpec) -> Flow {
        let text = |text: &str| Refusal::Text(text.into());
        match spec.name {
            "MULTI" if self.is_queueing() => self.refuse(text("MULTI calls can not be nested")),
            "MULTI" => {
                let transaction = self.transaction.get_or_insert_default();
                transaction.queue = Some(Vec::new());
                transaction.selected = None;
                transaction.is_spoiled = false;
                self.client.queued.store(0, Ordering::Relaxed);
                self.answer(b"+OK\r\n");
            }
            "DISCARD" if !self.is_queueing() => self.refuse(text("DISCARD without MULTI")),
            "DISCARD" => {
                self.reset_transaction();
                self.answer(b"+OK\r\n");
            }
            "WATCH" if self.is_queueing() => self.refuse(text("WATCH inside MULTI is not allowed")),
            "WATCH" => {
                self.replies.settle(0).await;
                let outcome = self.watch(&request).await;
                self.answer_with(outcome);
            }
            "UNWATCH" => {
                self.transaction = None;
                self.answer(b"+OK\r\n");
            }
            _ if !self.is_queueing() => self.refuse(text("EXEC without MULTI")),
            _ => {
                self.replies.settle(0).await;
                let transaction = self.transaction.take().unwrap_or_default();
                let asides = transaction.asides();
                let outcome = self.exec(transaction).await;
                let flow = match outcome {
                    Ok(frame) if !asides.is_empty() => self.answer_with_asides(frame, asides).await,
                    outcome => {
                        self.answer_with(outcome);
                        Flow::Continue
                    }
                };
                self.client.queued.store(-1, Ordering::Relaxed);
                return flow;
            }
        }
        Flow::Continue
    }

    /// Forgets what was queued and watched.
    pub(super) fn reset_transaction(&mut self) {
        self.transaction = None;
        self.client.queued.store(-1, Ordering::Relaxed);
    }

    async fn watch(&mut self, request: &Request) -> Result<Bytes, Refusal> {
        let mut keys: Vec<Key> = request.args().skip(1).map(|name| Key::copied(self.db, name)).collect();
        if let Some(watch) = self.transaction.as_ref().and_then(|transaction| transaction.watch.as_ref()) {
            keys.extend(watch.keys.iter().cloned());
        }
        let views: Vec<(u32, &[u8])> = keys.iter().map(|key| (key.db, &key.name[..])).collect();
        self.audit_together("watch", Unlike::CrossWatch, &views);
        self.goes_away(&views).await?;
        let target = self.target_now("watch", &keys)?;
        let mut link = match self.transaction.as_mut().and_then(|transaction| transaction.watch.take()) {
            Some(watch) if watch.target == target => watch.link,
            Some(Watch { mut link, target: before, .. }) if is_one_server(&before, &target) => {
                let select = crate::dual::effect::command(&[b"SELECT", self.db.to_string().as_bytes()]);
                link.call(&select).await.map_err(|_| Refusal::StoreDown)?;
                link
            }
            Some(_) => {
                return Err(Refusal::CrossSlot {
                    command: "watch".into(),
                    reason: "watched keys must be on one store and slot; give them one hash tag",
                });
            }
            None => self.private_link(&target).await?,
        };
        let bytes = match command::lookup(b"WATCH") {
            Some(spec) => self.shared.engine.request_for(&target, self.db, spec, request),
            None => request.bytes().clone(),
        };
        let answer = link.call(&bytes).await.map_err(|_| Refusal::StoreDown)?;
        self.transaction.get_or_insert_default().watch = Some(Watch { link, target, keys });
        Ok(answer)
    }

    /// Where these keys are led now.
    pub(super) fn target_now(&self, command: &str, keys: &[Key]) -> Result<Target, Refusal> {
        let engine = &self.shared.engine;
        if keys.iter().any(|key| engine.is_elsewhere(key.db, &key.name)) {
            return Ok(Target::Peer { db: self.db });
        }
        self.target_of(command, keys, keys.iter().map(|key| engine.plan(key).leader))
    }

    /// A connection of the client's own to a target.
    pub(super) async fn private_link(&self, target: &Target) -> Result<PrivateLink, Refusal> {
        let stores = self.shared.engine.stores();
        let is_cluster = matches!(target, Target::Slot(_) | Target::Node(_));
        let side = if is_cluster { StoreSide::Cluster } else { StoreSide::Standalone };
        let place = stores.private_place(side).ok_or(Refusal::NoLinkFree)?;
        let endpoint = match target {
            Target::Standalone { db } => Some(stores.standalone_endpoint(*db)),
            Target::Slot(slot) => stores.slot_endpoint(*slot),
            Target::Node(_) => None,
            Target::Peer { db } => stores.peer_endpoint(*db),
        };
        let endpoint = endpoint.ok_or(Refusal::StoreDown)?;
        match PrivateLink::connect(&endpoint, self.protocol).await {
            Ok(link) => Ok(link.at(place)),
            Err(LinkError::Down(reason)) if reason.contains("max number of clients") => Err(Refusal::NoLinkFree),
            Err(_) => Err(Refusal::StoreDown),
        }
    }

    async fn exec(&mut self, transaction: Box<Transaction>) -> Result<Bytes, Refusal> {
        let Transaction { queue, selected, is_spoiled, watch } = *transaction;
        let commands = queue.unwrap_or_default();
        if is_spoiled {
            return Err(Refusal::Verbatim("EXECABORT Transaction discarded because of previous errors.".into()));
        }
        let mut keys = self.keys_of_all(&commands)?;
        if let Some(watch) = &watch {
            keys.extend(watch.keys.iter().cloned());
        }
        let unlike = if watch.is_some() { Unlike::CrossWatch } else { Unlike::CrossTransaction };
        let views: Vec<(u32, &[u8])> = keys.iter().map(|key| (key.db, &key.name[..])).collect();
        self.audit_together("exec", unlike, &views);
        for Queued { request, spec, db } in commands.iter().filter(|queued| queued.spec.kind == Kind::Script) {
            let undeclared = self.shared.scripts.note(spec, request);
            if let (Some(undeclared), Some(places)) = (undeclared, places_of(*db, spec, request)) {
                self.note_undeclared(spec, &keys_at(request, &places), &undeclared);
            }
        }
        // Planned when nothing of it flips: whether it is whole on one store depends on the table.
        let publishes = commands.iter().any(|queued| queued.spec.kind == Kind::Publish);
        let engine = self.shared.engine.clone();
        while engine.has_closed()
            && ((publishes && engine.holds_publishers()) || keys.iter().any(|key| engine.is_gated(&engine.plan(key))))
        {
            engine.opened().await;
        }
        if publishes {
            engine.subscribed().await;
        }
        self.goes_away(&keys.iter().map(|key| (key.db, &key.name[..])).collect::<Vec<_>>()).await?;
        let whole = self.target_now("exec", &keys);
        let channels = self.shared.engine.table().pubsub().leader();
        let fits =
            whole.as_ref().is_ok_and(|target| commands.iter().all(|queued| fits_beside(queued.spec, target, channels)));
        let answer = match (whole, watch) {
            (Ok(_), None) if fits => self.exec_whole(&commands, &keys).await,
            (whole, Some(watch)) if fits => self.exec_watched(&commands, &keys, watch, whole?).await,
            (whole, Some(_)) => Err(whole.err().unwrap_or(Refusal::CrossSlot {
                command: "exec".into(),
                reason: "a watched transaction cannot be split over slots and stores; give its keys one hash tag, or do without WATCH",
            })),
            (_, None) => self.exec_split(commands).await,
        };
        if let (Some(db), true) =
            (selected, answer.as_ref().is_ok_and(|frame| frame.starts_with(b"*") && !reply::is_null(frame)))
        {
            self.set_db(db);
        }
        answer
    }

    /// All keys of a transaction; refused is what would see one store only.
    fn keys_of_all(&self, commands: &[Queued]) -> Result<Vec<Key>, Refusal> {
        let table = self.shared.engine.table();
        let mut keys = Vec::new();
        for Queued { request, spec, db } in commands {
            // MOVE is judged by its two keys.
            let is_wide = matches!(spec.kind, Kind::Scan | Kind::KeyspaceWide) && spec.name != "MOVE";
            if is_wide && !table.all_standalone() && (table.databases().is_moving(*db) || reaches_all(spec)) {
                return Err(Refusal::NotSupported {
                    command: spec.name.to_lowercase(),
                    reason: "in a transaction it would see one store only, and keys of this database are on two; send it outside of one",
                });
            }
            let places = places_of(*db, spec, request).ok_or(Refusal::Syntax)?;
            keys.extend(keys_at(request, &places));
        }
        Ok(keys)
    }

    /// MULTI … EXEC as one piece on the store that leads all of its keys.
    async fn exec_whole(&self, commands: &[Queued], keys: &[Key]) -> Result<Bytes, Refusal> {
        let engine = &self.shared.engine;
        let (begun, target) = self.place_of(self.begin(keys).await?, "exec", keys).await?;
        let batch = self.batch_of(commands, &target);
        let answer = engine.call_batch(&target, &batch.bytes, batch.replies(), wrote(commands), self.protocol).await;
        begun.finish(outcome_of(&answer)).await;
        answer.map(|frame| self.own_answers(commands, &target, &batch, frame)).map_err(|error| refusal_of(&error))
    }

    /// MULTI, the commands as the target is to get them, EXEC. On the standalone a command of another database than the
    /// link's has a SELECT in front, and the link is left as it was; on the cluster the names say it.
    fn batch_of(&self, commands: &[Queued], target: &Target) -> Batch {
        let length = commands.iter().map(|queued| queued.request.bytes().len()).sum::<usize>() + 64;
        let mut batch = Batch { bytes: Bytes::new(), answered: Vec::with_capacity(commands.len()) };
        let mut out = BytesMut::with_capacity(length);
        write::command(&mut out, &[b"MULTI"]);
        let link = if let Target::Standalone { db } | Target::Peer { db } = target { Some(*db) } else { None };
        let mut current = link;
        let mut select = |out: &mut BytesMut, answered: &mut Vec<Option<usize>>, db: u32| {
            if current.is_some_and(|current| current != db) {
                write::command(out, &[b"SELECT", db.to_string().as_bytes()]);
                answered.push(None);
                current = Some(db);
            }
        };
        for (number, Queued { request, spec, db }) in commands.iter().enumerate() {
            if spec.name == "SELECT" || is_aside(spec) {
                continue;
            }
            select(&mut out, &mut batch.answered, *db);
            out.extend_from_slice(&self.shared.engine.request_for(target, *db, spec, request));
            batch.answered.push(Some(number));
        }
        if let Some(link) = link {
            select(&mut out, &mut batch.answered, link);
        }
        write::command(&mut out, &[b"EXEC"]);
        batch.bytes = out.freeze();
        batch
    }

    /// EXEC's reply as the application is to get it: with its own names, its own subscribers among the receivers of messages,
    /// and an answer to each of its SELECTs.
    fn own_answers(&self, commands: &[Queued], target: &Target, batch: &Batch, frame: Bytes) -> Bytes {
        let engine = &self.shared.engine;
        let is_plain = batch.answered.len() == commands.len() && batch.answered.iter().all(Option::is_some);
        let is_renamed = engine.table().is_renamed();
        let differs = |spec: &CommandSpec| spec.kind == Kind::Publish || (is_renamed && command::tells_keys(spec));
        if is_plain && !commands.iter().any(|queued| differs(queued.spec)) {
            return frame;
        }
        let cells = reply::elements(&frame).filter(|cells| cells.len() == batch.answered.len());
        let Some(cells) = cells else { return frame };
        let mut answers = vec![None; commands.len()];
        for (cell, number) in cells.into_iter().zip(&batch.answered) {
            let Some(number) = *number else { continue };
            let Queued { request, spec, db } = &commands[number];
            answers[number] = Some(match spec.kind {
                Kind::Publish if !matches!(target, Target::Peer { .. }) => {
                    engine.heard(target, request, frame.slice(cell))
                }
                _ => engine.reply_from(target, *db, spec, request, frame.slice(cell)),
            });
        }
        let mut out = BytesMut::with_capacity(frame.len());
        write::array(&mut out, commands.len());
        for (answer, queued) in answers.into_iter().zip(commands) {
            match answer {
                Some(answer) => out.extend_from_slice(&answer),
                None if is_aside(queued.spec) => out.extend_from_slice(PLACEHOLDER),
                None => write_selected(&mut out, &queued.request),
            }
        }
        out.freeze()
    }

    /// EXEC on the connection that watches. A route that flipped since answers nil, which every client retries.
    async fn exec_watched(
        &mut self,
        commands: &[Queued],
        keys: &[Key],
        mut watch: Watch,
        target: Target,
    ) -> Result<Bytes, Refusal> {
        let nil = || {
            let mut out = BytesMut::new();
            write::null_array(&mut out, self.protocol);
            out.freeze()
        };
        let is_there = |target: &Target| *target == watch.target || is_one_server(target, &watch.target);
        if !is_there(&target) {
            return Ok(nil());
        }
        let begun = self.begin(keys).await?;
        let is_moved = !self.target_now("exec", keys).is_ok_and(|target| is_there(&target));
        let batch = self.batch_of(commands, &watch.target);
        let answer = async {
            if is_moved {
                return Ok(nil());
            }
            if !self.may_send(&watch.target, keys) {
                return Err(LinkError::Down("the lease has ended".into()));
            }
            let unanswered = self.shared.engine.count_sent(&watch.target, wrote(commands));
            watch.link.send(&batch.bytes).await?;
            let mut last = watch.link.receive().await?;
            for _ in 1..batch.replies() {
                last = watch.link.receive().await?;
            }
            if let Some(unanswered) = unanswered {
                unanswered.answered();
            }
            Ok::<_, LinkError>(last)
        };
        let answer = answer.await;
        begun.finish(outcome_of(&answer)).await;
        answer.map(|frame| self.own_answers(commands, &watch.target, &batch, frame)).map_err(|error| refusal_of(&error))
    }

    /// Commands that stand for themselves, one after the other, each where its keys are.
    async fn exec_split(&mut self, commands: Vec<Queued>) -> Result<Bytes, Refusal> {
        let engine = self.shared.engine.clone();
        for Queued { request, spec, db } in &commands {
            let places = places_of(*db, spec, request).ok_or(Refusal::Syntax)?;
            let stands_alone = match spec.kind {
                _ if !engine.is_moving(*db) && !places.iter().any(|(_, db)| engine.is_moving(*db)) => true,
                _ if is_aside(spec) => true,
                Kind::Split(_) | Kind::Publish | Kind::Keyless | Kind::Local => true,
                Kind::Keyed => engine.is_simple(request, &places),
                Kind::Script => places.is_empty() && matches!(spec.keys, command::Keys::None),
                _ => false,
            };
            if !stands_alone {
                return Err(Refusal::CrossSlot {
                    command: "exec".into(),
                    reason: "its commands have keys on several slots or stores, and one of them needs several at once; give the keys one hash tag, or send that one by itself",
                });
            }
        }
        let mut out = BytesMut::new();
        write::array(&mut out, commands.len());
        for Queued { request, spec, db } in commands {
            self.set_db(db);
            match self.run_one(request, spec).await {
                Ok(frame) => out.extend_from_slice(&frame),
                Err(refusal) => refusal.write(&mut out),
            }
        }
        Ok(out.freeze())
    }

    async fn run_one(&mut self, request: Request, spec: &'static CommandSpec) -> Result<Bytes, Refusal> {
        if is_aside(spec) {
            return Ok(Bytes::from_static(PLACEHOLDER));
        }
        if spec.name == "SELECT" {
            let mut out = BytesMut::new();
            write_selected(&mut out, &request);
            return Ok(out.freeze());
        }
        if spec.kind == Kind::Publish {
            let (sender, receiver) = oneshot::channel();
            let to = ReplyTo { port: Rc::new(Once(RefCell::new(Some(sender)))), seq: 0 };
            if spec.name == "PUBSUB" {
                return self.shared.engine.ask_channels(&request, self.protocol).await;
            }
            self.shared.engine.publish(request, self.protocol, to);
            return receiver.await.unwrap_or(Err(Refusal::UnknownOutcome));
        }
        if matches!(spec.keys, command::Keys::None) {
            if spec.kind == Kind::Script {
                self.tell_primaries(&request, spec).await;
            }
            let target = Target::Standalone { db: self.db };
            let answer = self.shared.engine.call(&target, request.bytes(), self.protocol).await;
            return answer.map_err(|error| refusal_of(&error));
        }
        let Kind::Split(how) = spec.kind else { return self.run_alone(request, spec).await };
        let places = self.places(spec, &request).ok_or(Refusal::Syntax)?;
        let mut parts = Vec::new();
        for part in parts_of(&request, &places, how) {
            parts.push(self.run_alone(part, spec).await?);
        }
        Ok(merge(how, &parts))
    }
}

/// What the commands of a transaction count for.
fn wrote(commands: &[Queued]) -> Wrote {
    commands.iter().map(|queued| Wrote::of(queued.spec)).fold(Wrote::default(), Wrote::and)
}

/// A transaction as one store gets it.
struct Batch {
    bytes: Bytes,
    /// Which command each element of EXEC's reply answers; `None`: a SELECT of the proxy's own.
    answered: Vec<Option<usize>>,
}

impl Batch {
    /// Those of MULTI and EXEC too.
    fn replies(&self) -> u32 {
        self.answered.len() as u32 + 2
    }
}

/// What SELECT answers in a transaction.
fn write_selected(out: &mut BytesMut, request: &Request) {
    match database(request.arg(1)) {
        Ok(_) => write::simple(out, "OK"),
        Err(text) => write::error(out, text),
    }
}

/// Whether two targets are databases of one server.
fn is_one_server(one: &Target, other: &Target) -> bool {
    matches!(
        (one, other),
        (Target::Standalone { .. }, Target::Standalone { .. }) | (Target::Peer { .. }, Target::Peer { .. })
    )
}

/// Whether a command may run in one transaction with keys on `target`: one without a key runs beside the standalone's only,
/// and a message is published where its subscribers are.
fn fits_beside(spec: &CommandSpec, target: &Target, channels: Side) -> bool {
    let side = if matches!(target, Target::Standalone { .. }) { Side::Standalone } else { Side::Cluster };
    match spec.kind {
        // The other proxy judges what goes there.
        _ if spec.name == "SELECT" || is_aside(spec) || matches!(target, Target::Peer { .. }) => true,
        // A shard channel has a slot of its own.
        Kind::Publish => channels == side && (side == Side::Standalone || spec.name == "PUBLISH"),
        _ => side == Side::Standalone || !matches!(spec.keys, command::Keys::None),
    }
}
