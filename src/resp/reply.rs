//! What a reply says: kind, error word, redirect, the value where one is needed.

use std::ops::Range;

use crate::resp::scan::{ReplyScanner, number};

/// The protocol that a client or a link speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    #[default]
    Resp2,
    Resp3,
}

/// Whether the reply is an error, simple or blob.
pub fn is_error(frame: &[u8]) -> bool {
    matches!(frame.first(), Some(b'-' | b'!'))
}

/// Whether the reply is a null of either protocol.
pub fn is_null(frame: &[u8]) -> bool {
    frame.starts_with(b"_") || frame.starts_with(b"$-1\r") || frame.starts_with(b"*-1\r")
}

/// Whether the frame is a push, which answers no request.
pub fn is_push(frame: &[u8]) -> bool {
    frame.first() == Some(&b'>')
}

/// The first line without its type byte and CR LF.
fn first_line(frame: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'\r', frame).unwrap_or(frame.len());
    frame.get(1..end).unwrap_or_default()
}

/// The number, if the reply is an integer.
pub fn integer(frame: &[u8]) -> Option<i64> {
    if frame.first() != Some(&b':') {
        return None;
    }
    std::str::from_utf8(first_line(frame)).ok()?.parse().ok()
}

/// The text of a bulk, verbatim or simple string.
pub fn bulk(frame: &[u8]) -> Option<&[u8]> {
    match frame.first()? {
        b'+' => Some(first_line(frame)),
        b'$' | b'=' => {
            let length = usize::try_from(number(first_line(frame))?).ok()?;
            let start = first_line(frame).len() + 3;
            let body = frame.get(start..start + length)?;
            Some(if frame[0] == b'=' { body.get(4..)? } else { body })
        }
        _ => None,
    }
}

/// The text of a double, which is a bulk string in RESP2.
pub fn double(frame: &[u8]) -> Option<&[u8]> {
    (frame.first() == Some(&b',')).then(|| first_line(frame))
}

/// The text of an error, without the type byte.
pub fn error_text(frame: &[u8]) -> &[u8] {
    match frame.first() {
        Some(b'-') => first_line(frame),
        Some(b'!') => {
            let start = first_line(frame).len() + 3;
            frame.get(start..frame.len().saturating_sub(2)).unwrap_or_default()
        }
        _ => b"",
    }
}

/// The first word of an error: `ERR`, `MOVED`, `LOADING`.
pub fn error_word(frame: &[u8]) -> &[u8] {
    let text = error_text(frame);
    &text[..memchr::memchr(b' ', text).unwrap_or(text.len())]
}

/// Where a cluster says that a key lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    pub kind: RedirectKind,
    pub slot: u16,
    /// `host:port`; the host is empty where the node doesn't know its own, and then the answering node's is meant.
    pub address: String,
}

/// For good, or for this request only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectKind {
    Moved,
    Ask,
}

/// The redirect that an error carries, if it is one.
pub fn redirect(frame: &[u8]) -> Option<Redirect> {
    let text = std::str::from_utf8(error_text(frame)).ok()?;
    let mut words = text.split(' ');
    let kind = match words.next()? {
        "MOVED" => RedirectKind::Moved,
        "ASK" => RedirectKind::Ask,
        _ => return None,
    };
    Some(Redirect { kind, slot: words.next()?.parse().ok()?, address: words.next()?.to_string() })
}

/// The places of the direct elements of an array, set, push or map (a map's keys and values in turn); `None` for
/// anything else, a null included. `frame` must be whole.
pub fn elements(frame: &[u8]) -> Option<Vec<Range<usize>>> {
    let count = usize::try_from(number(first_line(frame))?).ok()?;
    let count = match frame.first()? {
        b'*' | b'~' | b'>' => count,
        b'%' => count * 2,
        _ => return None,
    };
    let mut from = first_line(frame).len() + 3;
    let mut found = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        let length = ReplyScanner::default().scan(frame.get(from..)?).ok()??;
        found.push(from..from + length);
        from += length;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_from_both_protocols() {
        assert_eq!(integer(b":-12\r\n"), Some(-12));
        assert_eq!(bulk(b"$3\r\nabc\r\n"), Some(&b"abc"[..]));
        assert_eq!(bulk(b"=7\r\ntxt:abc\r\n"), Some(&b"abc"[..]));
        assert!(is_null(b"_\r\n") && is_null(b"$-1\r\n") && is_null(b"*-1\r\n") && !is_null(b"$1\r\na\r\n"));
        assert_eq!(elements(b"*2\r\n:1\r\n*1\r\n:2\r\n"), Some(vec![4..8, 8..16]));
        assert_eq!(error_word(b"-CLUSTERDOWN Hash slot not served\r\n"), b"CLUSTERDOWN");
    }

    #[test]
    fn redirects_are_read_and_other_errors_are_none() {
        let moved = redirect(b"-MOVED 3999 127.0.0.1:6381\r\n").unwrap();
        assert_eq!((moved.kind, moved.slot, moved.address.as_str()), (RedirectKind::Moved, 3999, "127.0.0.1:6381"));
        assert_eq!(redirect(b"-ERR \xff\r\n"), None);
    }
}
