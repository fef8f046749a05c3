//! MULTI, EXEC, DISCARD, WATCH, UNWATCH: commands are queued in the proxy and planned at EXEC.
//!
//! Everything led by the standalone, or in one slot, is one real transaction there. What spans more is split only where
//! each command stands for itself and nothing is watched; else it is refused before anything ran. WATCH keeps a connection
//! of its own to the store of its keys until the transaction ends.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use crate::audit::Kind as Unlike;
use crate::command::{self, CommandSpec, Kind, Split};
use crate::dual::lane::Outcome;
use crate::dual::{ReplyTo, Target, refusal_of};
use crate::resp::refusal::Refusal;
use crate::resp::request::Request;
use crate::resp::{reply, write};
use crate::routing::Side;
use crate::session::commands::{Once, outcome_of};
use crate::session::session::Session;
use crate::session::split::{merge, parts_of};
use crate::store::{LinkError, PrivateLink, StoreSide};

/// Commands that one transaction may queue.
const QUEUE_MAX: usize = 1 << 16;

/// What a session has begun.
#[derive(Default)]
pub struct Transaction {
    queue: Option<Vec<(Request, &'static CommandSpec)>>,
    is_spoiled: bool,
    watch: Option<Watch>,
}

struct Watch {
    link: PrivateLink,
    target: Target,
    keys: Vec<Bytes>,
}

impl Transaction {
    /// Whether commands are queued instead of run.
    pub fn is_queueing(&self) -> bool {
        self.queue.is_some()
    }

    /// A command could not be queued: EXEC will refuse.
    pub fn spoil(&mut self) {
        self.is_spoiled = self.queue.is_some();
    }
}

impl Session {
    pub(super) fn queue(&mut self, request: Request, spec: &'static CommandSpec) {
        let refusal = match spec.kind {
            Kind::Refused(reason) => Some(Refusal::NotSupported { command: spec.name.to_lowercase(), reason }),
            Kind::PubSub | Kind::Local if !matches!(spec.name, "PING" | "ECHO" | "SELECT") => {
                Some(Refusal::Text(format!("Command '{}' not allowed inside a transaction", spec.name.to_lowercase())))
            }
            _ => None,
        };
        if let Some(refusal) = refusal {
            self.transaction.spoil();
            return self.refuse(refusal);
        }
        let Some(queue) = &mut self.transaction.queue else { return };
        if queue.len() >= QUEUE_MAX {
            self.transaction.spoil();
            return self.refuse(Refusal::Text("too many commands in one transaction".into()));
        }
        queue.push((request, spec));
        self.client.queued.fetch_add(1, Ordering::Relaxed);
        self.answer(b"+QUEUED\r\n");
    }

    pub(super) async fn transaction_command(&mut self, request: Request, spec: &'static CommandSpec) {
        let text = |text: &str| Refusal::Text(text.into());
        match spec.name {
            "MULTI" if self.transaction.is_queueing() => self.refuse(text("MULTI calls can not be nested")),
            "MULTI" => {
                self.transaction.queue = Some(Vec::new());
                self.transaction.is_spoiled = false;
                self.client.queued.store(0, Ordering::Relaxed);
                self.answer(b"+OK\r\n");
            }
            "DISCARD" if !self.transaction.is_queueing() => self.refuse(text("DISCARD without MULTI")),
            "DISCARD" => {
                self.reset_transaction();
                self.answer(b"+OK\r\n");
            }
            "WATCH" if self.transaction.is_queueing() => self.refuse(text("WATCH inside MULTI is not allowed")),
            "WATCH" => {
                self.replies.settle(0).await;
                let outcome = self.watch(&request).await;
                self.answer_with(outcome);
            }
            "UNWATCH" => {
                self.transaction.watch = None;
                self.answer(b"+OK\r\n");
            }
            _ if !self.transaction.is_queueing() => self.refuse(text("EXEC without MULTI")),
            _ => {
                self.replies.settle(0).await;
                let transaction = std::mem::take(&mut self.transaction);
                self.client.queued.store(-1, Ordering::Relaxed);
                let outcome = self.exec(transaction).await;
                self.answer_with(outcome);
            }
        }
    }

