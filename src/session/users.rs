//! Who a client may be, and what each may do: passwords by their hashes, commands, and the routes of its keys. A user whose
//! rights were changed or who is gone loses its clients; what a user may not do is refused in the words of Redis.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::command::permitted::Permitted;
use crate::command::{self, CommandSpec, Kind};
use crate::resp::refusal::Refusal;
use crate::resp::request::Request;
use crate::routing::{Scope, Table};
use crate::secret::Digest;

/// The user of a client that names none.
pub const DEFAULT: &str = "default";

/// What a user may not do without limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// `None`: all.
    pub commands: Option<Permitted>,
    /// `None`: every key.
    pub scope: Option<Scope>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct User {
    pub name: Bytes,
    /// `None`: any password will do.
    pub password: Option<Digest>,
    /// `None`: everything.
    pub rights: Option<Arc<Rights>>,
}

/// See the module. Replaced as a whole.
#[derive(Debug, Default)]
pub struct Users(HashMap<Bytes, Arc<User>>);

impl Users {
    pub fn new(users: impl IntoIterator<Item = User>) -> Self {
        Self(users.into_iter().map(|user| (user.name.clone(), Arc::new(user))).collect())
    }

    /// The user of a new connection, if it needs no password.
    pub fn unasked(&self) -> Option<&Arc<User>> {
        self.0.get(DEFAULT.as_bytes()).filter(|user| user.password.is_none())
    }

    /// Whether there is one of that name.
    pub fn has(&self, name: &[u8]) -> bool {
        self.0.contains_key(name)
    }

    /// Who knows the password. A name that does not exist takes as long as one that does.
    pub fn login(&self, name: &[u8], password: &[u8]) -> Option<&Arc<User>> {
        let user = self.0.get(name);
        let is_right = match user.map(|user| user.password) {
            Some(None) => true,
            Some(Some(wanted)) => wanted.is_of(password),
            None => {
                let _as_long = Digest::of(b"").is_of(password);
                false
            }
        };
        user.filter(|_| is_right)
    }

    /// Those who may not go on as they are under `new` ones.
    pub fn ended<'u>(&'u self, new: &'u Self) -> impl Iterator<Item = &'u Bytes> {
        let stays = |user: &User| new.0.get(&user.name).is_some_and(|other| other.rights == user.rights);
        self.0.values().filter(move |user| !stays(user)).map(|user| &user.name)
    }
}

/// The database that a client has selected, and the one that moves.
#[derive(Clone, Copy, Debug)]
pub struct Db {
    pub own: u32,
    pub moving: u32,
}

impl Rights {
    /// Why a request is refused, if it is. What a proxy can't look into, a user that is confined to routes may not do.
    pub fn refuse(&self, spec: &CommandSpec, request: &Request, table: &Table, db: Db) -> Option<Refusal> {
        let no_command = || {
            let name = spec.name.to_lowercase();
            Some(Refusal::Denied(format!("NOPERM this user has no permissions to run the '{name}' command")))
        };
        if self.commands.as_ref().is_some_and(|commands| !commands.has(spec)) {
            return no_command();
        }
        let scope = self.scope.as_ref()?;
        if reaches_beyond(spec, request, db.moving) || !(db.own == db.moving || spec.kind == Kind::Local) {
            return no_command();
        }
        let keys = command::keys_of(spec, request);
        if keys.is_some_and(|keys| keys.iter().all(|index| scope.has(table, request.arg(*index)))) {
            return None;
        }
        let text = "NOPERM this user has no permissions to access one of the keys used as arguments";
        Some(Refusal::Denied(text.into()))
    }
}

