//! One client, accept to close: what it sends is read, planned and sent on; answers go back in the order of the requests.

mod asides;
mod auditing;
mod away;
mod bell;
mod blocking;
mod bounds;
mod chunks;
mod client_command;
mod clients;
mod commands;
mod flush;
mod keyspace;
mod listener;
mod local;
mod pubsub;
mod refused;
mod replies;
mod scripts;
mod session;
pub mod shares;
mod split;
mod transaction;
pub mod users;
pub mod worker;

pub use bounds::{Bounds, SessionLimits};
pub use clients::{Clients, Filter};
pub use scripts::Scripts;
