//! What the operator wants of commands, beside what the table says: further ones that are refused, single sub-commands of a
//! container too, and refused ones that go to the standalone as they are.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use crate::command::{CommandSpec, Kind, all, lookup, place};
use crate::resp::request::Request;

/// A command, or `COMMAND SUB-COMMAND`, in upper case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    name: String,
    sub: Option<String>,
}

/// Why a name cannot stand in one of the lists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("`{0}` is no command, nor a command and its sub-command")]
    Form(String),
    /// With the nearest known ones to choose from.
    #[error("there is no command `{0}`")]
    Unknown(String),
    #[error("`{name}` has no sub-command `{sub}`")]
    UnknownSub { name: String, sub: String },
    #[error("`{0}` cannot be refused: without it a client could not log in or leave")]
    Needed(String),
    #[error("`{0}` is not refused")]
    NotRefused(String),
    #[error("`{name}` can never be passed on: {reason}")]
    Never { name: String, reason: &'static str },
}

/// What the operator wants of one request.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// What the table says.
    Usual,
    Refused,
    /// Refused by the table, and passed on by this row.
    Passed(&'static CommandSpec),
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    refused: HashSet<Named>,
    allowed: HashSet<Named>,
}

/// What a client says of itself and of its connection.
const NEEDED: [&str; 4] = ["AUTH", "HELLO", "QUIT", "RESET"];

const STREAM: &str = "it makes a stream of its connection, and those to the stores are shared";
const SHARED: &str = "it speaks of its connection, and those to the stores are shared";
const AROUND: &str = "it changes keys without the proxy seeing which";
const NEVER: [(&str, &str); 11] = [
    ("ASKING", SHARED),
    ("CLIENT TRACKING", SHARED),
    ("MIGRATE", AROUND),
    ("MONITOR", STREAM),
    ("PSYNC", STREAM),
    ("READONLY", SHARED),
    ("READWRITE", SHARED),
    ("REPLCONF", SHARED),
    ("REPLICAOF", AROUND),
    ("RESTORE-ASKING", AROUND),
    ("SLAVEOF", AROUND),
];

/// The sub-commands of containers, for whoever misspelt one.
#[rustfmt::skip]
const SUBS: [(&str, &[&str]); 15] = [
    ("ACL", &["CAT", "DELUSER", "DRYRUN", "GENPASS", "GETUSER", "HELP", "LIST", "LOAD", "LOG", "SAVE", "SETUSER", "USERS", "WHOAMI"]),
    ("CLIENT", &["CACHING", "GETNAME", "GETREDIR", "HELP", "ID", "INFO", "KILL", "LIST", "NO-EVICT", "NO-TOUCH", "PAUSE", "REPLY", "SETINFO", "SETNAME", "TRACKING", "TRACKINGINFO", "UNBLOCK", "UNPAUSE"]),
    ("CLUSTER", &["ADDSLOTS", "ADDSLOTSRANGE", "BUMPEPOCH", "COUNT-FAILURE-REPORTS", "COUNTKEYSINSLOT", "DELSLOTS", "DELSLOTSRANGE", "FAILOVER", "FLUSHSLOTS", "FORGET", "GETKEYSINSLOT", "HELP", "INFO", "KEYSLOT", "LINKS", "MEET", "MYID", "MYSHARDID", "NODES", "REPLICAS", "REPLICATE", "RESET", "SAVECONFIG", "SET-CONFIG-EPOCH", "SETSLOT", "SHARDS", "SLAVES", "SLOT-STATS", "SLOTS"]),
    ("COMMAND", &["COUNT", "DOCS", "GETKEYS", "GETKEYSANDFLAGS", "HELP", "INFO", "LIST"]),
    ("CONFIG", &["GET", "HELP", "RESETSTAT", "REWRITE", "SET"]),
    ("FUNCTION", &["DELETE", "DUMP", "FLUSH", "HELP", "KILL", "LIST", "LOAD", "RESTORE", "STATS"]),
    ("LATENCY", &["DOCTOR", "GRAPH", "HELP", "HISTOGRAM", "HISTORY", "LATEST", "RESET"]),
    ("MEMORY", &["DOCTOR", "HELP", "MALLOC-STATS", "PURGE", "STATS", "USAGE"]),
    ("MODULE", &["HELP", "LIST", "LOAD", "LOADEX", "UNLOAD"]),
    ("OBJECT", &["ENCODING", "FREQ", "HELP", "IDLETIME", "REFCOUNT"]),
    ("PUBSUB", &["CHANNELS", "HELP", "NUMPAT", "NUMSUB", "SHARDCHANNELS", "SHARDNUMSUB"]),
    ("SCRIPT", &["DEBUG", "EXISTS", "FLUSH", "HELP", "KILL", "LOAD"]),
    ("SLOWLOG", &["GET", "HELP", "LEN", "RESET"]),
    ("XGROUP", &["CREATE", "CREATECONSUMER", "DELCONSUMER", "DESTROY", "HELP", "SETID"]),
    ("XINFO", &["CONSUMERS", "GROUPS", "HELP", "STREAM"]),
];

