//! What belongs to a route that another proxy serves, and the way there.

use std::time::Duration;

use bytes::Bytes;

use crate::dual::engine::{Caller, Engine, EngineWaiter};
use crate::dual::gate::Ticket;
use crate::dual::guard::Guard;
use crate::dual::lane::Outcome;
use crate::resp::refusal::Refusal;
use crate::routing::{Plan, Table};
use crate::store::Role;

/// How long a command waits for somebody to hold the lease: a former holder's ends by itself meanwhile.
const PATIENCE: Duration = Duration::from_secs(15);

/// Counts a command in that runs at another proxy, until it is dropped.
pub struct Away {
    engine: Engine,
    tickets: Vec<Ticket>,
}

impl Drop for Away {
    fn drop(&mut self) {
        for ticket in self.tickets.drain(..) {
            self.engine.0.pause.sessions.leave(ticket);
        }
    }
}

impl Engine {
    /// Whether this proxy serves every route itself; the cheap question before [`Engine::is_elsewhere`].
    #[inline]
    pub fn is_holder(&self) -> bool {
        self.0.stores.fence().is_holder()
    }

    /// Whether another proxy serves the route of a key: it is dual, in the table that the holder has or in the one that it may
    /// still go by.
    pub fn is_elsewhere(&self, db: u32, name: &[u8]) -> bool {
        if self.is_holder() {
            return false;
        }
        let table = self.0.table.borrow();
        if !table.databases().is_moving(db) {
            return false;
        }
        let phase = |table: &Table| Plan::of(table, db, name).phase;
        match self.0.stores.fence().role() {
            Role::Holds => false,
            Role::Defers => true,
            Role::Waits | Role::Follows => {
                let own = phase(&table);
                own.is_dual() || self.0.desk.leaving.load().as_ref().is_some_and(|leaving| phase(leaving) != own)
            }
        }
    }

    /// Whether some key of a database may be another proxy's.
    pub fn is_partly_elsewhere(&self) -> bool {
        let table = self.0.table.borrow();
        let has_dual = |table: &Table| table.routes().iter().any(|route| route.dual.is_some());
        match self.0.stores.fence().role() {
            Role::Holds => false,
            Role::Defers => true,
            Role::Waits | Role::Follows => has_dual(&table) || self.0.desk.leaving.load().is_some(),
        }
    }

    /// Waits until some proxy is known to hold the lease. `Err`: there is none.
    pub async fn find_holder(&self) -> Result<(), Refusal> {
        let found = async {
            loop {
                let leased = self.0.leased.notified();
                if self.is_holder() || self.0.stores.fence().peer().is_some() {
                    return;
                }
                leased.await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.map_err(|_| Refusal::NoHolder)
    }

    /// Sends a request to the proxy that holds the lease. The gates are the caller's to look at, before.
    pub fn submit_away(&self, request: Bytes, routes: u64, caller: Caller) {
        self.0.desk.note_forwarded();
        let Caller { db, protocol, to } = caller;
        let ticket = self.0.pause.sessions.enter(routes);
        let waiter = EngineWaiter::Direct { engine: self.0.clone(), to, ticket };
        self.0.stores.peer(db, request, 1, Some(protocol), waiter);
    }

    /// Counts in a command that runs at the proxy that holds the lease.
    pub fn go_away<'k>(&self, keys: impl Iterator<Item = (u32, &'k [u8])>) -> Away {
        self.0.desk.note_forwarded();
        let tickets = keys.map(|(db, name)| self.0.pause.sessions.enter(self.plan_of(db, name).route_hash)).collect();
        Away { engine: self.clone(), tickets }
    }
}

/// A command that runs outside of the lanes, wherever that is.
pub enum Begun {
    Here(Guard),
    Away(Away),
}

impl Begun {
    /// Ends it; see [`Guard::finish`].
    pub async fn finish(self, outcome: Outcome) {
        match self {
            Self::Here(guard) => guard.finish(outcome).await,
            // What its keys have become is the holder's to know.
            Self::Away(_) => {}
        }
    }
}
