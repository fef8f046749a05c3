//! What happens with the requests for one key under one table. Pure.

use std::sync::Arc;

use crate::routing::{Ack, DualState, Key, Phase, Side, Table};

/// See the module.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names the provider, prefix or rest for the gate; the same in every table.
    pub route_hash: u64,
    pub phase: Phase,
    pub leader: Side,
    pub follower: Option<Side>,
    pub ack: Ack,
    /// What is known of the two stores, in a dual phase.
    pub dual: Option<Arc<DualState>>,
    /// The hash of the table's line that covers the key: what a flip of a range or a default closes.
    pub line_hash: u64,
}

impl Plan {
    /// Whether the key may be on its way from the follower to a leader that lacks it. A command outside of the lane asks that
    /// first: what arrived behind it would bring back what it has deleted.
    pub fn may_be_fetching(&self) -> bool {
        self.phase == Phase::DualCluster && self.dual.as_ref().is_some_and(|dual| dual.may_be_fetching())
    }

    /// The plan for a key of a database. One of a database that does not move is the standalone's, and no flip concerns it.
    pub fn of(table: &Table, db: u32, name: &[u8]) -> Self {
        if !table.databases().is_moving(db) {
            let (phase, leader, ack) = (Phase::Standalone, Side::Standalone, table.ack());
            return Self { route_hash: 0, phase, leader, follower: None, ack, dual: None, line_hash: 0 };
        }
        let (route, route_hash) = table.route_of(name);
        Self {
            route_hash,
            phase: route.phase,
            leader: route.phase.leader(),
            follower: route.phase.follower(),
            ack: table.ack(),
            dual: route.dual.clone(),
            line_hash: route.hash,
        }
    }

    /// The plan for a key.
    pub fn of_key(table: &Table, key: &Key) -> Self {
        Self::of(table, key.db, &key.name)
    }

    /// The route's [`DualState::generation`]; 0 without a follower.
    pub fn generation(&self) -> u32 {
        self.dual.as_ref().map_or(0, |dual| dual.generation())
    }
}