/// Whether a request touches, shows or steers more than the keys that it names.
fn reaches_beyond(spec: &CommandSpec, request: &Request, moving: u32) -> bool {
    let is_one_of = |arg: &[u8], words: &[&str]| words.iter().any(|word| arg.eq_ignore_ascii_case(word.as_bytes()));
    match spec.kind {
        Kind::Scan | Kind::KeyspaceWide | Kind::Script => true,
        Kind::Keyless => {
            !matches!(spec.name, "COMMAND" | "INFO" | "LASTSAVE" | "LOLWUT" | "ROLE" | "TIME" | "WAIT" | "WAITAOF")
        }
        Kind::Local if spec.name == "CLIENT" => {
            is_one_of(request.arg(1), &["KILL", "LIST", "PAUSE", "UNPAUSE", "UNBLOCK"])
        }
        Kind::Keyed if spec.name == "DEBUG" => true,
        // Routes are known of one database only.
        Kind::Local if spec.name == "SELECT" => request.arg(1) != moving.to_string().as_bytes(),
        Kind::Keyed if matches!(spec.name, "SORT" | "SORT_RO") => {
            request.args().skip(2).any(|arg| is_one_of(arg, &["BY", "GET"]))
        }
        // Into another database.
        Kind::Keyed => command::other_database(spec, request).is_some_and(|db| db != moving),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{RouteName, sample_spec};

    fn user(name: &'static str, password: Option<&str>) -> User {
        let password = password.map(|password| Digest::of(password.as_bytes()));
        User { name: name.into(), password, rights: None }
    }

    #[test]
    fn a_login_needs_the_name_and_its_own_password() {
        let users = Users::new([user("a", Some("p")), user("b", Some("q"))]);
        assert!(users.login(b"a", b"p").is_some());
        for (name, password) in [(b"a", b"q"), (b"b", b"p"), (b"c", b"p")] {
            assert!(users.login(name, password).is_none());
        }
        assert!(users.login(b"c", b"").is_none() && users.unasked().is_none());
        assert!(Users::new([user(DEFAULT, None)]).unasked().is_some());
    }

    #[test]
    fn who_is_gone_or_has_other_rights_may_not_go_on() {
        let old = Users::new([user("stays", Some("p")), user("goes", None), user("changes", None)]);
        let rights = Some(Arc::new(Rights { commands: None, scope: Some(Scope(Vec::new())) }));
        let new = Users::new([user("stays", Some("other")), User { rights, ..user("changes", None) }]);
        let mut ended: Vec<_> = old.ended(&new).cloned().collect();
        ended.sort();
        assert_eq!(ended, ["changes", "goes"]);
    }

    #[test]
    fn who_is_confined_to_a_route_reaches_nothing_beside_it() {
        let table = Table::build(&sample_spec(), 1, None);
        let scope = Some(Scope(vec![RouteName::Provider("7".into())]));
        let rights = Rights { commands: None, scope };
        let is_refused = |words: &[&str]| {
            let request = Request::from_args(words);
            let spec = command::lookup(words[0].as_bytes()).unwrap();
            rights.refuse(spec, &request, &table, Db { own: 0, moving: 0 }).is_some()
        };
        for allowed in [
            &["GET", "provider:7:a"][..],
            &["MGET", "provider:7:a", "provider:7:b"],
            &["SORT", "provider:7:a", "ALPHA"],
            &["WATCH", "provider:7:a"],
            &["BLPOP", "provider:7:a", "0"],
            &["CLIENT", "SETNAME", "x"],
            &["SELECT", "0"],
            &["MULTI"],
        ] {
            assert!(!is_refused(allowed), "{allowed:?}");
        }
        for refused in [
            &["GET", "provider:8:a"][..],
            &["MGET", "provider:7:a", "provider:8:b"],
            &["RENAME", "provider:7:a", "b"],
            &["SORT", "provider:7:a", "by", "provider:8:*"],
            &["EVAL", "return 1", "1", "provider:7:a"],
            &["EVAL", "return 1", "0"],
            &["SCAN", "0"],
            &["SELECT", "3"],
            &["KEYS", "*"],
            &["FLUSHALL"],
            &["DEBUG", "OBJECT", "provider:8:a"],
            &["client", "kill", "TYPE", "normal"],
            &["ZUNIONSTORE", "provider:7:a", "not a number", "provider:8:a"],
        ] {
            assert!(is_refused(refused), "{refused:?}");
        }
        let get = Request::from_args(&["GET", "provider:7:a"]);
        assert!(rights.refuse(command::lookup(b"GET").unwrap(), &get, &table, Db { own: 1, moving: 0 }).is_some());
    }
}
