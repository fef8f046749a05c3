//! The table of the proxy that holds the lease, or held it: the phases are its, whatever this proxy's file says.

use std::sync::Arc;

use crate::dual::adopt::{Adopter, Source};
use crate::dual::knowledge::Doubt;
use crate::dual::lease::{Phases, Tables};
use crate::dual::remembered::{naming_of, table_of};
use crate::dual::state::Naming;
use crate::dual::verdict::{Refused, unwritten};
use crate::routing::flip::{self, Flip};
use crate::routing::{Coverage, Route, Table};

/// Whose eyes the holder's table is seen with.
#[derive(Clone, Copy)]
enum Heir {
    /// It knows of the routes what the holder does.
    Follower,
    /// It knows what the former holder did, and what it has found out itself.
    Successor(Doubt),
}

/// Why the holder's table is not this proxy's.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unfollowed {
    /// What is in flight did not end in time, or the disk refuses.
    #[error(transparent)]
    NotNow(#[from] Refused),
    /// Its keys have other names on the cluster, or providers are found in other ways.
    #[error("{0}")]
    Otherwise(String),
}

impl Adopter {
    /// The phases are the holder's, whatever this proxy's file says: what differs there is told.
    pub(super) fn compare(&self, flips: &[Flip], old: &Table, new: &Table, holder: &str) -> Result<(), Refused> {
        let differs = |flip: &Flip| format!("{} is {} there and {} here", flip.route, flip.from, flip.to);
        let mut all: Vec<String> = flips.iter().map(differs).collect();
        if old.pubsub().leader() != new.pubsub().leader() {
            all.push(format!("pubsub is {} there and {} here", old.pubsub(), new.pubsub()));
        }
        self.desk.set_differs(all.clone());
        if all.is_empty() {
            return Ok(());
        }
        Err(Refused(vec![format!(
            "the proxy at {holder} holds the lease of the dual routes, so this one goes by its phases, and its proxy.toml says otherwise: {}; change both files",
            named(&all)
        )]))
    }

    /// Takes the phases of the proxy that holds the lease: where it is about to flip, those that it will have.
    pub async fn follow(&self, tables: &Tables) -> Result<(), Unfollowed> {
        let _turn = self.turn.lock().await;
        let old = self.table.load_full();
        let target = tables.next.as_ref().unwrap_or(&tables.now);
        let leaving = tables.next.as_ref().map(|_| Arc::new(table_of(&tables.now, &old, None)));
        self.take_over(&old, target, leaving, Heir::Follower).await
    }

    /// Whether the running table has the phases that another proxy tells of.
    pub fn has_phases(&self, phases: &Phases) -> bool {
        let own = self.table();
        flip::flips(&own, &table_of(phases, &own, None)).is_empty()
    }

    /// Takes the phases that a former holder left.
    pub async fn succeed(&self, tables: &Tables, doubt: Doubt) -> Result<(), Unfollowed> {
        let _turn = self.turn.lock().await;
        let old = self.table.load_full();
        self.take_over(&old, tables.valid(), None, Heir::Successor(doubt)).await
    }

    async fn take_over(
        &self,
        old: &Arc<Table>,
        phases: &Phases,
        leaving: Option<Arc<Table>>,
        heir: Heir,
    ) -> Result<(), Unfollowed> {
        let named = |naming: &Naming| naming == &naming_of(old);
        if !phases.snapshot.naming.as_ref().is_some_and(named) {
            let what = "routing.keys, routing.cluster_keys or [databases] differ from the holder's, so that keys would be looked for by other names; make both files say the same, and start this proxy again";
            return Err(Unfollowed::Otherwise(what.into()));
        }
        let new = Arc::new(table_of(phases, old, Some(old)));
        for record in &phases.snapshot.routes {
            let Some(dual) = new.find(&record.route).and_then(|route| route.dual.as_ref()) else { continue };
            dual.set_coverage(record.coverage.unwrap_or(Coverage::StandaloneOnly));
            // What the lanes knew of single keys counts no longer: another proxy has written to them.
            let stays = match heir {
                Heir::Follower => false,
                Heir::Successor(doubt) => doubt == Doubt::Stays || dual.is_in_doubt(),
            };
            dual.set_in_doubt(true);
            dual.set_in_doubt(record.in_doubt || stays);
        }
        let flips = flip::flips(old, &new);
        let has_flipped = !flips.is_empty() || old.pubsub().leader() != new.pubsub().leader();
        let has_line = |route: &Route| old.find(&route.name).is_some_and(|known| known.phase == route.phase);
        let is_same = !has_flipped && old.routes().len() == new.routes().len() && new.routes().iter().all(has_line);
        if is_same && leaving.is_none() && self.desk.leaving.load().is_none() {
            // Only what is known of the routes is news, and both tables share it.
            return self.save(old, false).await.map_err(|error| unwritten(&error).into());
        }
        self.adopt((old, &new), flips, Source::Holder { leaving }).await.map_err(Refused::from)?;
        if has_flipped {
            self.desk.changed.notify_one();
        }
        Ok(())
    }
}

/// The first of many, and how many more there are.
fn named(all: &[String]) -> String {
    const NAMED_MAX: usize = 8;
    let first = all[..all.len().min(NAMED_MAX)].join(", ");
    match all.len().saturating_sub(NAMED_MAX) {
        0 => first,
        more => format!("{first}, and {more} more"),
    }
}
