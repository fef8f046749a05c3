//! `proxy.toml`: sections, defaults, loading, judging, watching and editing.

mod check;
mod databases;
pub mod edit;
mod load;
mod report;
pub mod template;
mod users;
pub mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::command::chosen::Chosen;
use crate::command::permitted::Permitted;
use crate::routing::{RouteName, RoutingSpec, Scope};
use crate::secret::{Digest, Secret};

pub use load::{load, parse};
pub use report::Report;

/// A store's address as a `redis://` or `rediss://` URL says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrl {
    pub host: String,
    pub port: u16,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub db: u32,
    /// `rediss://`
    pub is_tls: bool,
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
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub listen: Listen,
    pub admin: Admin,
    pub standalone: Store,
    /// Absent only where no route needs it.
    pub cluster: Option<Store>,
    pub routing: RoutingSpec,
    /// Beside the one whose password is `listen.password`.
    pub users: Vec<User>,
    /// Of all clients.
    pub commands: Chosen,
    pub copying: Copying,
    /// Between two looks for writers that go around the proxy; zero: never.
    pub bypass_look_every: Duration,
    pub lease: Lease,
    pub limits: Vec<RouteLimit>,
    /// Where the state file and the journal stand.
    pub state_directory: PathBuf,
    pub log: Log,
    pub flip_timeout: Duration,
    /// Of the reads of synced routes, how many are repeated on the follower and compared: from 0 to 1.
    pub shadow_reads: f64,
}

/// `[listen]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub address: SocketAddr,
    pub password: Option<Secret>,
    pub tls: Option<ListenTls>,
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
    pub token: Option<Secret>,
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
    /// How late answers may be before requests are refused; zero: no matter how late.
    pub queue_time: Duration,
    /// Connections that single clients may have of their own: blocking commands, WATCH.
    pub private_links: usize,
    /// Set where its URLs are `rediss://`.
    pub tls: Option<StoreTls>,
}

/// `listen.tls`: PEM files, which are read when the program starts and when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenTls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Clients must have a certificate of one of these.
    pub client_ca: Option<PathBuf>,
}

/// `tls` of a store. Without a word: the CAs that the system trusts, and no certificate of one's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreTls {
    pub ca: Option<PathBuf>,
    /// A certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The server's certificate is not looked at.
    pub is_unverified: bool,
    /// What the certificate is for, where that is not the host of the URL.
    pub server_name: Option<String>,
}

/// A line of `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteLimit {
    /// `None`: each provider without a line of its own.
    pub route: Option<RouteName>,
    /// 0: no limit.
    pub requests_per_second: u64,
    pub bytes_per_second: u64,
}

/// A line of `[users]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub password: Digest,
    /// `None`: all.
    pub commands: Option<Permitted>,
    /// `None`: every key.
    pub scope: Option<Scope>,
}

/// `[copying]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copying {
    /// Every key by its type instead of by DUMP.
    pub is_by_type: bool,
    pub large_key_bytes: u64,
    /// 0: no limit.
    pub bytes_per_second: u64,
}

/// `[lease]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Proxies that share it take turns.
    pub name: String,
    pub lasts: Duration,
    /// Where other proxies reach this one; `None`: at the address that it listens on.
    pub advertise: Option<StoreUrl>,
    /// How this proxy logs in to another one; without a password as a client without one.
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// Whom to trust where the other proxy speaks TLS; `None`: the CAs that the system trusts.
    pub ca: Option<PathBuf>,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub level: String,
    pub json: bool,
    /// `None`: no command counts as slow.
    pub slow_command: Option<Duration>,
    /// Whether the log names the keys of slow commands.
    pub slow_command_keys: bool,
}
