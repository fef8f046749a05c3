//! What is known of Redis commands: one row each, with its keys, its access and what the proxy does with it. Pure.

pub mod chosen;
pub mod keys;
pub mod learnt;
pub mod lua;
pub mod permitted;
mod table;

use smallvec::SmallVec;

use crate::resp::request::Request;

pub use table::{all, at, lookup, place};

/// What a command does to its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    None,
    Read,
    Write,
}

/// Argument indexes of the keys of a request.
pub type KeyPositions = SmallVec<[usize; 4]>;

/// Where a command has its keys.
#[derive(Clone, Copy, Debug)]
pub enum Keys {
    None,
    /// Redis's own notation: argument indexes, a negative last one counts from the end.
    Range {
        first: i16,
        last: i16,
        step: i16,
    },
    /// By its arguments; `None` where they can't be understood, and then the store says what is wrong with them.
    Irregular(fn(&Request) -> Option<KeyPositions>),
}

/// Which part of the proxy takes a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes where its keys are.
    Keyed,
    /// May be split over slots and stores.
    Split(Split),
    /// Answered by the proxy.
    Local,
    /// Has no key: goes to the standalone.
    Keyless,
    PubSub,
    Publish,
    Transaction,
    Blocking,
    Script,
    Scan,
    KeyspaceWide,
    /// Refused, with the reason.
    Refused(&'static str),
}

/// How the replies of the parts become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Values in the order of the keys.
    Mget,
    /// One OK.
    Mset,
    /// The sum.
    Count,
}

/// How a write is repeated on the follower; see `dual::effect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectKind {
    None,
    /// The same command, on an equal value.
    Replay,
    /// The same command, whatever the value was.
    Overwrite,
    Delete,
    /// SET with the decision made and the time absolute.
    Set,
    /// SET of the number that the reply names.
    Number,
    /// The time, absolute.
    Expire,
    /// What was taken by chance is removed by name.
    Spop,
    /// What was taken is taken again.
    Mpop,
    /// The score that the reply names.
    Score,
    /// The entry with the ID that the reply names.
    Xadd,
    /// Trimmed to the same length.
    Xtrim,
    /// A copy of the key.
    Copy,
}

/// What is known of one command. Container commands (CLIENT, OBJECT, XGROUP …) have one row.
#[derive(Clone, Copy, Debug)]
pub struct CommandSpec {
    /// Upper case.
    pub name: &'static str,
    /// As in COMMAND INFO: exact, or at least the negated number.
    pub arity: i16,
    pub access: Access,
    pub keys: Keys,
    pub kind: Kind,
    pub effect: EffectKind,
    /// Redis version that brought it.
    pub since: (u8, u8),
}

impl CommandSpec {
    /// Whether a request of `argc` arguments, the name included, may be right.
    pub fn takes(&self, argc: usize) -> bool {
        takes(self.arity, argc)
    }
}

/// Whether an arity, exact or at least the negated number, allows so many arguments.
pub fn takes(arity: i16, argc: usize) -> bool {
    let bound = usize::from(arity.unsigned_abs());
    if arity >= 0 { argc == bound } else { argc >= bound }
}

/// Where a request has its keys; `None` if its arguments can't be understood.
pub fn keys_of(spec: &CommandSpec, request: &Request) -> Option<KeyPositions> {
    match spec.keys {
        Keys::None => Some(KeyPositions::new()),
        Keys::Irregular(find) => find(request),
        // Most commands have one key, and their arity says that it is there.
        Keys::Range { first, last, .. } if first == last && (first as usize) < request.len() => {
            Some(KeyPositions::from_slice(&[first as usize]))
        }
        Keys::Range { first, last, step } => {
            let last = if last < 0 { request.len() as i64 + i64::from(last) } else { i64::from(last) };
            let range = (first as usize..=usize::try_from(last).ok()?).step_by(step.max(1) as usize);
            Some(range.filter(|index| *index < request.len()).collect())
        }
    }
}

/// The database that COPY and MOVE name for what they write.
pub fn other_database(spec: &CommandSpec, request: &Request) -> Option<u32> {
    let at = match spec.name {
        "COPY" => keys::copy_option(request)? + 1,
        "MOVE" => 2,
        _ => return None,
    };
    std::str::from_utf8(request.args().nth(at)?).ok()?.parse().ok()
}

