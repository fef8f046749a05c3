//! What a server says of its connections (CLIENT LIST): a line each, of fields `name=value`.

use crate::resp::reply::{self, Protocol};
use crate::store::PrivateLink;
use crate::store::link::Endpoint;

/// The request.
pub const ASK: &[u8] = b"*2\r\n$6\r\nCLIENT\r\n$4\r\nLIST\r\n";

/// One field of a line.
pub fn field<'l>(line: &'l str, wanted: &str) -> Option<&'l str> {
    line.split(' ').find_map(|field| field.strip_prefix(wanted)?.strip_prefix('='))
}

/// The list in a reply; `None`: the server does not tell it.
pub fn parse(frame: &[u8]) -> Option<String> {
    (!reply::is_error(frame)).then(|| Some(String::from_utf8_lossy(reply::bulk(frame)?).into_owned()))?
}

/// The connections of a node.
pub async fn ask(endpoint: &Endpoint) -> Option<String> {
    let mut link = PrivateLink::connect(endpoint, Protocol::Resp2).await.ok()?;
    parse(&link.call(ASK).await.ok()?)
}

/// Closes the connections of that proxy; gives how many there were. Nothing that came on them runs any more.
pub async fn end_all(endpoint: &Endpoint, proxy: &str) -> Option<usize> {
    let mut link = PrivateLink::connect(endpoint, Protocol::Resp2).await.ok()?;
    let list = parse(&link.call(ASK).await.ok()?)?;
    let is_its = |line: &&str| field(line, "name").and_then(super::private_link::proxy_of) == Some(proxy);
    let ids: Vec<&str> = list.lines().filter(is_its).filter_map(|line| field(line, "id")).collect();
    for id in &ids {
        let mut end = bytes::BytesMut::new();
        crate::resp::write::command(&mut end, &[b"CLIENT", b"KILL", b"ID", id.as_bytes()]);
        link.call(&end).await.ok()?;
    }
    Some(ids.len())
}
