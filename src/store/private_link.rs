//! A connection of one client's own, for what can't share a link: WATCH and blocking commands. Dropping it closes it at once,
//! so that a client that went away takes nothing with it. A worker's subscriptions to a node are on one too.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::task::{Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::resp::reply::{self, Protocol};
use crate::resp::scan::ReplyScanner;
use crate::resp::write;
use crate::store::LinkError;
use crate::store::connect::{connect, late};
use crate::store::link::Endpoint;
use crate::store::stores::StoreSide;
use crate::wire::{self, Stream};

/// What the first read of a frame takes.
const FIRST_BYTES: usize = 4096;

/// See the module.
pub struct PrivateLink {
    pub(super) stream: Stream,
    pub(super) buffer: BytesMut,
    scanner: ReplyScanner,
    id: i64,
    address: Arc<str>,
    _place: Option<PrivatePlace>,
}

/// One of a store's places for connections of single clients; free again when dropped.
pub struct PrivatePlace(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// The places of both stores, shared by all workers: a server takes so many connections and no more.
#[derive(Clone)]
pub struct PrivateLinks(Arc<[(usize, Arc<Semaphore>); 2]>);

impl PrivateLinks {
    /// So many of each.
    pub fn new(standalone: usize, cluster: usize) -> Self {
        let places = |count: usize| {
            let count = count.min(Semaphore::MAX_PERMITS);
            (count, Arc::new(Semaphore::new(count)))
        };
        Self(Arc::new([places(standalone), places(cluster)]))
    }

    pub(super) fn take(&self, side: StoreSide) -> Option<PrivatePlace> {
        self.0[side as usize].1.clone().try_acquire_owned().ok().map(PrivatePlace)
    }

    pub(super) fn taken(&self, side: StoreSide) -> u64 {
        let (count, places) = &self.0[side as usize];
        (count - places.available_permits()) as u64
    }
}

impl PrivateLink {
    /// Connects and greets, bounded by the endpoint's connect time-out.
    pub async fn connect(endpoint: &Endpoint, protocol: Protocol) -> Result<Self, LinkError> {
        let open = async {
            let mut stream = connect(endpoint).await?;
            let id = greet(&mut stream, endpoint, protocol).await?.id;
            Ok::<_, String>(Self {
                stream,
                buffer: BytesMut::new(),
                scanner: ReplyScanner::default(),
                id,
                address: endpoint.address.clone(),
                _place: None,
            })
        };
        match tokio::time::timeout(endpoint.timeouts.connect, open).await {
            Ok(opened) => opened.map_err(LinkError::Down),
            Err(_) => Err(LinkError::Down(late(endpoint).into())),
        }
    }

    /// The same link, which takes up a place as long as it lives.
    pub fn at(self, place: PrivatePlace) -> Self {
        Self { _place: Some(place), ..self }
    }

    /// The connection's CLIENT ID on its server, for CLIENT UNBLOCK.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// The node that it is to.
    pub fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Sends bytes.
    pub async fn send(&mut self, request: &[u8]) -> Result<(), LinkError> {
        write(&mut self.stream, request).await.map_err(|_| LinkError::Lost)
    }

    /// The next frame, a push included. Cancelling it loses nothing: what was read stays in the buffer.
    pub async fn receive(&mut self) -> Result<Bytes, LinkError> {
        loop {
            match self.scanner.scan(&self.buffer) {
                Ok(Some(length)) => return Ok(self.buffer.split_to(length).freeze()),
                Ok(None) => {}
                Err(_) => return Err(LinkError::Lost),
            }
            match self.read().await {
                Ok(read) if read > 0 => {}
                _ => return Err(LinkError::Lost),
            }
        }
    }

    /// Reads once. A link that waits for a frame holds no memory for it: most of them wait long.
    async fn read(&mut self) -> std::io::Result<usize> {
        let Self { stream, buffer, scanner, .. } = self;
        if !buffer.is_empty() {
            let room = scanner.wanted().saturating_sub(buffer.len());
            buffer.reserve(room.clamp(FIRST_BYTES, buffer.len().max(64 << 10)));
            return stream.read_buf(buffer).await;
        }
        *buffer = BytesMut::new();
        poll_fn(|context| {
            let mut bytes = [0; FIRST_BYTES];
            let mut first = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut first))?;
            buffer.extend_from_slice(first.filled());
            Poll::Ready(Ok(first.filled().len()))
        })
        .await
    }

    /// One request and its reply.
    pub async fn call(&mut self, request: &[u8]) -> Result<Bytes, LinkError> {
        self.send(request).await?;
        self.receive().await
    }
}

/// What our connections are called on the servers, so that an operator, and the proxy, can tell them from an application's: this,
/// and in a proxy that serves a colon and a number of its own, by which two of them tell each other apart. The upper half of
/// the number is that of its lease's name: proxies that share a lease have it in common. Behind another colon stands how much
/// of the holder's tables it has taken.
pub const CONNECTION_NAME: &str = "cutover";
static OWN_NAME: OnceLock<String> = OnceLock::new();

/// Gives this process a number of its own, before it connects to anything.
pub fn be_a_proxy(lease: &str) {
    let group = crc32fast::hash(lease.as_bytes());
    OWN_NAME.get_or_init(|| format!("{CONNECTION_NAME}:{group:08x}{:08x}", fastrand::u32(..)));
}

/// Length of [`own_name`] in a proxy.
const PROXY_NAME: usize = CONNECTION_NAME.len() + 1 + 16;

