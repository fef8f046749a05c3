//! What keys are called on the cluster, in requests and in replies. Pure.
//!
//! With `cluster_keys = "tagged"` a key of provider 42 is stored there as `{42}` and its own name, so that all keys of a
//! provider share a slot; keys without a provider share the tag `{-}`. The name depends on the key patterns alone, never on
//! the lines of a table: a provider that gets a line of its own keeps its names.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

use crate::command::{self, CommandSpec, Kind};
use crate::resp::request::Request;
use crate::resp::{reply, write};
use crate::routing::{ClusterKeys, Table};
use crate::slot;

/// The tag of keys without a provider.
const NO_PROVIDER: &[u8] = b"-";

impl Table {
    /// Whether keys have other names on the cluster.
    #[inline]
    pub fn is_tagged(&self) -> bool {
        self.cluster_keys() == ClusterKeys::Tagged
    }

    fn tag_of<'k>(&self, key: &'k [u8]) -> &'k [u8] {
        self.provider_of(key).unwrap_or(NO_PROVIDER)
    }

    /// The slot of a key on the cluster.
    #[inline]
    pub fn slot_of(&self, key: &[u8]) -> u16 {
        match self.is_tagged() {
            false => slot::of(key),
            // A tag with a brace in it is cut there, by the cluster too.
            true => slot::of(&self.cluster_name(key)),
        }
    }

    /// The name of a key on the cluster.
    pub fn cluster_name<'k>(&self, key: &'k [u8]) -> Cow<'k, [u8]> {
        match self.is_tagged() {
            false => Cow::Borrowed(key),
            true => Cow::Owned([b"{", self.tag_of(key), b"}", key].concat()),
        }
    }

    /// The application's name of a key on the cluster; `None`: no key of this table has that name.
    pub fn own_name<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        if !self.is_tagged() {
            return Some(name);
        }
        let inner = name.strip_prefix(b"{")?;
        let ends = memchr::memchr_iter(b'}', inner);
        ends.map(|end| (&inner[..end], &inner[end + 1..]))
            .find(|(tag, key)| self.tag_of(key) == *tag)
            .map(|(_, key)| key)
    }

    /// A glob that fits the cluster's names of the keys that `pattern` fits, and maybe some of other tables.
    pub fn cluster_pattern<'p>(&self, pattern: &'p [u8]) -> Cow<'p, [u8]> {
        match self.is_tagged() {
            false => Cow::Borrowed(pattern),
            true => Cow::Owned([b"{*}", pattern].concat()),
        }
    }

    /// A request as the cluster is to get it.
    pub fn cluster_request(&self, spec: &CommandSpec, request: &Request) -> Bytes {
        match self.is_tagged().then(|| command::keys_of(spec, request)).flatten() {
            None => request.bytes().clone(),
            Some(keys) => self.rename(request, &keys),
        }
    }

    /// A request with the arguments at `keys` as the cluster calls them.
    pub fn rename(&self, request: &Request, keys: &[usize]) -> Bytes {
        let name = |(index, arg)| if keys.contains(&index) { self.cluster_name(arg) } else { Cow::Borrowed(arg) };
        let args: Vec<Cow<'_, [u8]>> = request.args().enumerate().map(name).collect();
        let views: Vec<&[u8]> = args.iter().map(AsRef::as_ref).collect();
        let mut out = BytesMut::new();
        write::command(&mut out, &views);
        out.freeze()
    }

    /// A reply of the cluster as the application is to get it, where its names differ; `None`: as it is.
    pub fn own_reply(&self, spec: &CommandSpec, request: &Request, frame: &[u8]) -> Option<Bytes> {
        if !self.is_tagged() {
            return None;
        }
        if reply::is_error(frame) {
            return self.own_error(spec, request, frame);
        }
        match spec.name {
            "BLPOP" | "BRPOP" | "BZPOPMIN" | "BZPOPMAX" | "LMPOP" | "ZMPOP" | "BLMPOP" | "BZMPOP" => {
                self.own_first(frame)
            }
            "XREAD" | "XREADGROUP" => self.own_streams(frame),
            _ if spec.kind == Kind::Script => self.own_values(spec, request, frame),
            _ => None,
        }
    }

    /// `[name, ..]`
    fn own_first(&self, frame: &[u8]) -> Option<Bytes> {
        let cells = reply::elements(frame)?;
        let first = cells.first()?.clone();
        let name = self.own_name(reply::bulk(&frame[first.clone()])?)?;
        let mut out = BytesMut::with_capacity(frame.len());
        out.extend_from_slice(&frame[..first.start]);
        write::bulk(&mut out, name);
        out.extend_from_slice(&frame[first.end..]);
        Some(out.freeze())
    }

    /// `[[name, entries], ..]` in RESP2, `{name: entries, ..}` in RESP3.
    fn own_streams(&self, frame: &[u8]) -> Option<Bytes> {
        let cells = reply::elements(frame)?;
        let mut out = BytesMut::with_capacity(frame.len());
        out.extend_from_slice(&frame[..cells.first()?.start]);
        let is_map = frame.first() == Some(&b'%');
        for (index, cell) in cells.into_iter().enumerate() {
            match is_map {
                true if index % 2 == 1 => out.extend_from_slice(&frame[cell]),
                true => write::bulk(&mut out, self.own_name(reply::bulk(&frame[cell])?)?),
                false => out.extend_from_slice(&self.own_first(&frame[cell])?),
            }
        }
        Some(out.freeze())
    }

    /// A script may give back the names that it was given, at any depth.
    fn own_values(&self, spec: &CommandSpec, request: &Request, frame: &[u8]) -> Option<Bytes> {
        let keys = command::keys_of(spec, request)?;
        let pair = |index: &usize| (self.cluster_name(request.arg(*index)), request.arg(*index));
        let names: Vec<(Cow<'_, [u8]>, &[u8])> = keys.iter().map(pair).collect();
        names.iter().find(|(name, _)| memchr::memmem::find(frame, name).is_some())?;
        let mut out = BytesMut::with_capacity(frame.len());
        replace_values(&mut out, frame, &names);
        Some(out.freeze())
    }

    /// Some errors name the key (NOGROUP).
    fn own_error(&self, spec: &CommandSpec, request: &Request, frame: &[u8]) -> Option<Bytes> {
        let mut text = frame.to_vec();
        for index in command::keys_of(spec, request)? {
            let (own, name) = (request.arg(index), self.cluster_name(request.arg(index)));
            while let Some(at) = memchr::memmem::find(&text, &name) {
                text.splice(at..at + name.len(), own.iter().copied());
            }
        }
        (text != frame).then(|| text.into())
    }
}

