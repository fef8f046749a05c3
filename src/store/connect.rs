//! Opens a connection to a node: TCP, and TLS where the store's URL asks for it. Greeting it is the caller's.

use tokio::net::TcpStream;

use crate::store::link::Endpoint;
use crate::wire::Stream;

/// Connects; the caller bounds the time. The text of an error is for the operator.
pub(super) async fn connect(endpoint: &Endpoint) -> Result<Stream, String> {
    let stream = TcpStream::connect(&*endpoint.address).await.map_err(|error| error.to_string())?;
    let _ = stream.set_nodelay(true);
    match &endpoint.tls {
        None => Ok(Stream::Plain(stream)),
        Some(tls) => tls.connect(host(&endpoint.address), stream).await,
    }
}

/// What is told of a node that was not connected in time. A server without TLS does not answer a handshake.
pub(super) fn late(endpoint: &Endpoint) -> &'static str {
    match endpoint.tls {
        None => "no connection in time",
        Some(_) => "no connection in time; does it speak TLS on this port?",
    }
}

/// The host of `host:port`, without the brackets of an IPv6 address.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}