/// Whether a reply, or an error, may name keys.
pub fn tells_keys(spec: &CommandSpec) -> bool {
    spec.name.starts_with('X')
        || matches!(spec.kind, Kind::Blocking | Kind::Script)
        || matches!(spec.name, "LMPOP" | "ZMPOP" | "MOVE")
}

/// Whether an argument stands among the options from `from` on.
fn has_option(request: &Request, from: usize, option: &[u8]) -> bool {
    (from..request.len()).any(|index| request.arg(index).eq_ignore_ascii_case(option))
}

/// Whether a request waits for data: XREAD and XREADGROUP only with BLOCK.
pub fn is_blocking(spec: &CommandSpec, request: &Request) -> bool {
    match spec.name {
        "XREAD" | "XREADGROUP" => keys::stream_option(request, b"BLOCK"),
        _ => spec.kind == Kind::Blocking,
    }
}

/// What this request does to its keys.
pub fn access_of(spec: &CommandSpec, request: &Request) -> Access {
    match spec.name {
        "SORT" if !has_option(request, 2, b"STORE") => Access::Read,
        "GETEX" if request.len() == 2 => Access::Read,
        "BITFIELD" if !["SET", "INCRBY"].iter().any(|word| has_option(request, 2, word.as_bytes())) => Access::Read,
        "GEORADIUS" | "GEORADIUSBYMEMBER"
            if !["STORE", "STOREDIST"].iter().any(|word| has_option(request, 4, word.as_bytes())) =>
        {
            Access::Read
        }
        _ => spec.access,
    }
}

/// How this request is repeated on the follower.
pub fn effect_of(spec: &CommandSpec, request: &Request) -> EffectKind {
    match spec.name {
        "SET" if request.len() == 3 => EffectKind::Overwrite,
        "ZADD"
            if request.len() > 4
                && (2..request.len() - 2).any(|index| request.arg(index).eq_ignore_ascii_case(b"INCR")) =>
        {
            EffectKind::Score
        }
        _ => spec.effect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(args: &[&str]) -> Option<Vec<usize>> {
        let spec = lookup(args[0].as_bytes()).unwrap();
        keys_of(spec, &Request::from_args(args)).map(|found| found.to_vec())
    }

    #[test]
    fn commands_are_found_in_any_case_and_unknown_ones_are_not() {
        assert_eq!(lookup(b"gEt").map(|spec| spec.name), Some("GET"));
        assert!(lookup(b"GETT").is_none() && lookup(b"").is_none() && lookup(&[b'x'; 300]).is_none());
        assert!(all().iter().all(|spec| lookup(spec.name.as_bytes()).is_some_and(|found| found.name == spec.name)));
        assert!(all().iter().enumerate().all(|(index, spec)| place(spec) == index as u32));
        assert!(at(u32::MAX).is_none());
    }

    #[test]
    fn keys_are_where_redis_says() {
        assert_eq!(keys(&["MSET", "a", "1", "b", "2"]), Some(vec![1, 3]));
        assert_eq!(keys(&["BLPOP", "a", "b", "0"]), Some(vec![1, 2]));
        assert_eq!(keys(&["EVAL", "x", "2", "a", "b", "c"]), Some(vec![3, 4]));
        assert_eq!(keys(&["EVAL", "x", "9", "a"]), None);
        assert_eq!(keys(&["XREAD", "COUNT", "1", "STREAMS", "a", "b", "0", "0"]), Some(vec![4, 5]));
        assert_eq!(keys(&["ZUNIONSTORE", "d", "2", "a", "b"]), Some(vec![1, 3, 4]));
        assert_eq!(keys(&["SORT", "a", "STORE", "d"]), Some(vec![1, 3]));
        assert_eq!(keys(&["OBJECT", "ENCODING", "k"]), Some(vec![2]));
        assert_eq!(keys(&["OBJECT", "HELP"]), Some(vec![]));
        assert_eq!(keys(&["BLMPOP", "1", "2", "a", "b", "LEFT"]), Some(vec![3, 4]));
        let copied_to = |args: &[&str]| other_database(lookup(b"COPY").unwrap(), &Request::from_args(args));
        assert_eq!(copied_to(&["COPY", "a", "b", "REPLACE", "db", "3"]), Some(3));
        assert_eq!((copied_to(&["COPY", "db", "3", "REPLACE"]), copied_to(&["COPY", "a", "b", "DB"])), (None, None));
    }
}
