//! Commands on keys whose routes another proxy serves: they go there whole. It splits them, or refuses them, by its own table.

use bytes::Bytes;

use crate::command::CommandSpec;
use crate::dual::lane::Outcome;
use crate::dual::{Begun, Target, refusal_of};
use crate::resp::refusal::Refusal;
use crate::resp::request::Request;
use crate::routing::Key;
use crate::session::session::{Session, views_at};
use crate::store::private_link;

/// What is to be done with a command that has keys.
pub(super) enum Way {
    Here(Request),
    /// It was sent, or refused.
    Gone,
}

impl Session {
    /// Whether the client is another proxy, which sends what this one is to serve itself.
    fn is_proxy(&self) -> bool {
        let name = self.client.names().name;
        std::str::from_utf8(&name).ok().and_then(private_link::companion_of).is_some()
    }

    /// Whether another proxy serves any of the keys. Waits until somebody holds the lease.
    pub(super) async fn goes_away(&self, keys: &[(u32, &[u8])]) -> Result<bool, Refusal> {
        let engine = &self.shared.engine;
        while keys.iter().any(|(db, name)| engine.is_elsewhere(*db, name)) {
            if engine.stores().fence().peer().is_none() {
                engine.find_holder().await?;
                continue;
            }
            // A second station would make a circle possible.
            return if self.is_proxy() { Err(Refusal::NotHolder) } else { Ok(true) };
        }
        Ok(false)
    }

    /// Sends a command away if it belongs there.
    pub(super) async fn send_away(&self, request: Request, places: &[(usize, u32)]) -> Way {
        let engine = &self.shared.engine;
        loop {
            match self.goes_away(&views_at(&request, places)).await {
                Ok(false) => return Way::Here(request),
                Err(refusal) => self.refuse(refusal),
                Ok(true) if engine.has_closed() && self.is_gated(&request, places) => {
                    self.wait_open(&request, places).await;
                    continue;
                }
                Ok(true) => {
                    let route =
                        places.first().map_or(0, |(index, db)| engine.plan_of(*db, request.arg(*index)).route_hash);
                    engine.submit_away(request.into_bytes(), route, self.caller());
                }
            }
            return Way::Gone;
        }
    }

    /// A command that concerns every key: away, if any of them is.
    pub(super) async fn keyspace_away(&self, request: &Request) -> Option<Result<Bytes, Refusal>> {
        let engine = &self.shared.engine;
        while engine.is_partly_elsewhere() {
            if engine.stores().fence().peer().is_none() {
                if let Err(refusal) = engine.find_holder().await {
                    return Some(Err(refusal));
                }
                continue;
            }
            if self.is_proxy() {
                return Some(Err(Refusal::NotHolder));
            }
            let _away = engine.go_away(std::iter::empty());
            let answer = engine.call(&Target::Peer { db: self.db }, request.bytes(), self.protocol).await;
            return Some(answer.map_err(|error| refusal_of(&error)));
        }
        None
    }

    /// Counts a command outside of the lanes in, here or for the proxy that serves its keys.
    pub(super) async fn begin(&self, keys: &[Key]) -> Result<Begun, Refusal> {
        match self.begin_away(keys).await? {
            Some(away) => Ok(away),
            None => self.shared.engine.begin(keys).await.map(Begun::Here),
        }
    }

    /// The same for a command that waits for others to write.
    pub(super) async fn begin_blocking(&self, keys: &[Key]) -> Result<Begun, Refusal> {
        match self.begin_away(keys).await? {
            Some(away) => Ok(away),
            None => self.shared.engine.begin_blocking(keys).await.map(Begun::Here),
        }
    }

    async fn begin_away(&self, keys: &[Key]) -> Result<Option<Begun>, Refusal> {
        let engine = &self.shared.engine;
        if engine.is_holder() {
            return Ok(None);
        }
        let views: Vec<(u32, &[u8])> = keys.iter().map(|key| (key.db, &key.name[..])).collect();
        while self.goes_away(&views).await? {
            if keys.iter().any(|key| engine.is_gated(&engine.plan(key))) {
                engine.opened().await;
                continue;
            }
            return Ok(Some(Begun::Away(engine.go_away(views.iter().copied()))));
        }
        Ok(None)
    }

    /// Where a command that was counted in runs; its end, if nowhere.
    pub(super) async fn place_of(&self, begun: Begun, command: &str, keys: &[Key]) -> Result<(Begun, Target), Refusal> {
        let Begun::Here(guard) = &begun else { return Ok((begun, Target::Peer { db: self.db })) };
        match self.target_of(command, keys, guard.plans.iter().map(|plan| plan.leader)) {
            Ok(target) => Ok((begun, target)),
            Err(refusal) => {
                begun.finish(Outcome::Refused).await;
                Err(refusal)
            }
        }
    }

    /// Whether some of the keys have a follower, so that nothing may be written without the lease.
    pub(super) fn needs_lease(&self, keys: &[Key]) -> bool {
        keys.iter().any(|key| self.shared.engine.plan(key).follower.is_some())
    }

    /// Whether a command on a connection of its own may be sent now.
    pub(super) fn may_send(&self, target: &Target, keys: &[Key]) -> bool {
        let is_away = matches!(target, Target::Peer { .. });
        is_away || !self.needs_lease(keys) || self.shared.engine.stores().fence().is_holder_now()
    }

    /// Whether the keys of a command that waits are served by another proxy now, or here again.
    pub(super) fn belongs_elsewhere(&self, target: &Target, keys: &[Key]) -> bool {
        let engine = &self.shared.engine;
        let is_away = matches!(target, Target::Peer { .. });
        keys.iter().any(|key| engine.is_elsewhere(key.db, &key.name)) != is_away
    }

    /// What a script without keys may touch is where keys without a provider are.
    pub(super) async fn keyless_away(
        &self,
        request: &Request,
        spec: &'static CommandSpec,
    ) -> Option<Result<Bytes, Refusal>> {
        let nothing = Key { name: Bytes::new(), db: self.db };
        match self.begin_away(&[nothing]).await {
            Err(refusal) => Some(Err(refusal)),
            Ok(None) => None,
            Ok(Some(_away)) => {
                let answer = self.call_healed(&Target::Peer { db: self.db }, spec, request).await;
                Some(answer.map_err(|error| refusal_of(&error)))
            }
        }
    }
}
