//! Which store answers for a key: phases, key patterns, the table, what happens at a flip. Pure.

mod databases;
pub mod flip;
pub mod glob;
mod naming;
mod pattern;
mod phase;
mod piece;
mod plan;
mod reserved;
mod scope;
mod table;

pub use databases::{DATABASES, Databases, Key, MARK, Places, places_of};
pub use pattern::{Pattern, PatternError, Patterns};
pub use phase::{Coverage, Phase, Side};
pub use plan::Plan;
pub use reserved::{RESERVED_COPIES, RESERVED_LEASES, is_reserved};
pub use scope::Scope;
pub use table::{Ack, ClusterKeys, DualState, Route, RouteName, RoutingSpec, SHARES, Table, in_order, share_of};

#[cfg(test)]
pub(crate) use table::tests::spec as sample_spec;
