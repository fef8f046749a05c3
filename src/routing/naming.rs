//! What keys are called on the cluster, in requests and in replies. Pure.
//!
//! With `cluster_keys = "tagged"` a key of provider 42 is stored there as `{42}` and its own name, so that all keys of a
//! provider share a slot; keys without a provider share the tag `{-}`. Between the tag and the name stands what tells the
//! keys of different databases apart (`databases.rs`), so that a provider's keys share a slot whatever database they are in.
//! The name depends on the key patterns and the databases alone, never on the lines of a table: a provider that gets a line
//! of its own keeps its names.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

use crate::command::{self, CommandSpec, Kind};
use crate::resp::request::Request;
use crate::resp::{reply, write};
use crate::routing::{ClusterKeys, Table, places_of};
use crate::slot;

/// The tag of keys without a provider.
const NO_PROVIDER: &[u8] = b"-";

impl Table {
    /// Whether keys may have other names on the cluster.
    #[inline]
    pub fn is_renamed(&self) -> bool {
        self.is_tagged() || !self.databases().prefixes.is_empty()
    }

    fn is_tagged(&self) -> bool {
        self.cluster_keys() == ClusterKeys::Tagged
    }

    fn tag_of<'k>(&self, key: &'k [u8]) -> &'k [u8] {
        self.provider_of(key).unwrap_or(NO_PROVIDER)
    }

    /// The slot of a key on the cluster.
    #[inline]
    pub fn slot_of(&self, db: u32, key: &[u8]) -> u16 {
        // A tag with a brace in it is cut there, by the cluster too.
        slot::of(&self.cluster_name(db, key))
    }

    /// The name of a key on the cluster.
    #[inline]
    pub fn cluster_name<'k>(&self, db: u32, key: &'k [u8]) -> Cow<'k, [u8]> {
        let front = self.databases().front_of(db, key);
        match self.is_tagged() {
            false if front.is_empty() => Cow::Borrowed(key),
            false => Cow::Owned([front, key].concat()),
            true => Cow::Owned([b"{", self.tag_of(key), b"}", front, key].concat()),
        }
    }

    /// The database and the application's name of a key on the cluster; `None`: no key of this table has that name.
    pub fn own_key<'n>(&self, name: &'n [u8]) -> Option<(u32, &'n [u8])> {
        if !self.is_tagged() {
            return self.databases().read(name);
        }
        let inner = name.strip_prefix(b"{")?;
        let read = |end: usize| Some((&inner[..end], self.databases().read(&inner[end + 1..])?));
        let mut readings = memchr::memchr_iter(b'}', inner).filter_map(read);
        readings.find(|(tag, (_, key))| self.tag_of(key) == *tag).map(|(_, own)| own)
    }

    /// The application's name of a key on the cluster.
    pub fn own_name<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        self.own_key(name).map(|(_, key)| key)
    }

    /// A glob that fits the cluster's names of the keys of a database that `pattern` fits, and maybe some more: see
    /// [`glob::fits`](crate::routing::glob::fits).
    pub fn cluster_pattern<'p>(&self, db: u32, pattern: &'p [u8]) -> Cow<'p, [u8]> {
        let glob = self.databases().glob(db, pattern);
        match self.is_tagged() {
            false => glob,
            true => Cow::Owned([b"{*}", &*glob].concat()),
        }
    }

    /// A request from a connection with database `db`, as the cluster is to get it.
    pub fn cluster_request(&self, db: u32, spec: &CommandSpec, request: &Request) -> Bytes {
        let other = command::other_database(spec, request);
        if !(self.is_renamed() || other.is_some()) {
            return request.bytes().clone();
        }
        match (places_of(db, spec, request), other) {
            (Some(places), None) => self.rename(request, &places),
            (Some(places), Some(_)) => self.in_one_database(request, &places),
            (None, _) => request.bytes().clone(),
        }
    }

    /// COPY and MOVE between two databases, which are one on the cluster.
    fn in_one_database(&self, request: &Request, places: &[(usize, u32)]) -> Bytes {
        let names: Vec<_> = places.iter().map(|(index, db)| self.cluster_name(*db, request.arg(*index))).collect();
        let mut args: Vec<&[u8]> = vec![b"RENAMENX"];
        args.extend(names.iter().map(|name| &**name));
        if let Some(at) = command::keys::copy_option(request) {
            args[0] = b"COPY";
            args.extend(
                request
                    .args()
                    .enumerate()
                    .skip(3)
                    .filter(|(index, _)| *index != at && *index != at + 1)
                    .map(|(_, arg)| arg),
            );
        }
        Request::from_args(&args).bytes().clone()
    }

    /// A request with the arguments at `places` as the cluster calls them.
    pub fn rename(&self, request: &Request, places: &[(usize, u32)]) -> Bytes {
        let is_same = |(index, db): &(usize, u32)| self.databases().front_of(*db, request.arg(*index)).is_empty();
        if !self.is_tagged() && places.iter().all(is_same) {
            return request.bytes().clone();
        }
        let place = |index| places.iter().find(|(place, _)| *place == index);
        let name = |(index, arg)| place(index).map_or(Cow::Borrowed(arg), |(_, db)| self.cluster_name(*db, arg));
        let args: Vec<Cow<'_, [u8]>> = request.args().enumerate().map(name).collect();
        let views: Vec<&[u8]> = args.iter().map(AsRef::as_ref).collect();
        let mut out = BytesMut::new();
        write::command(&mut out, &views);
        out.freeze()
    }

    /// A reply of the cluster as the application is to get it, where its names differ; `None`: as it is.
    pub fn own_reply(&self, db: u32, spec: &CommandSpec, request: &Request, frame: &[u8]) -> Option<Bytes> {
        if !self.is_renamed() {
            return None;
        }
        if reply::is_error(frame) {
            if spec.name == "MOVE" && frame.starts_with(b"-ERR no such key") {
                return Some(Bytes::from_static(b":0\r\n"));
            }
            return self.own_error(db, spec, request, frame);
        }
        match spec.name {
            "BLPOP" | "BRPOP" | "BZPOPMIN" | "BZPOPMAX" | "LMPOP" | "ZMPOP" | "BLMPOP" | "BZMPOP" => {
                self.own_first(frame)
            }
            "XREAD" | "XREADGROUP" => self.own_streams(frame),
            _ if spec.kind == Kind::Script => self.own_values(db, spec, request, frame),
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
    fn own_values(&self, db: u32, spec: &CommandSpec, request: &Request, frame: &[u8]) -> Option<Bytes> {
        let places = places_of(db, spec, request)?;
        let pair = |(index, db): &(usize, u32)| (self.cluster_name(*db, request.arg(*index)), request.arg(*index));
        let names: Vec<(Cow<'_, [u8]>, &[u8])> = places.iter().map(pair).collect();
        names.iter().find(|(name, _)| memchr::memmem::find(frame, name).is_some())?;
        let mut out = BytesMut::with_capacity(frame.len());
        replace_values(&mut out, frame, &names);
        Some(out.freeze())
    }

    /// Some errors name the key (NOGROUP).
    fn own_error(&self, db: u32, spec: &CommandSpec, request: &Request, frame: &[u8]) -> Option<Bytes> {
        let mut text = frame.to_vec();
        for (index, db) in places_of(db, spec, request)? {
            let (own, name) = (request.arg(index), self.cluster_name(db, request.arg(index)));
            let mut from = 0;
            while let Some(at) = memchr::memmem::find(&text[from..], &name).map(|at| from + at) {
                text.splice(at..at + name.len(), own.iter().copied());
                from = at + own.len();
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
    use crate::routing::{Databases, Pattern, Patterns, RoutingSpec, glob};

    fn table_with(cluster_keys: ClusterKeys, databases: Databases) -> Table {
        let keys = ["provider:{provider}:*", "*:provider:{provider}:*"].map(|text| Pattern::parse(text).unwrap());
        Table::build(&RoutingSpec { cluster_keys, databases, keys: Patterns(keys.into()), ..spec() }, 1, None)
    }

    fn table() -> Table {
        table_with(ClusterKeys::Tagged, Databases::default())
    }

    #[test]
    fn keys_of_several_databases_keep_apart_and_a_provider_s_share_a_slot_with_tags() {
        let databases = Databases { main: 0, prefixes: vec![(1, "db1:".into())] };
        let (same, tagged) =
            (table_with(ClusterKeys::Same, databases.clone()), table_with(ClusterKeys::Tagged, databases));
        for (db, key, plain, name) in [
            (0, "provider:42:a", "provider:42:a", "{42}provider:42:a"),
            (1, "provider:42:a", "db1:provider:42:a", "{42}db1:provider:42:a"),
            (0, "db1:provider:42:a", "%db1:provider:42:a", "{42}%db1:provider:42:a"),
            (1, "db1:provider:42:a", "db1:db1:provider:42:a", "{42}db1:db1:provider:42:a"),
            (1, "celery", "db1:celery", "{-}db1:celery"),
        ] {
            for (table, name) in [(&same, plain), (&tagged, name)] {
                assert_eq!(*table.cluster_name(db, key.as_bytes()), *name.as_bytes());
                assert_eq!(table.own_key(name.as_bytes()), Some((db, key.as_bytes())), "{name}");
                assert!(glob::fits(
                    &table.cluster_pattern(db, &key.as_bytes()[..3]),
                    &name.as_bytes()[..name.len() - key.len() + 3]
                ));
            }
        }
        assert_eq!(tagged.slot_of(0, b"provider:42:a"), tagged.slot_of(1, b"provider:42:b"));
        let copy = (command::lookup(b"COPY").unwrap(), Request::from_args(&["COPY", "a", "b", "DB", "1", "REPLACE"]));
        let expected = Request::from_args(&["COPY", "{-}a", "{-}db1:b", "REPLACE"]);
        assert_eq!(tagged.cluster_request(0, copy.0, &copy.1), expected.bytes());
        let moved = (command::lookup(b"MOVE").unwrap(), Request::from_args(&["MOVE", "a", "1"]));
        let expected = Request::from_args(&["RENAMENX", "{-}a", "{-}db1:a"]);
        assert_eq!(tagged.cluster_request(0, moved.0, &moved.1), expected.bytes());
        let absent = tagged.own_reply(0, moved.0, &moved.1, b"-ERR no such key\r\n");
        assert_eq!(absent.as_deref(), Some(&b":0\r\n"[..]));
        let plain = Request::from_args(&["GET", "a"]);
        assert_eq!(same.cluster_request(0, command::lookup(b"GET").unwrap(), &plain).as_ptr(), plain.bytes().as_ptr());
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
            assert_eq!(*table.cluster_name(0, key.as_bytes()), *name.as_bytes());
            assert_eq!(table.own_name(name.as_bytes()), Some(key.as_bytes()));
        }
        for foreign in ["provider:42:a", "{43}provider:42:a", "{42}x", "{x", ""] {
            assert_eq!(table.own_name(foreign.as_bytes()), None, "{foreign}");
        }
        assert_eq!(table.slot_of(0, b"provider:42:a"), slot::of(b"42"));
        assert_eq!(table.slot_of(0, b"provider:42:b"), table.slot_of(0, b":1:provider:42:c"));
    }

    #[test]
    fn requests_and_replies_are_renamed_and_nothing_else_in_them() {
        let table = table();
        let request = Request::from_args(&["SET", "provider:1:k", "provider:1:k"]);
        let renamed = table.cluster_request(0, command::lookup(b"SET").unwrap(), &request);
        assert_eq!(renamed, Request::from_args(&["SET", "{1}provider:1:k", "provider:1:k"]).bytes());
        let read = (command::lookup(b"XREAD").unwrap(), Request::from_args(&["XREAD", "STREAMS", "s", "0"]));
        let own =
            |frame: &[u8]| table.own_reply(0, read.0, &read.1, frame).map(|frame| frame.escape_ascii().to_string());
        let two = own(b"*1\r\n*2\r\n$4\r\n{-}s\r\n*0\r\n").unwrap();
        assert_eq!(two, b"*1\r\n*2\r\n$1\r\ns\r\n*0\r\n".escape_ascii().to_string());
        let three = own(b"%1\r\n$4\r\n{-}s\r\n*0\r\n").unwrap();
        assert_eq!(three, b"%1\r\n$1\r\ns\r\n*0\r\n".escape_ascii().to_string());
        let error = own(b"-NOGROUP No such key '{-}s'\r\n").unwrap();
        assert_eq!(error, b"-NOGROUP No such key 's'\r\n".escape_ascii().to_string());
        assert_eq!(own(b"*-1\r\n"), None);
        let eval = (command::lookup(b"EVAL").unwrap(), Request::from_args(&["EVAL", "x", "1", "k"]));
        let given = table.own_reply(0, eval.0, &eval.1, b"*2\r\n*1\r\n$4\r\n{-}k\r\n$5\r\n{-}kk\r\n").unwrap();
        assert_eq!(given, &b"*2\r\n*1\r\n$1\r\nk\r\n$5\r\n{-}kk\r\n"[..]);
    }
}
