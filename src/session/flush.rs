//! FLUSHDB, FLUSHALL, MOVE and SWAPDB while keys of the database are, or may be, on two stores. Never more is removed than
//! what the caller's database maps to: on the cluster only keys of routes that have something there.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use crate::command::{self, CommandSpec};
use crate::dual::{ReplyTo, Target, refusal_of};
use crate::resp::refusal::Refusal;
use crate::resp::reply;
use crate::resp::request::Request;
use crate::resp::write;
use crate::routing::Side;
use crate::session::commands::Once;
use crate::session::local::DATABASES;
use crate::session::session::Session;

/// Keys that are removed at once: enough to hide a round trip.
const IN_FLIGHT: usize = 256;

impl Session {
    pub(super) async fn flush(&mut self, request: &Request, spec: &'static CommandSpec) -> Result<Bytes, Refusal> {
        match spec.name {
            "FLUSHDB" | "FLUSHALL" => self.remove_all(request, spec).await,
            "MOVE" => self.move_key(request, spec).await,
            name => Err(Refusal::NotSupported {
                command: name.to_lowercase(),
                reason: "keys of the database that moves are on two stores",
            }),
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
        let is_led_by_cluster = engine.table().routes().iter().any(|route| route.phase.leader() == Side::Cluster);
        if !is_led_by_cluster {
            // Atomic for whoever looks, for the standalone answers every reader; then the followers' copies.
            let target = Target::Standalone { db: self.db };
            let answer =
                engine.call(&target, request.bytes(), self.protocol).await.map_err(|error| refusal_of(&error))?;
            if !reply::is_error(&answer) {
                self.resync_cluster().await?;
            }
            return Ok(answer);
        }
        let keys = self.all_keys(None).await?;
        for some in keys.chunks(IN_FLIGHT) {
            self.remove(some).await?;
        }
        if spec.name == "FLUSHALL" {
            self.flush_other_databases().await?;
        }
        let mut out = BytesMut::new();
        write::simple(&mut out, "OK");
        Ok(out.freeze())
    }

    /// Has the lanes look at every key that a dual route has on the cluster: the leader lacks it now, so it goes.
    async fn resync_cluster(&self) -> Result<(), Refusal> {
        let engine = &self.shared.engine;
        for address in engine.stores().primaries() {
            for keys in self.own_keys_of_node(&address).await?.chunks(IN_FLIGHT) {
                let dual = keys.iter().filter(|key| engine.plan(key).follower.is_some());
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
    async fn remove(&self, keys: &[Bytes]) -> Result<(), Refusal> {
        let Some(spec) = command::lookup(b"DEL") else { return Err(Refusal::UnknownCommand("DEL".into())) };
        let send = |key: &Bytes| {
            let (sender, receiver) = oneshot::channel();
            let to = ReplyTo { port: Rc::new(Once(RefCell::new(Some(sender)))), seq: 0 };
            self.shared.engine.submit(Request::from_args(&[&b"DEL"[..], key]), spec, &[1], self.protocol, to);
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
        let mut link = self.private_link(&Target::Standalone { db: self.shared.engine.db() }).await?;
        for db in (0..DATABASES).filter(|db| *db != self.shared.engine.db()) {
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

    /// A key changes its database: only on the standalone, and if it is the one that moves its lane hears of it.
    async fn move_key(&mut self, request: &Request, spec: &'static CommandSpec) -> Result<Bytes, Refusal> {
        let engine = self.shared.engine.clone();
        let to: Option<u32> = std::str::from_utf8(request.arg(2)).ok().and_then(|text| text.parse().ok());
        let key = Bytes::copy_from_slice(request.arg(1));
        if !self.is_moving_db() && to != Some(engine.db()) {
            let target = Target::Standalone { db: self.db };
            return engine.call(&target, request.bytes(), self.protocol).await.map_err(|error| refusal_of(&error));
        }
        if engine.plan(&key).leader == Side::Cluster {
            let reason = "the cluster leads this key, and a cluster has one database only";
            return Err(Refusal::NotSupported { command: "move".into(), reason });
        }
        self.run_guarded(request, spec, &[key]).await
    }
}