/// Rows that are refused, as they are passed on.
static PASSED: LazyLock<HashMap<&'static str, CommandSpec>> = LazyLock::new(|| {
    let refused = all().iter().filter(|spec| matches!(spec.kind, Kind::Refused(_)));
    refused.map(|spec| (spec.name, CommandSpec { kind: Kind::Keyless, ..*spec })).collect()
});

/// Why a command can never be passed on, if it cannot.
pub fn never(name: &str) -> Option<&'static str> {
    // SYNC is an older PSYNC.
    let name = if name == "SYNC" { "PSYNC" } else { name };
    NEVER.iter().find(|(own, _)| *own == name).map(|(_, reason)| *reason)
}

/// The known sub-commands of a container; `None`: it is none, or they are not known.
pub fn subs_of(name: &str) -> Option<&'static [&'static str]> {
    SUBS.iter().find(|(own, _)| *own == name).map(|(_, subs)| *subs)
}

impl Named {
    /// From one word or two, in any case.
    pub fn parse(text: &str) -> Result<Self, Unfit> {
        let upper = text.to_ascii_uppercase();
        let mut words = upper.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(name), sub, None) => Ok(Self { name: name.into(), sub: sub.map(Into::into) }),
            _ => Err(Unfit::Form(text.into())),
        }
    }

    fn of(spec: &CommandSpec, sub: Option<String>) -> Self {
        Self { name: spec.name.into(), sub }
    }

    /// What is wrong with the words, if no such command is known. A module or a newer server may bring it, so that this is
    /// an error only where a known one is near.
    pub fn unknown(&self) -> Option<Unfit> {
        let Some(spec) = lookup(self.name.as_bytes()) else { return Some(Unfit::Unknown(self.name.clone())) };
        let sub = self.sub.as_deref()?;
        let is_known = spec.name == "DEBUG" || subs_of(spec.name).is_some_and(|subs| subs.contains(&sub));
        (!is_known).then(|| Unfit::UnknownSub { name: self.name.clone(), sub: sub.into() })
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.sub {
            Some(sub) => write!(f, "{} {sub}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl Chosen {
    /// One more that is refused.
    pub fn refuse(&mut self, named: Named) -> Result<(), Unfit> {
        if NEEDED.contains(&named.name.as_str()) {
            return Err(Unfit::Needed(named.to_string()));
        }
        self.refused.insert(named);
        Ok(())
    }

    /// One more that is allowed: refused by the table, or a sub-command of a container that is refused here.
    pub fn allow(&mut self, named: Named) -> Result<(), Unfit> {
        let of_name = never(&named.name);
        if let Some(reason) = of_name.or_else(|| never(&named.to_string())) {
            return Err(Unfit::Never { name: named.to_string(), reason });
        }
        let container = Named { sub: None, ..named.clone() };
        let is_exception = named.sub.is_some() && self.refused.contains(&container);
        if self.refused.contains(&named) || !(is_exception || PASSED.contains_key(named.name.as_str())) {
            return Err(Unfit::NotRefused(named.to_string()));
        }
        self.allowed.insert(named);
        Ok(())
    }

    /// Whether these are refused, as a whole or a part of them.
    pub fn refuses(&self, named: &Named) -> bool {
        self.refused.contains(named)
    }

    /// Whether anything is wanted of a row, so that most requests need not be looked at.
    pub fn concerns(&self, spec: &CommandSpec) -> bool {
        self.refused.iter().chain(&self.allowed).any(|named| named.name == spec.name)
    }

    /// What is wanted of a request. What is said of a sub-command goes before what is said of its container.
    pub fn of(&self, spec: &'static CommandSpec, request: &Request) -> Wanted {
        let sub = request.args().nth(1).map(|sub| String::from_utf8_lossy(sub).to_ascii_uppercase());
        for named in sub.map(|sub| Named::of(spec, Some(sub))).into_iter().chain([Named::of(spec, None)]) {
            if self.allowed.contains(&named) {
                return PASSED.get(spec.name).map_or(Wanted::Usual, Wanted::Passed);
            }
            if self.refused.contains(&named) {
                return Wanted::Refused;
            }
        }
        Wanted::Usual
    }

    /// For each row of the table, whether anything is wanted of it.
    pub fn marks(&self) -> impl Iterator<Item = (usize, bool)> {
        all().iter().map(|spec| (place(spec) as usize, self.concerns(spec)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(refuse: &[&str], allow: &[&str]) -> Result<Chosen, Unfit> {
        let mut chosen = Chosen::default();
        refuse.iter().try_for_each(|text| chosen.refuse(Named::parse(text)?))?;
        allow.iter().try_for_each(|text| chosen.allow(Named::parse(text)?))?;
        Ok(chosen)
    }

    fn wanted(chosen: &Chosen, words: &[&str]) -> Wanted {
        chosen.of(lookup(words[0].as_bytes()).unwrap(), &Request::from_args(words))
    }

    #[test]
    fn a_sub_command_goes_before_its_container() {
        let chosen = chosen(&["flushall", "config", "Client Kill"], &["config get", "ACL WHOAMI", "BGSAVE"]).unwrap();
        for words in [&["FLUSHALL"][..], &["CONFIG", "SET", "x", "y"], &["CONFIG"], &["CLIENT", "kill", "ID", "3"]] {
            assert!(matches!(wanted(&chosen, words), Wanted::Refused), "{words:?}");
        }
        for words in [&["CONFIG", "get", "x"][..], &["CLIENT", "LIST"], &["GET", "kill"], &["ACL", "LIST"]] {
            assert!(matches!(wanted(&chosen, words), Wanted::Usual), "{words:?}");
        }
        for words in [&["ACL", "whoami"][..], &["BGSAVE", "SCHEDULE"]] {
            assert!(matches!(wanted(&chosen, words), Wanted::Passed(row) if row.kind == Kind::Keyless), "{words:?}");
        }
        let marked: Vec<_> = chosen.marks().filter(|(_, is)| *is).map(|(place, _)| all()[place].name).collect();
        assert_eq!(marked, ["ACL", "BGSAVE", "CLIENT", "CONFIG", "FLUSHALL"]);
    }

    #[test]
    fn what_cannot_be_refused_or_allowed_says_why() {
        assert_eq!(chosen(&["auth"], &[]), Err(Unfit::Needed("AUTH".into())));
        assert_eq!(chosen(&[], &["GET"]), Err(Unfit::NotRefused("GET".into())));
        assert_eq!(chosen(&["GET"], &["GET"]), Err(Unfit::NotRefused("GET".into())));
        for name in ["PSYNC", "sync", "REPLICAOF", "MONITOR", "CLIENT TRACKING"] {
            assert!(matches!(chosen(&[], &[name]), Err(Unfit::Never { .. })), "{name}");
        }
        for text in ["", "A B C"] {
            assert_eq!(Named::parse(text), Err(Unfit::Form(text.into())));
        }
    }

    #[test]
    fn only_commands_of_the_table_and_their_sub_commands_are_known() {
        let unknown = |text: &str| Named::parse(text).unwrap().unknown();
        assert_eq!(unknown("GTE"), Some(Unfit::Unknown("GTE".into())));
        assert_eq!(unknown("CONFIG SETT"), Some(Unfit::UnknownSub { name: "CONFIG".into(), sub: "SETT".into() }));
        assert!(unknown("GET x").is_some());
        assert!(["GET", "config set", "DEBUG JMAP"].iter().all(|text| unknown(text).is_none()));
        assert!(NEVER.iter().all(|(name, _)| unknown(name).is_none()));
    }
}