    /// Forgets what was queued and watched.
    pub(super) fn reset_transaction(&mut self) {
        self.transaction = Transaction::default();
        self.client.queued.store(-1, Ordering::Relaxed);
    }

    async fn watch(&mut self, request: &Request) -> Result<Bytes, Refusal> {
        let mut keys: Vec<Bytes> = (1..request.len()).map(|index| Bytes::copy_from_slice(request.arg(index))).collect();
        if let Some(watch) = &self.transaction.watch {
            keys.extend(watch.keys.iter().cloned());
        }
        if self.is_moving_db() {
            self.audit_together("watch", Unlike::CrossWatch, &keys.iter().map(|key| &key[..]).collect::<Vec<_>>());
        }
        let target = self.target_now("watch", &keys)?;
        let mut link = match self.transaction.watch.take() {
            Some(watch) if watch.target == target => watch.link,
            Some(_) => {
                return Err(Refusal::CrossSlot {
                    command: "watch".into(),
                    reason: "watched keys must be on one store and slot",
                });
            }
            None => self.private_link(&target).await?,
        };
        let bytes = match command::lookup(b"WATCH") {
            Some(spec) => self.shared.engine.request_for(&target, spec, request),
            None => request.bytes().clone(),
        };
        let answer = link.call(&bytes).await.map_err(|_| Refusal::StoreDown)?;
        self.transaction.watch = Some(Watch { link, target, keys });
        Ok(answer)
    }

    /// Where these keys are led now.
    pub(super) fn target_now(&self, command: &str, keys: &[Bytes]) -> Result<Target, Refusal> {
        let engine = &self.shared.engine;
        if !self.is_moving_db() {
            return Ok(Target::Standalone { db: self.db });
        }
        self.target_of(command, keys, keys.iter().map(|key| engine.plan(key).leader))
    }

    /// A connection of the client's own to a target.
    pub(super) async fn private_link(&self, target: &Target) -> Result<PrivateLink, Refusal> {
        let stores = self.shared.engine.stores();
        let side = if matches!(target, Target::Standalone { .. }) { StoreSide::Standalone } else { StoreSide::Cluster };
        let place = stores.private_place(side).ok_or(Refusal::NoLinkFree)?;
        let endpoint = match target {
            Target::Standalone { db } => Some(stores.standalone_endpoint(*db)),
            Target::Slot(slot) => stores.slot_endpoint(*slot),
            Target::Node(_) => None,
        };
        let endpoint = endpoint.ok_or(Refusal::StoreDown)?;
        match PrivateLink::connect(&endpoint, self.protocol).await {
            Ok(link) => Ok(link.at(place)),
            Err(LinkError::Down(reason)) if reason.contains("max number of clients") => Err(Refusal::NoLinkFree),
            Err(_) => Err(Refusal::StoreDown),
        }
    }

    async fn exec(&mut self, transaction: Transaction) -> Result<Bytes, Refusal> {
        let Transaction { queue, is_spoiled, watch } = transaction;
        let commands = queue.unwrap_or_default();
        if is_spoiled {
            return Err(Refusal::Verbatim("EXECABORT Transaction discarded because of previous errors.".into()));
        }
        let mut keys: Vec<Bytes> = Vec::new();
        let is_on_two = self.is_moving_db() && !self.shared.engine.table().all_standalone();
        for (request, spec) in &commands {
            if is_on_two && matches!(spec.kind, Kind::Scan | Kind::KeyspaceWide) {
                return Err(Refusal::NotSupported {
                    command: spec.name.to_lowercase(),
                    reason: "in a transaction it would see one store only, and keys of this database are on two",
                });
            }
            let found = command::keys_of(spec, request).ok_or(Refusal::Syntax)?;
            keys.extend(found.iter().map(|index| Bytes::copy_from_slice(request.arg(*index))));
        }
        if let Some(watch) = &watch {
            keys.extend(watch.keys.iter().cloned());
        }
        if !self.is_moving_db() {
            keys.clear();
        }
        let unlike = if watch.is_some() { Unlike::CrossWatch } else { Unlike::CrossTransaction };
        self.audit_together("exec", unlike, &keys.iter().map(|key| &key[..]).collect::<Vec<_>>());
        // Planned when nothing of it flips: whether it is whole on one store depends on the table.
        let publishes = commands.iter().any(|(_, spec)| spec.kind == Kind::Publish);
        let engine = self.shared.engine.clone();
        while engine.has_closed()
            && ((publishes && engine.holds_publishers()) || keys.iter().any(|key| engine.is_gated(&engine.plan(key))))
        {
            engine.opened().await;
        }
        if publishes {
            engine.subscribed().await;
        }
        let whole = self.target_now("exec", &keys);
        let channels = self.shared.engine.table().pubsub().leader();
        let fits =
            whole.as_ref().is_ok_and(|target| commands.iter().all(|(_, spec)| fits_beside(spec, target, channels)));
        match (whole, watch) {
            (Ok(_), None) if fits => self.exec_whole(&commands, &keys).await,
            (whole, Some(watch)) if fits => self.exec_watched(&commands, &keys, watch, whole?).await,
            (whole, Some(_)) => Err(whole.err().unwrap_or(Refusal::CrossSlot {
                command: "exec".into(),
                reason: "a watched transaction cannot be split over stores",
            })),
            (_, None) => self.exec_split(commands).await,
        }
    }

