//! Which databases of the standalone move, and what tells their keys apart. Pure.
//!
//! A cluster has one database. The keys of the main one keep their names there; those of a further one get its prefix in
//! front. So that no two keys ever share a name, a key of the main database that begins with such a prefix gets a
//! [`MARK`] in front, and so does one that begins with the mark itself. Without further databases nothing is marked.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::command::{self, CommandSpec};
use crate::resp::request::Request;

/// Stands before keys of the main database that would else be taken for those of another.
pub const MARK: &[u8] = b"%";

/// Redis has 16 by default; a number beyond what the standalone has is refused by its own SELECT.
pub const DATABASES: u32 = 16;

/// A key as the application knows it: its name, and the database that it is in. The same name in two databases is two keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub name: Bytes,
    pub db: u32,
}

impl Key {
    /// A key whose name is copied, so that it keeps nothing else alive.
    pub fn copied(db: u32, name: &[u8]) -> Self {
        Self { name: Bytes::copy_from_slice(name), db }
    }
}

/// Argument indexes of a request's keys, each with its database.
pub type Places = SmallVec<[(usize, u32); 4]>;

/// Where a request from a connection with database `db` has its keys; `None` if its arguments can't be understood.
pub fn places_of(db: u32, spec: &CommandSpec, request: &Request) -> Option<Places> {
    let keys = command::keys_of(spec, request)?;
    match keys[..] {
        [index] if spec.name != "MOVE" => return Some(Places::from_iter([(index, db)])),
        [index] => {
            let to = command::other_database(spec, request).unwrap_or(db);
            return Some(Places::from_iter([(index, db), (index, to)]));
        }
        _ => {}
    }
    // COPY names the database of its second key.
    let other = command::other_database(spec, request).unwrap_or(db);
    if other >= DATABASES {
        return None;
    }
    Some(keys.into_iter().enumerate().map(|(number, index)| (index, if number == 1 { other } else { db })).collect())
}

/// The databases that move: the main one, and further ones with their prefix on the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Databases {
    /// The one in the standalone's URL.
    pub main: u32,
    /// By number. No prefix is empty, has a brace, or begins with another one or the mark; see `config::check`.
    pub prefixes: Vec<(u32, String)>,
}

impl Databases {
    /// Whether a database moves; the others are the standalone's, whole and unchanged.
    #[inline]
    pub fn is_moving(&self, db: u32) -> bool {
        db == self.main || self.prefix_of(db).is_some()
    }

    /// All that move.
    pub fn moving(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::once(self.main).chain(self.prefixes.iter().map(|(db, _)| *db))
    }

    fn prefix_of(&self, db: u32) -> Option<&[u8]> {
        self.prefixes.iter().find(|(number, _)| *number == db).map(|(_, prefix)| prefix.as_bytes())
    }

    fn needs_mark(&self, name: &[u8]) -> bool {
        let is_taken = |(_, prefix): &(u32, String)| name.starts_with(prefix.as_bytes());
        !self.prefixes.is_empty() && (name.starts_with(MARK) || self.prefixes.iter().any(is_taken))
    }

    /// What stands before a key's name on the cluster.
    #[inline]
    pub fn front_of(&self, db: u32, name: &[u8]) -> &[u8] {
        match db == self.main {
            true if self.needs_mark(name) => MARK,
            true => b"",
            false => self.prefix_of(db).unwrap_or_default(),
        }
    }

    /// The database and the key that a name on the cluster stands for; `None`: no key has that name.
    pub fn read<'n>(&self, name: &'n [u8]) -> Option<(u32, &'n [u8])> {
        if self.prefixes.is_empty() {
            return Some((self.main, name));
        }
        if let Some(rest) = name.strip_prefix(MARK) {
            return self.needs_mark(rest).then_some((self.main, rest));
        }
        let own = |(db, prefix): &(u32, String)| Some((*db, name.strip_prefix(prefix.as_bytes())?));
        Some(self.prefixes.iter().find_map(own).unwrap_or((self.main, name)))
    }

    /// A glob that fits what [`Databases::front_of`] makes of all keys of a database that `pattern` fits, and maybe of more.
    pub fn glob<'p>(&self, db: u32, pattern: &'p [u8]) -> Cow<'p, [u8]> {
        if self.prefixes.is_empty() {
            return Cow::Borrowed(pattern);
        }
        let Some(prefix) = self.prefix_of(db) else { return Cow::Owned([b"*", pattern].concat()) };
        let escaped = prefix.iter().flat_map(|byte| {
            let is_special = matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^');
            is_special.then_some(b'\\').into_iter().chain([*byte])
        });
        Cow::Owned(escaped.chain(pattern.iter().copied()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_every_database_has_a_name_of_its_own() {
        let databases = Databases { main: 0, prefixes: vec![(1, "db1:".into()), (4, "four:".into())] };
        let names: &[&[u8]] = &[b"a", b"", b"db1:a", b"four:", b"db1:db1:a", b"%", b"%a", b"%%a", b"%db1:a", b"db1"];
        let mut seen = std::collections::HashSet::new();
        for db in databases.moving() {
            for name in names {
                let there = [databases.front_of(db, name), name].concat();
                assert_eq!(databases.read(&there), Some((db, *name)), "{db} {}", name.escape_ascii());
                assert!(seen.insert(there), "{db} {}", name.escape_ascii());
            }
        }
        assert_eq!(databases.read(b"%a"), None, "no key needs a mark there");
        assert_eq!(databases.front_of(0, b"a"), b"");
    }

    #[test]
    fn without_further_databases_every_name_is_the_main_ones() {
        let databases = Databases { main: 3, prefixes: Vec::new() };
        for name in [&b"db1:a"[..], b"%a", b""] {
            assert_eq!((databases.front_of(3, name), databases.read(name)), (&b""[..], Some((3, name))));
        }
        assert!(databases.is_moving(3) && !databases.is_moving(0));
    }

    #[test]
    fn a_glob_for_the_cluster_takes_the_prefix_by_its_letters() {
        let databases = Databases { main: 0, prefixes: vec![(1, "a*[x]:".into())] };
        assert_eq!(&*databases.glob(1, b"k?"), b"a\\*\\[x\\]:k?");
        assert_eq!(&*databases.glob(0, b"k?"), b"*k?");
        assert_eq!(&*Databases::default().glob(0, b"k?"), b"k?");
    }
}
