//! The frames of publish and subscribe: read as a RESP3 link sends them, written for both protocols.
//!
//! Pure. A message differs between the protocols in its first byte only, and each encoding is made once, whoever many hear it.

use std::cell::OnceCell;

use bytes::{Bytes, BytesMut};

use crate::resp::reply::Protocol;
use crate::resp::write;

/// What is subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Channel,
    Pattern,
    Shard,
}

/// What a client does with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Join,
    Leave,
}

impl Family {
    pub const ALL: [Self; 3] = [Self::Channel, Self::Pattern, Self::Shard];

    /// The command, which is also what its confirmation begins with.
    pub fn command(self, verb: Verb) -> &'static str {
        match (self, verb) {
            (Self::Channel, Verb::Join) => "subscribe",
            (Self::Channel, Verb::Leave) => "unsubscribe",
            (Self::Pattern, Verb::Join) => "psubscribe",
            (Self::Pattern, Verb::Leave) => "punsubscribe",
            (Self::Shard, Verb::Join) => "ssubscribe",
            (Self::Shard, Verb::Leave) => "sunsubscribe",
        }
    }

    /// What a command does; `None` for those of other kinds.
    pub fn of_command(name: &str) -> Option<(Self, Verb)> {
        let all = Self::ALL.into_iter().flat_map(|family| [(family, Verb::Join), (family, Verb::Leave)]);
        all.into_iter().find(|(family, verb)| family.command(*verb).eq_ignore_ascii_case(name))
    }
}

/// A frame for subscribers.
pub struct Push {
    resp3: Bytes,
    resp2: OnceCell<Bytes>,
}

impl Push {
    /// A message as a RESP3 link sent it.
    pub fn message(frame: Bytes) -> Self {
        Self { resp3: frame, resp2: OnceCell::new() }
    }

    /// Tells a client that it is, or is not any more, among those who hear `name`; no name: it heard none.
    pub fn confirmation(family: Family, verb: Verb, name: Option<&[u8]>, count: usize) -> Self {
        let encode = |protocol| {
            let mut out = BytesMut::new();
            out.extend_from_slice(if protocol == Protocol::Resp2 { b"*3\r\n" } else { b">3\r\n" });
            write::bulk(&mut out, family.command(verb).as_bytes());
            match name {
                Some(name) => write::bulk(&mut out, name),
                None => write::null(&mut out, protocol),
            }
            write::integer(&mut out, count as i64);
            out.freeze()
        };
        Self { resp3: encode(Protocol::Resp3), resp2: OnceCell::from(encode(Protocol::Resp2)) }
    }

    /// Whether it is a message rather than a confirmation.
    pub fn is_message(&self) -> bool {
        matches!(said(&self.resp3), Said::Message(..))
    }

    /// The frame as a client of this protocol gets it.
    pub fn in_protocol(&self, protocol: Protocol) -> &Bytes {
        match protocol {
            Protocol::Resp3 => &self.resp3,
            Protocol::Resp2 => self.resp2.get_or_init(|| {
                let mut frame = BytesMut::from(&self.resp3[..]);
                frame[0] = b'*';
                frame.freeze()
            }),
        }
    }
}

/// What the proxy's own channels begin with. Patterns that fit them too do not show them to clients.
pub const OWN_CHANNELS: &str = "cutover:last:";

/// What a push of a RESP3 link says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said<'f> {
    /// A message for all who hear this channel, pattern or shard channel.
    Message(Family, &'f [u8]),
    /// A name was subscribed to, or is not any more.
    Confirmed(Family, Verb, &'f [u8]),
    Other,
}

/// Reads the first two strings of a whole push.
pub fn said(frame: &[u8]) -> Said<'_> {
    let read = || {
        let head = 1 + memchr::memchr(b'\n', frame)?;
        let (word, behind) = bulk_at(frame, head)?;
        let (name, behind) = bulk_at(frame, behind)?;
        Some((word, name, behind))
    };
    let Some((word, name, behind)) = read() else { return Said::Other };
    match word {
        b"message" => Said::Message(Family::Channel, name),
        b"pmessage" => match bulk_at(frame, behind) {
            Some((channel, _)) if !channel.starts_with(OWN_CHANNELS.as_bytes()) => Said::Message(Family::Pattern, name),
            _ => Said::Other,
        },
        b"smessage" => Said::Message(Family::Shard, name),
        word => match std::str::from_utf8(word).ok().and_then(Family::of_command) {
            Some((family, verb)) => Said::Confirmed(family, verb, name),
            None => Said::Other,
        },
    }
}

/// A bulk string at a place, and where it ends.
fn bulk_at(frame: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = frame.get(at..)?.strip_prefix(b"$")?;
    let line = memchr::memchr(b'\r', rest)?;
    let length: usize = std::str::from_utf8(&rest[..line]).ok()?.parse().ok()?;
    let begin = at + 1 + line + 2;
    Some((frame.get(begin..begin + length)?, begin + length + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushes_are_read_and_written_in_both_protocols() {
        let frame = Bytes::from_static(b">4\r\n$8\r\npmessage\r\n$2\r\nn*\r\n$4\r\nnews\r\n$1\r\nx\r\n");
        assert_eq!(said(&frame), Said::Message(Family::Pattern, b"n*"));
        let push = Push::message(frame.clone());
        assert_eq!(push.in_protocol(Protocol::Resp3), &frame);
        assert_eq!(&push.in_protocol(Protocol::Resp2)[..], [b"*", &frame[1..]].concat());
        assert_eq!(said(b">4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$14\r\ncutover:last:0\r\n$1\r\nx\r\n"), Said::Other);
        let gone = Push::confirmation(Family::Shard, Verb::Leave, Some(b"c"), 2);
        assert_eq!(said(gone.in_protocol(Protocol::Resp3)), Said::Confirmed(Family::Shard, Verb::Leave, b"c"));
        assert_eq!(&gone.in_protocol(Protocol::Resp2)[..], b"*3\r\n$12\r\nsunsubscribe\r\n$1\r\nc\r\n:2\r\n");
        let none = Push::confirmation(Family::Channel, Verb::Leave, None, 0);
        assert_eq!(&none.in_protocol(Protocol::Resp3)[..], b">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n");
        assert_eq!(&none.in_protocol(Protocol::Resp2)[..], b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n");
        assert_eq!(said(none.in_protocol(Protocol::Resp3)), Said::Other);
    }
}
