//! What becomes known of dual routes: what a walk has found out, and what puts it in doubt again.

use std::collections::{HashMap, HashSet};

use crate::dual::adopt::Adopter;
use crate::dual::remembered::snapshot_of;
use crate::routing::{Coverage, Route, RouteName, Table};

/// What must not change while a walk proves something of a route: that it was not flipped, and that no doubt came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    since: u64,
    generation: u32,
}

impl Mark {
    /// That of a route now; `None` without a follower.
    pub fn of(route: &Route) -> Option<Self> {
        let dual = route.dual.as_ref()?;
        Some(Self { since: route.since, generation: dual.generation() })
    }
}

/// Whether a route stays in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    Stays,
    Ends,
}

impl Adopter {
    /// Puts every dual route in doubt if a store may have lost something since this was asked last.
    pub async fn note_loss(&self) {
        let _turn = self.turn.lock().await;
        self.note_loss_in(&[&self.table.load_full()]).await;
    }

    /// Puts every dual route in doubt, whatever was known of it.
    pub async fn doubt_all(&self) {
        let _turn = self.turn.lock().await;
        self.doubt_in(&[&self.table.load_full()], |_| true).await;
    }

    /// Puts some dual routes in doubt.
    pub async fn doubt(&self, routes: &[RouteName]) {
        let _turn = self.turn.lock().await;
        self.doubt_in(&[&self.table.load_full()], |route| routes.contains(&route.name)).await;
    }

    /// The first of the tables is the running one.
    pub(super) async fn note_loss_in(&self, tables: &[&Table]) {
        if self.loss.take() && self.doubt_in(tables, |_| true).await > 0 {
            tracing::warn!("what a store may have lost is copied again: a backfill of every dual route begins now");
        }
    }

    /// Gives how many routes are concerned.
    async fn doubt_in(&self, tables: &[&Table], is_in: impl Fn(&Route) -> bool) -> usize {
        let duals = |table: &Table| {
            let routes = table.routes().iter().filter(|route| is_in(route));
            routes.filter_map(|route| route.dual.clone()).collect::<Vec<_>>()
        };
        let is_news = duals(tables[0]).iter().any(|dual| !dual.is_in_doubt());
        tables.iter().flat_map(|table| duals(table)).for_each(|dual| dual.set_in_doubt(true));
        let routes = duals(tables[0]).len();
        if is_news {
            let all = tables[0].routes().iter().filter(|route| route.dual.is_some()).count();
            match routes == all {
                true => tracing::warn!(routes, "every dual route is in doubt until a backfill has gone through it"),
                false => tracing::warn!(routes, "these routes are in doubt until a backfill has gone through them"),
            }
            if let Err(error) = self.save(tables[0], false).await {
                tracing::error!(%error, "write state file: the doubt is remembered by this run only; an unclean end puts the routes in doubt all the same");
            }
        }
        routes
    }

    /// Notes what a whole walk has found out about routes that are still as they were marked; gives the others. It is on disk
    /// before it counts: were it the other way round, a crash could bring back the mode in which keys are fetched from a
    /// follower that has missed deletions since. One writing for all of them, because a walk over a thousand providers would
    /// else sync a thousand files.
    pub async fn set_knowledge(
        &self,
        marks: &HashMap<RouteName, Mark>,
        coverage: Coverage,
        doubt: Doubt,
    ) -> std::io::Result<Vec<RouteName>> {
        // Not beside an adoption: the state file would get the table that is about to go.
        let _turn = self.turn.lock().await;
        let table = self.table.load_full();
        let is_as_marked = |route: &&Route| Mark::of(route).is_some_and(|mark| marks.get(&route.name) == Some(&mark));
        let found: Vec<&Route> = table.routes().iter().filter(is_as_marked).collect();
        let names: HashSet<&RouteName> = found.iter().map(|route| &route.name).collect();
        let mut snapshot = snapshot_of(&table, false);
        for record in snapshot.routes.iter_mut().filter(|record| names.contains(&record.route)) {
            record.coverage = Some(coverage);
            record.in_doubt = doubt == Doubt::Stays;
        }
        self.write(snapshot).await?;
        found.iter().for_each(|route| learn(&table, route, coverage, doubt));
        Ok(marks.keys().filter(|name| !names.contains(name)).cloned().collect())
    }
}

/// What a walk has found out about a route counts from now on.
pub fn learn(table: &Table, route: &Route, coverage: Coverage, doubt: Doubt) {
    table.set_coverage(route, coverage);
    if let Some(dual) = &route.dual
        && dual.is_in_doubt() != (doubt == Doubt::Stays)
    {
        dual.set_in_doubt(doubt == Doubt::Stays);
    }
}
