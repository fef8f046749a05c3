//! `proxy.toml`: sections, defaults, loading, judging, watching and editing.

mod check;
pub mod edit;
mod load;
mod report;
pub mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::routing::RoutingSpec;

pub use load::{load, parse};
pub use report::Report;

/// A store's address as a `redis://` URL says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrl {
    pub host: String,
    pub port: u16,
    pub user: Option<String>,
    pub password: Option<String>,
    pub db: u32,
}

impl StoreUrl {
    /// `host:port`.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// A whole configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub listen: Listen,
    pub admin: Admin,
    pub standalone: Store,
    /// Absent only where no route needs it.
    pub cluster: Option<Store>,
    pub routing: RoutingSpec,
    /// Where the state file and the journal stand.
    pub state_directory: PathBuf,
    pub log: Log,
    pub flip_timeout: Duration,
}

/// `[listen]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub address: SocketAddr,
    pub password: Option<String>,
    /// One thread each; 0: as many as there are cores.
    pub workers: usize,
    pub max_clients: usize,
    pub max_query_bytes: usize,
    /// A client that doesn't read its replies is closed above this.
    pub max_pending_reply_bytes: usize,
    /// A client that asks for nothing for so long is closed; zero: never.
    pub idle_timeout: Duration,
    pub drain_timeout: Duration,
}

/// `[admin]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub address: SocketAddr,
    pub token: Option<String>,
}

/// `[standalone]` and `[cluster]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// One for the standalone, the seeds for the cluster.
    pub urls: Vec<StoreUrl>,
    pub connect_timeout: Duration,
    pub reply_timeout: Duration,
    pub patience: Duration,
    pub queue_bytes: usize,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub level: String,
    pub json: bool,
}