    /// MULTI … EXEC as one piece on the store that leads all of its keys.
    async fn exec_whole(&self, commands: &[(Request, &'static CommandSpec)], keys: &[Bytes]) -> Result<Bytes, Refusal> {
        let engine = &self.shared.engine;
        let guard = engine.begin(keys).await?;
        let target = match self.target_of("exec", keys, guard.plans.iter().map(|plan| plan.leader)) {
            Ok(target) => target,
            Err(refusal) => {
                guard.finish(Outcome::Refused).await;
                return Err(refusal);
            }
        };
        let (batch, replies) = self.batch_of(commands, &target);
        let answer = engine.call_batch(&target, &batch, replies, self.protocol).await;
        guard.finish(outcome_of(&answer)).await;
        answer.map(|frame| self.own_answers(commands, &target, frame)).map_err(|error| refusal_of(&error))
    }

    /// MULTI, the commands as the target is to get them, EXEC, and how many replies they have.
    fn batch_of(&self, commands: &[(Request, &'static CommandSpec)], target: &Target) -> (Bytes, u32) {
        let mut batch =
            BytesMut::with_capacity(commands.iter().map(|(request, _)| request.bytes().len()).sum::<usize>() + 64);
        write::command(&mut batch, &[b"MULTI"]);
        for (request, spec) in commands {
            batch.extend_from_slice(&self.shared.engine.request_for(target, spec, request));
        }
        write::command(&mut batch, &[b"EXEC"]);
        (batch.freeze(), commands.len() as u32 + 2)
    }

    /// EXEC's reply with the application's names in it, and with its own subscribers among the receivers of messages.
    fn own_answers(&self, commands: &[(Request, &'static CommandSpec)], target: &Target, frame: Bytes) -> Bytes {
        let engine = &self.shared.engine;
        let is_tagged = engine.table().is_tagged();
        let differs = |spec: &CommandSpec| spec.kind == Kind::Publish || (is_tagged && command::tells_keys(spec));
        if !commands.iter().any(|(_, spec)| differs(spec)) {
            return frame;
        }
        let Some(cells) = reply::elements(&frame).filter(|cells| cells.len() == commands.len()) else { return frame };
        let mut out = BytesMut::with_capacity(frame.len());
        write::array(&mut out, cells.len());
        for (cell, (request, spec)) in cells.into_iter().zip(commands) {
            let answer = match spec.kind {
                Kind::Publish => engine.heard(target, request, frame.slice(cell)),
                _ => engine.reply_from(target, spec, request, frame.slice(cell)),
            };
            out.extend_from_slice(&answer);
        }
        out.freeze()
    }

    /// EXEC on the connection that watches. A route that flipped since answers nil, which every client retries.
    async fn exec_watched(
        &mut self,
        commands: &[(Request, &'static CommandSpec)],
        keys: &[Bytes],
        mut watch: Watch,
        target: Target,
    ) -> Result<Bytes, Refusal> {
        let nil = || {
            let mut out = BytesMut::new();
            write::null_array(&mut out, self.protocol);
            out.freeze()
        };
        if target != watch.target {
            return Ok(nil());
        }
        let guard = self.shared.engine.begin(keys).await?;
        let is_moved = self.target_now("exec", keys).ok().as_ref() != Some(&watch.target);
        let (batch, replies) = self.batch_of(commands, &target);
        let answer = async {
            if is_moved {
                return Ok(nil());
            }
            watch.link.send(&batch).await?;
            let mut last = watch.link.receive().await?;
            for _ in 1..replies {
                last = watch.link.receive().await?;
            }
            Ok::<_, LinkError>(last)
        };
        let answer = answer.await;
        guard.finish(outcome_of(&answer)).await;
        answer.map(|frame| self.own_answers(commands, &target, frame)).map_err(|error| refusal_of(&error))
    }

    /// Commands that stand for themselves, one after the other, each where its keys are.
    async fn exec_split(&mut self, commands: Vec<(Request, &'static CommandSpec)>) -> Result<Bytes, Refusal> {
        let engine = self.shared.engine.clone();
        for (request, spec) in &commands {
            let views = self.keys(spec, request).ok_or(Refusal::Syntax)?;
            let stands_alone = match spec.kind {
                _ if !self.is_moving_db() => true,
                Kind::Split(_) | Kind::Publish | Kind::Keyless | Kind::Local => true,
                Kind::Keyed => engine.is_simple(&views),
                _ => false,
            };
            if !stands_alone {
                return Err(Refusal::CrossSlot {
                    command: "exec".into(),
                    reason: "its commands have keys on several slots or stores, and one of them needs several at once",
                });
            }
        }
        let mut out = BytesMut::new();
        write::array(&mut out, commands.len());
        for (request, spec) in commands {
            match self.run_one(request, spec).await {
                Ok(frame) => out.extend_from_slice(&frame),
                Err(refusal) => refusal.write(&mut out),
            }
        }
        Ok(out.freeze())
    }

    /// How a command of the database that moves is split; elsewhere none is.
    fn splits(&self, spec: &CommandSpec) -> Option<Split> {
        match spec.kind {
            Kind::Split(how) if self.is_moving_db() => Some(how),
            _ => None,
        }
    }

    async fn run_one(&mut self, request: Request, spec: &'static CommandSpec) -> Result<Bytes, Refusal> {
        let Some(how) = self.splits(spec) else {
            if spec.kind == Kind::Publish {
                let (sender, receiver) = oneshot::channel();
                let to = ReplyTo { port: Rc::new(Once(RefCell::new(Some(sender)))), seq: 0 };
                if spec.name == "PUBSUB" {
                    return self.shared.engine.ask_channels(&request, self.protocol).await;
                }
                self.shared.engine.publish(request, self.protocol, to);
                return receiver.await.unwrap_or(Err(Refusal::UnknownOutcome));
            }
            if matches!(spec.keys, command::Keys::None) || !self.is_moving_db() {
                let target = Target::Standalone { db: self.db };
                let answer = self.shared.engine.call(&target, request.bytes(), self.protocol).await;
                return answer.map_err(|error| refusal_of(&error));
            }
            return self.run_alone(request, spec).await;
        };
        let keys = command::keys_of(spec, &request).ok_or(Refusal::Syntax)?;
        let mut parts = Vec::new();
        for part in parts_of(&request, &keys, how) {
            parts.push(self.run_alone(part, spec).await?);
        }
        Ok(merge(how, &parts))
    }
}

/// Whether a command may run in one transaction with keys on `target`: one without a key runs beside the standalone's only,
/// and a message is published where its subscribers are.
fn fits_beside(spec: &CommandSpec, target: &Target, channels: Side) -> bool {
    let side = if matches!(target, Target::Standalone { .. }) { Side::Standalone } else { Side::Cluster };
    match spec.kind {
        // A shard channel has a slot of its own.
        Kind::Publish => channels == side && (side == Side::Standalone || spec.name == "PUBLISH"),
        _ => side == Side::Standalone || !matches!(spec.keys, command::Keys::None),
    }
}
