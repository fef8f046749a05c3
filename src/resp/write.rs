//! What the proxy itself says, appended to a buffer.

use bytes::BytesMut;

use crate::resp::reply::Protocol;
use crate::resp::scan::{ArgRange, ArgRanges};

/// `+text`.
pub fn simple(out: &mut BytesMut, text: &str) {
    out.extend_from_slice(b"+");
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// `-text`; line ends inside become spaces, so that no text can forge a second reply.
pub fn error(out: &mut BytesMut, text: &str) {
    out.extend_from_slice(b"-");
    out.extend(text.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
    out.extend_from_slice(b"\r\n");
}

/// `:value`.
pub fn integer(out: &mut BytesMut, value: i64) {
    line(out, b':', value);
}

/// A bulk string.
pub fn bulk(out: &mut BytesMut, body: &[u8]) {
    line(out, b'$', body.len() as i64);
    out.extend_from_slice(body);
    out.extend_from_slice(b"\r\n");
}

/// A text for people: a verbatim string in RESP3, a bulk string in RESP2.
pub fn text(out: &mut BytesMut, protocol: Protocol, body: &str) {
    if protocol == Protocol::Resp2 {
        return bulk(out, body.as_bytes());
    }
    line(out, b'=', body.len() as i64 + 4);
    out.extend_from_slice(b"txt:");
    out.extend_from_slice(body.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The null of a missing value.
pub fn null(out: &mut BytesMut, protocol: Protocol) {
    out.extend_from_slice(if protocol == Protocol::Resp2 { b"$-1\r\n" } else { b"_\r\n" });
}

/// The null of a missing array.
pub fn null_array(out: &mut BytesMut, protocol: Protocol) {
    out.extend_from_slice(if protocol == Protocol::Resp2 { b"*-1\r\n" } else { b"_\r\n" });
}

/// The head of an array of `count` elements.
pub fn array(out: &mut BytesMut, count: usize) {
    line(out, b'*', count as i64);
}

/// The head of a set of `count` members; RESP2 has it as an array.
pub fn set(out: &mut BytesMut, protocol: Protocol, count: usize) {
    line(out, if protocol == Protocol::Resp2 { b'*' } else { b'~' }, count as i64);
}

/// The head of a map of `count` pairs; RESP2 has it as a flat array.
pub fn map(out: &mut BytesMut, protocol: Protocol, count: usize) {
    match protocol {
        Protocol::Resp2 => line(out, b'*', 2 * count as i64),
        Protocol::Resp3 => line(out, b'%', count as i64),
    }
}

/// A command as an array of bulk strings; gives the places of its arguments, from the start of the command.
pub fn command(out: &mut BytesMut, args: &[&[u8]]) -> ArgRanges {
    let begin = out.len();
    out.reserve(args.iter().map(|arg| arg.len() + 16).sum::<usize>() + 16);
    array(out, args.len());
    let mut ranges = ArgRanges::new();
    for arg in args {
        bulk(out, arg);
        let end = out.len() - begin - 2;
        ranges.push(ArgRange { start: (end - arg.len()) as u32, end: end as u32 });
    }
    ranges
}

fn line(out: &mut BytesMut, kind: u8, value: i64) {
    out.extend_from_slice(&[kind]);
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    out.extend_from_slice(b"\r\n");
}