/// Copies a frame with every bulk string that is one of the names replaced. As deep as the scanner lets a frame be.
fn replace_values(out: &mut BytesMut, frame: &[u8], names: &[(Cow<'_, [u8]>, &[u8])]) {
    if let Some(cells) = reply::elements(frame) {
        let head = cells.first().map_or(frame.len(), |cell| cell.start);
        out.extend_from_slice(&frame[..head]);
        return cells.into_iter().for_each(|cell| replace_values(out, &frame[cell], names));
    }
    let known = frame.starts_with(b"$").then(|| reply::bulk(frame)).flatten();
    match known.and_then(|value| names.iter().find(|(name, _)| **name == *value)) {
        Some((_, own)) => write::bulk(out, own),
        None => out.extend_from_slice(frame),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::table::tests::spec;
    use crate::routing::{Pattern, Patterns, RoutingSpec};

    fn table() -> Table {
        let keys = ["provider:{provider}:*", "*:provider:{provider}:*"].map(|text| Pattern::parse(text).unwrap());
        Table::build(&RoutingSpec { cluster_keys: ClusterKeys::Tagged, keys: Patterns(keys.into()), ..spec() }, 1, None)
    }

    #[test]
    fn every_key_has_its_name_and_every_name_its_key() {
        let table = table();
        for (key, name) in [
            ("provider:42:a", "{42}provider:42:a"),
            (":1:provider:7:x{y}", "{7}:1:provider:7:x{y}"),
            ("celery", "{-}celery"),
            ("provider:a}b:c", "{a}b}provider:a}b:c"),
            ("{-}celery", "{-}{-}celery"),
        ] {
            assert_eq!(*table.cluster_name(key.as_bytes()), *name.as_bytes());
            assert_eq!(table.own_name(name.as_bytes()), Some(key.as_bytes()));
        }
        for foreign in ["provider:42:a", "{43}provider:42:a", "{42}x", "{x", ""] {
            assert_eq!(table.own_name(foreign.as_bytes()), None, "{foreign}");
        }
        assert_eq!(table.slot_of(b"provider:42:a"), slot::of(b"42"));
        assert_eq!(table.slot_of(b"provider:42:b"), table.slot_of(b":1:provider:42:c"));
    }

    #[test]
    fn requests_and_replies_are_renamed_and_nothing_else_in_them() {
        let table = table();
        let request = Request::from_args(&["SET", "provider:1:k", "provider:1:k"]);
        let renamed = table.cluster_request(command::lookup(b"SET").unwrap(), &request);
        assert_eq!(renamed, Request::from_args(&["SET", "{1}provider:1:k", "provider:1:k"]).bytes());
        let read = (command::lookup(b"XREAD").unwrap(), Request::from_args(&["XREAD", "STREAMS", "s", "0"]));
        let own = |frame: &[u8]| table.own_reply(read.0, &read.1, frame).map(|frame| frame.escape_ascii().to_string());
        let two = own(b"*1\r\n*2\r\n$4\r\n{-}s\r\n*0\r\n").unwrap();
        assert_eq!(two, b"*1\r\n*2\r\n$1\r\ns\r\n*0\r\n".escape_ascii().to_string());
        let three = own(b"%1\r\n$4\r\n{-}s\r\n*0\r\n").unwrap();
        assert_eq!(three, b"%1\r\n$1\r\ns\r\n*0\r\n".escape_ascii().to_string());
        let error = own(b"-NOGROUP No such key '{-}s'\r\n").unwrap();
        assert_eq!(error, b"-NOGROUP No such key 's'\r\n".escape_ascii().to_string());
        assert_eq!(own(b"*-1\r\n"), None);
        let eval = (command::lookup(b"EVAL").unwrap(), Request::from_args(&["EVAL", "x", "1", "k"]));
        let given = table.own_reply(eval.0, &eval.1, b"*2\r\n*1\r\n$4\r\n{-}k\r\n$5\r\n{-}kk\r\n").unwrap();
        assert_eq!(given, &b"*2\r\n*1\r\n$1\r\nk\r\n$5\r\n{-}kk\r\n"[..]);
    }
}