/// The proxy that a connection of that name belongs to.
pub fn proxy_of(name: &str) -> Option<&str> {
    name.strip_prefix(CONNECTION_NAME)?.strip_prefix(':')?;
    Some(name.get(..PROXY_NAME).unwrap_or(name))
}

/// The proxy of a connection of that name, if it shares this one's lease and is another.
pub fn companion_of(name: &str) -> Option<&str> {
    let is_companion =
        |proxy: &&str| *proxy != own_name() && proxy.get(..PROXY_NAME - 8) == own_name().get(..PROXY_NAME - 8);
    proxy_of(name).filter(is_companion)
}

/// What the connections of this process are called.
pub fn own_name() -> &'static str {
    OWN_NAME.get().map_or(CONNECTION_NAME, String::as_str)
}

/// What a node said of itself and of the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Greeting {
    /// The connection's CLIENT ID.
    pub id: i64,
    /// The server's version: `7.0.15`.
    pub version: String,
}

impl Greeting {
    /// Reads the reply to HELLO, which is a map in RESP3 and its flat form in RESP2.
    fn parse(frame: &[u8]) -> Option<Self> {
        let mut greeting = Self::default();
        for pair in reply::elements(frame)?.chunks(2) {
            let [name, value] = pair else { return None };
            let value = &frame[value.clone()];
            match reply::bulk(&frame[name.clone()])? {
                b"id" => greeting.id = reply::integer(value)?,
                b"version" => greeting.version = String::from_utf8_lossy(reply::bulk(value)?).into_owned(),
                _ => {}
            }
        }
        Some(greeting)
    }
}

/// Greets a node: AUTH, HELLO, SELECT. The text of an error holds no secret.
pub(super) async fn greet(stream: &mut Stream, endpoint: &Endpoint, protocol: Protocol) -> Result<Greeting, String> {
    let mut out = BytesMut::new();
    let mut expected: Vec<&str> = Vec::new();
    if let Some(password) = &endpoint.login.password {
        let password = password.expose().as_bytes();
        match &endpoint.login.user {
            Some(user) => write::command(&mut out, &[b"AUTH", user.as_bytes(), password]),
            None => write::command(&mut out, &[b"AUTH", password]),
        };
        expected.push("AUTH");
    }
    let version: &[u8] = if protocol == Protocol::Resp3 { b"3" } else { b"2" };
    write::command(&mut out, &[b"HELLO", version, b"SETNAME", own_name().as_bytes()]);
    expected.push("HELLO");
    if endpoint.db > 0 {
        write::command(&mut out, &[b"SELECT", endpoint.db.to_string().as_bytes()]);
        expected.push("SELECT");
    }
    write(stream, &out).await?;
    let mut buffer = BytesMut::new();
    let mut greeting = None;
    for command in expected {
        let frame = next_frame(stream, &mut buffer).await?;
        if reply::is_error(&frame) {
            return Err(format!("{command}: {}", String::from_utf8_lossy(reply::error_text(&frame))));
        }
        if command == "HELLO" {
            greeting = Greeting::parse(&frame);
        }
    }
    greeting.ok_or_else(|| "HELLO was answered in an unknown form; Redis 7.0 or newer is needed".into())
}

/// The server process that a connection reached: its `run_id`, which a restart changes.
pub(super) async fn run_id(stream: &mut Stream) -> Result<String, String> {
    let mut ask = BytesMut::new();
    write::command(&mut ask, &[b"INFO", b"server"]);
    write(stream, &ask).await?;
    let frame = next_frame(stream, &mut BytesMut::new()).await?;
    let text = String::from_utf8_lossy(reply::bulk(&frame).unwrap_or_default()).into_owned();
    let found = text.lines().find_map(|line| line.strip_prefix("run_id:"));
    // A login that may not ask for it is served without: then a restart is not noticed.
    Ok(found.unwrap_or_default().trim().to_string())
}

/// Ends another connection of ours to the same server process, so that nothing of it runs any more. One that is gone already
/// is what was wanted.
pub(super) async fn end(stream: &mut Stream, id: i64) -> Result<(), String> {
    let mut ask = BytesMut::new();
    write::command(&mut ask, &[b"CLIENT", b"KILL", b"ID", id.to_string().as_bytes()]);
    write(stream, &ask).await?;
    next_frame(stream, &mut BytesMut::new()).await.map(drop)
}

/// Writes all of it, and what TLS makes of it.
async fn write(stream: &mut Stream, bytes: &[u8]) -> Result<(), String> {
    stream.write_all(bytes).await.map_err(|error| wire::explain(&error))?;
    stream.flush().await.map_err(|error| wire::explain(&error))
}

async fn next_frame(stream: &mut Stream, buffer: &mut BytesMut) -> Result<BytesMut, String> {
    let mut scanner = ReplyScanner::default();
    loop {
        if let Some(length) = scanner.scan(buffer).map_err(|error| error.to_string())? {
            return Ok(buffer.split_to(length));
        }
        match stream.read_buf(buffer).await {
            Ok(0) => return Err("closed by the node".into()),
            Ok(_) => {}
            Err(error) => return Err(wire::explain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_greeting_are_read() {
        let fields = b"$7\r\nversion\r\n$6\r\n7.0.15\r\n$2\r\nid\r\n:12\r\n";
        for head in [&b"*4\r\n"[..], b"%2\r\n"] {
            let greeting = Greeting::parse(&[head, fields].concat()).unwrap();
            assert_eq!(greeting, Greeting { id: 12, version: "7.0.15".into() });
        }
        assert_eq!(Greeting::parse(b"+OK\r\n"), None);
    }
}
