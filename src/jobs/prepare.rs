//! What servers say of themselves before anything moves: INFO, CONFIG, CLUSTER NODES. Judged by [`crate::jobs::readiness`].

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::resp::reply::{self, Protocol};
use crate::resp::write;
use crate::store::PrivateLink;
use crate::store::link::Endpoint;

/// What one server says of itself.
#[derive(Clone, Debug, Default)]
pub struct Server {
    pub address: String,
    /// The text of INFO.
    pub info: String,
    /// CONFIG GET *, secrets left out; empty where the server refuses it.
    pub config: BTreeMap<String, String>,
    /// The text of CLUSTER INFO; empty where it is no cluster node.
    pub cluster_info: String,
    pub keys: u64,
}

impl Server {
    /// A field of INFO or CLUSTER INFO.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.info.lines().chain(self.cluster_info.lines());
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    pub(super) fn number(&self, name: &str) -> u64 {
        self.field(name).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    pub(super) fn is(&self, name: &str, value: &str) -> bool {
        self.field(name) == Some(value)
    }

    pub(super) fn version(&self) -> (u32, u32) {
        let mut parts =
            self.field("redis_version").unwrap_or_default().split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    pub(super) fn evicts(&self) -> bool {
        self.field("maxmemory_policy").is_some_and(|policy| policy != "noeviction")
    }

    pub(super) fn host(&self) -> &str {
        self.address.rsplit_once(':').map_or(&self.address, |(host, _)| host)
    }
}

/// A line of CLUSTER NODES.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: String,
    pub address: String,
    pub flags: String,
    /// Of a replica, its primary's id.
    pub primary: Option<String>,
}

impl Member {
    pub(super) fn has(&self, flag: &str) -> bool {
        self.flags.split(',').any(|own| own == flag)
    }

    /// Whether it can be asked.
    pub fn is_reachable(&self) -> bool {
        !["fail", "noaddr", "handshake"].iter().any(|flag| self.has(flag))
    }
}

/// The members that CLUSTER NODES lists.
pub fn members(text: &str) -> Vec<Member> {
    let member = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [id, address, flags, primary, ..] = words[..] else { return None };
        let address = address.split(['@', ',']).next()?.to_string();
        let primary = (primary != "-").then(|| primary.to_string());
        Some(Member { id: id.into(), address, flags: flags.into(), primary })
    };
    text.lines().filter_map(member).collect()
}

/// Asks a server.
pub async fn read(endpoint: &Endpoint) -> Result<Server, String> {
    let mut link = PrivateLink::connect(endpoint, Protocol::Resp2).await.map_err(|error| error.to_string())?;
    let mut server = Server { address: endpoint.address.to_string(), ..Server::default() };
    server.info = text(&ask(&mut link, &["INFO"]).await?)?;
    server.keys = reply::integer(&ask(&mut link, &["DBSIZE"]).await?).unwrap_or(0).max(0) as u64;
    let config = ask(&mut link, &["CONFIG", "GET", "*"]).await?;
    let cells = if reply::is_error(&config) { None } else { reply::elements(&config) };
    for pair in cells.unwrap_or_default().chunks_exact(2) {
        let word = |cell: &std::ops::Range<usize>| {
            String::from_utf8_lossy(reply::bulk(&config[cell.clone()]).unwrap_or_default()).into_owned()
        };
        let (name, value) = (word(&pair[0]), word(&pair[1]));
        let is_secret = ["pass", "auth", "secret"].iter().any(|part| name.contains(part)) && !value.is_empty();
        server.config.insert(name, if is_secret { "(left out)".into() } else { value });
    }
    if server.is("cluster_enabled", "1") {
        server.cluster_info = text(&ask(&mut link, &["CLUSTER", "INFO"]).await?)?;
    }
    Ok(server)
}

/// CLUSTER NODES, as a node tells it.
pub async fn nodes(endpoint: &Endpoint) -> Result<String, String> {
    let mut link = PrivateLink::connect(endpoint, Protocol::Resp2).await.map_err(|error| error.to_string())?;
    text(&ask(&mut link, &["CLUSTER", "NODES"]).await?)
}

async fn ask(link: &mut PrivateLink, words: &[&str]) -> Result<Bytes, String> {
    let mut out = BytesMut::new();
    write::command(&mut out, &words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
    link.call(&out).await.map_err(|error| format!("{}: {error}", words.join(" ")))
}

fn text(frame: &[u8]) -> Result<String, String> {
    match reply::bulk(frame) {
        Some(text) => Ok(String::from_utf8_lossy(text).into_owned()),
        None => Err(String::from_utf8_lossy(reply::error_text(frame)).into_owned()),
    }
}
