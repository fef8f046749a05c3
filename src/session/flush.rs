//! FLUSHDB, FLUSHALL, MOVE and SWAPDB, and COPY from one database to another, while keys are, or may be, on two stores. Never
//! more is removed than what the caller's database maps to: on the cluster only keys of routes that have something there.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use crate::command::{self, CommandSpec};
use crate::dual::{Caller, ReplyTo, Target, refusal_of};
use crate::resp::refusal::Refusal;
use crate::resp::reply;
use crate::resp::request::Request;
use crate::resp::write;
use crate::routing::{DATABASES, Key, Side};
use crate::session::commands::Once;
use crate::session::local::database;
use crate::session::session::Session;

/// Keys that are removed at once: enough to hide a round trip.
const IN_FLIGHT: usize = 256;

impl Session {
    pub(super) async fn flush(&mut self, request: &Request, spec: &'static CommandSpec) -> Result<Bytes, Refusal> {
        match spec.name {
            "FLUSHDB" | "FLUSHALL" => self.remove_all(request, spec).await,
            "MOVE" => self.move_key(request, spec).await,
            _ => self.swap(request).await,
        }
    }

    async fn remove_all(&mut self, request: &Request, spec: &CommandSpec) -> Result<Bytes, Refusal> {
        let is_understood = match request.len() {
            1 => true,
            2 => [&b"SYNC"[..], b"ASYNC"].iter().any(|word| request.arg(1).eq_ignore_ascii_case(word)),
            _ => false,
        };
        if !is_understood {
            return Err(Refusal::Syntax);
        }
        let engine = self.shared.engine.clone();
        // No route flips meanwhile: what is gone from one leader must not come back from another.
        let _counted_in = engine.begin_whole().await;
        let table = engine.table();
        let flushed: Vec<u32> = match spec.name {
            "FLUSHALL" => table.databases().moving().collect(),
            _ => Some(self.db).filter(|db| table.databases().is_moving(*db)).into_iter().collect(),
        };
        let is_led_by_cluster = table.routes().iter().any(|route| route.phase.leader() == Side::Cluster);
        if flushed.is_empty() || !is_led_by_cluster {
            // Atomic for whoever looks, for the standalone answers every reader; then the followers' copies.
            let answer = self.on_standalone(request).await?;
            if !reply::is_error(&answer) && !flushed.is_empty() && !table.all_standalone() {
                self.resync_cluster(&flushed).await?;
            }
            return Ok(answer);
        }
        for db in flushed {
            for some in self.all_keys(db, None).await?.chunks(IN_FLIGHT) {
                self.remove(db, some).await?;
            }
        }
        if spec.name == "FLUSHALL" {
            self.flush_other_databases().await?;
        }
        let mut out = BytesMut::new();
        write::simple(&mut out, "OK");
        Ok(out.freeze())
    }

    /// As the client sent it, from the client's database.
    async fn on_standalone(&self, request: &Request) -> Result<Bytes, Refusal> {
        let (engine, target) = (&self.shared.engine, Target::Standalone { db: self.db });
        engine.call(&target, request.bytes(), self.protocol).await.map_err(|error| refusal_of(&error))
    }

    /// Has the lanes look at every key that a dual route has on the cluster: the leader lacks it now, so it goes.
    async fn resync_cluster(&self, flushed: &[u32]) -> Result<(), Refusal> {
        let engine = &self.shared.engine;
        for address in engine.stores().primaries() {
            for keys in self.own_keys_of_node(&address).await?.chunks(IN_FLIGHT) {
                let is_meant = |key: &&Key| flushed.contains(&key.db) && engine.plan(key).follower.is_some();
                let dual = keys.iter().filter(is_meant);
                let waits: Vec<_> = dual.map(|key| engine.resync(key.clone())).collect();
                for wait in waits {
                    // A copy that failed is open divergence, and repaired.
                    let _ = wait.await;
                }
            }
        }
        Ok(())
    }

    /// DEL of each, as if clients had asked for it.
    async fn remove(&self, db: u32, keys: &[Bytes]) -> Result<(), Refusal> {
        let Some(spec) = command::lookup(b"DEL") else { return Err(Refusal::UnknownCommand("DEL".into())) };
        let send = |key: &Bytes| {
            let (sender, receiver) = oneshot::channel();
            let to = ReplyTo { port: Rc::new(Once(RefCell::new(Some(sender)))), seq: 0 };
            let caller = Caller { db, protocol: self.protocol, to };
            self.shared.engine.submit(Request::from_args(&[&b"DEL"[..], key]), spec, &[(1, db)], caller);
            receiver
        };
        let waits: Vec<_> = keys.iter().map(send).collect();
        for wait in waits {
            let answer = wait.await.unwrap_or(Err(Refusal::UnknownOutcome))?;
            if reply::is_error(&answer) {
                return Err(Refusal::Verbatim(String::from_utf8_lossy(reply::error_text(&answer)).into_owned()));
            }
        }
        Ok(())
    }

    async fn flush_other_databases(&self) -> Result<(), Refusal> {
        let engine = &self.shared.engine;
        let mut link = self.private_link(&Target::Standalone { db: engine.db() }).await?;
        for db in (0..DATABASES).filter(|db| !engine.is_moving(*db)) {
            let select = crate::dual::effect::command(&[b"SELECT", db.to_string().as_bytes()]);
            let selected = link.call(&select).await.map_err(|error| refusal_of(&error))?;
            if reply::is_error(&selected) {
                // The standalone has no more of them.
                break;
            }
            let flush = crate::dual::effect::command(&[b"FLUSHDB"]);
            link.call(&flush).await.map_err(|error| refusal_of(&error))?;
        }
        Ok(())
    }

    /// A key changes its database, on the store that leads both names of it; on the cluster only where they share a slot.
    async fn move_key(&mut self, request: &Request, spec: &'static CommandSpec) -> Result<Bytes, Refusal> {
        let Ok(to) = database(request.arg(2)) else { return self.on_standalone(request).await };
        let keys = [self.db, to].map(|db| Key::copied(db, request.arg(1)));
        match keys[0] == keys[1] {
            // Redis says what is wrong with it.
            true => self.on_standalone(request).await,
            false => self.run_guarded(request, spec, &keys).await,
        }
    }

    /// Two databases change places, which the standalone alone can do.
    async fn swap(&mut self, request: &Request) -> Result<Bytes, Refusal> {
        let engine = self.shared.engine.clone();
        let (Ok(one), Ok(other)) = (database(request.arg(1)), database(request.arg(2))) else {
            // The standalone says what is wrong.
            return self.on_standalone(request).await;
        };
        let _counted_in = engine.begin_whole().await;
        let is_moving = engine.is_moving(one) || engine.is_moving(other);
        if one != other && is_moving && !engine.table().all_standalone() {
            return Err(Refusal::NotSupported {
                command: "swapdb".into(),
                reason: "keys of a database that moves are on two stores",
            });
        }
        self.on_standalone(request).await
    }
}
