//! How a write is repeated on the follower so that it ends equal.
//!
//! Computed from the command *and* the leader's reply. Pure. What has no cheaper form is copied (`Work::Opaque`).
//!
//! Two kinds of effects are right. A *whole* one (`SET` of a result, `DEL`) leaves the right value whatever was there. One
//! that builds on the value there (`HSET`, `SREM`) is right only on an equal value, and a key that expires is not always
//! equal: the leader may run `HSET` a moment before the key expires and the follower a moment after, and the key would
//! live on there as a fragment without a time. The replies agree by accident. So behind such a write the leader is asked
//! when the key expires, and behind its effect the follower; where the two times differ the key is in doubt and is copied.
//! Equal times prove that the effect ran on the same incarnation of the key: what expired in between has no time any more.

use bytes::{Bytes, BytesMut};

use crate::command::{self, Access, CommandSpec, EffectKind};
use crate::dual::lane::Work;
use crate::resp::reply;
use crate::resp::request::Request;
use crate::resp::write;

/// What the engine has to know of a command before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    pub work: Work,
    pub form: Form,
}

/// The form that the effect takes once the leader has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The request itself, which leaves a whole value.
    Same,
    /// The request itself, on an equal value.
    Replay,
    /// DEL of the key.
    Delete,
    /// SET of argument `value`, with the time that the leader says the key expires at.
    Set { value: usize, wrote: Wrote },
    /// SET of the number that the leader answered (INCR, INCRBYFLOAT), with the time likewise.
    Number,
    /// The time that the leader says the key expires at.
    Expiry,
    /// SREM of the members that SPOP answered.
    Spopped,
    /// LPOP, RPOP or ZREM of what LMPOP or ZMPOP answered.
    Mpopped { end: End },
    /// ZADD of the score that the leader answered (ZINCRBY, ZADD INCR).
    Score,
    /// XADD with the ID that the leader answered; where it trims approximately, to the length that the leader then had.
    Entry { id: usize, is_approximate: bool },
    /// XTRIM to the length that the leader then had.
    Trimmed,
}

/// How SET's answer says whether it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// Not an error: it did.
    Always,
    /// Neither null nor 0: SET NX, SET XX, SETNX, SET XX GET.
    UnlessNull,
    /// SET NX GET answers the value that was in the way.
    IfNull,
}

/// Where LMPOP and ZMPOP take from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Left,
    Right,
    /// Sorted sets: the members are named.
    Named,
}

/// What is asked of a store directly behind a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// PEXPIRETIME: milliseconds since 1970, -1 without one, -2 without the key.
    Expiry,
    /// XLEN.
    Length,
}

impl Question {
    /// The command that asks it.
    pub fn ask(self, key: &[u8]) -> Bytes {
        match self {
            Self::Expiry => command(&[b"PEXPIRETIME", key]),
            Self::Length => command(&[b"XLEN", key]),
        }
    }
}

/// What the leader answered to the questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub expiry: Option<i64>,
    pub length: Option<i64>,
}

impl Facts {
    /// Whether the question was answered.
    pub fn has(self, question: Question) -> bool {
        match question {
            Question::Expiry => self.expiry.is_some(),
            Question::Length => self.length.is_some(),
        }
    }
}

/// What the follower is sent, and what it must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    pub bytes: Bytes,
    /// Another answer than this (see [`agrees`]) puts the key in doubt.
    pub answer: Option<Bytes>,
    /// What PEXPIRETIME must answer behind it, where the effect builds on the value that is there.
    pub expiry: Option<i64>,
}

impl Form {
    /// Whether the effect is the request itself (or DEL).
    pub fn is_request(self) -> bool {
        matches!(self, Self::Same | Self::Replay)
    }

    /// What is to be asked of the leader directly behind the command.
    pub fn questions(self) -> &'static [Question] {
        match self {
            Self::Same | Self::Delete => &[],
            Self::Entry { is_approximate: true, .. } | Self::Trimmed => &[Question::Expiry, Question::Length],
            _ => &[Question::Expiry],
        }
    }
}

/// What a request does to its one key.
pub fn outline(spec: &CommandSpec, request: &Request) -> Outline {
    let outline = |work, form| Outline { work, form };
    if command::access_of(spec, request) != Access::Write {
        return outline(Work::Read, Form::Same);
    }
    let form = match command::effect_of(spec, request) {
        EffectKind::None => return outline(Work::Read, Form::Same),
        EffectKind::Overwrite => return outline(Work::Overwrite, Form::Same),
        // What is answered (how many there were, the value) depends on what is there.
        EffectKind::Delete => return outline(Work::Resolve, Form::Delete),
        EffectKind::Set => return set_outline(request),
        EffectKind::Number => return outline(Work::Resolve, Form::Number),
        EffectKind::Replay => Some(Form::Replay),
        EffectKind::Expire => Some(Form::Expiry),
        EffectKind::Spop => Some(Form::Spopped),
        EffectKind::Score => Some(Form::Score),
        EffectKind::Mpop => mpop_form(request),
        EffectKind::Xadd => xadd_form(request),
        EffectKind::Xtrim => Some(if is_approximate(request, 2) { Form::Trimmed } else { Form::Replay }),
        EffectKind::Copy => None,
    };
    match form {
        Some(form) => outline(Work::Update, form),
        None => outline(Work::Opaque, Form::Same),
    }
}

/// SET with options, SETEX, PSETEX, SETNX, GETSET. What may not write the value at all is no overwrite: in first-touch
/// mode the leader's answer depends on the old value, so the key has to be there first.
fn set_outline(request: &Request) -> Outline {
    let set = |work, value, wrote| Outline { work, form: Form::Set { value, wrote } };
    let name = request.arg(0);
    let is = |word: &[u8]| name.eq_ignore_ascii_case(word);
    match request.len() {
        4 if is(b"SETEX") || is(b"PSETEX") => return set(Work::Overwrite, 3, Wrote::Always),
        3 if is(b"SETNX") => return set(Work::Resolve, 2, Wrote::UnlessNull),
        3 if is(b"GETSET") => return set(Work::Resolve, 2, Wrote::Always),
        // It takes the time away, so there is none to ask for.
        3 if is(b"SET") => return Outline { work: Work::Overwrite, form: Form::Same },
        3.. if is(b"SET") => {}
        _ => return Outline { work: Work::Opaque, form: Form::Same },
    }
    let (mut depends, mut gets, mut nx, mut xx) = (false, false, false, false);
    let mut index = 3;
    while index < request.len() {
        let option = request.arg(index).to_ascii_uppercase();
        match option.as_slice() {
            b"NX" => nx = true,
            b"XX" => xx = true,
            b"GET" => gets = true,
            // Its time is the old one's, so the old one has to be there.
            b"KEEPTTL" => depends = true,
            b"EX" | b"PX" | b"EXAT" | b"PXAT" => index += 1,
            // A condition that is newer than this table.
            _ => return Outline { work: Work::Opaque, form: Form::Same },
        }
        index += 1;
    }
    let wrote = match (nx, xx, gets) {
        (true, _, true) => Wrote::IfNull,
        (false, false, _) => Wrote::Always,
        _ => Wrote::UnlessNull,
    };
    let work = if depends || gets || nx || xx { Work::Resolve } else { Work::Overwrite };
    set(work, 2, wrote)
}

/// LMPOP 1 key LEFT|RIGHT …, ZMPOP 1 key MIN|MAX …; with several keys it runs outside of the lanes.
fn mpop_form(request: &Request) -> Option<Form> {
    let end = if request.len() > 3 { request.arg(3).to_ascii_uppercase() } else { return None };
    let end = match end.as_slice() {
        b"LEFT" => End::Left,
        b"RIGHT" => End::Right,
        b"MIN" | b"MAX" => End::Named,
        _ => return None,
    };
    Some(Form::Mpopped { end })
}

/// Whether the trimming option at `index` leaves it to the node how much it takes.
fn is_approximate(request: &Request, index: usize) -> bool {
    index + 1 < request.len() && request.arg(index + 1) == b"~"
}

/// XADD key [NOMKSTREAM] [MAXLEN|MINID [=|~] threshold [LIMIT count]] *|id field value …
///
/// How much `~` takes depends on how the stream is laid out in memory, which the follower need not share. The entries
/// that go are the oldest, so the length that the leader has afterwards says all: it is an exact MAXLEN for the follower,
/// which is how Redis itself tells its replicas.
fn xadd_form(request: &Request) -> Option<Form> {
    let (mut index, mut approximate) = (2, false);
    while index < request.len() {
        match request.arg(index).to_ascii_uppercase().as_slice() {
            b"NOMKSTREAM" => index += 1,
            b"MAXLEN" | b"MINID" => {
                approximate |= is_approximate(request, index);
                let has_sign = index + 1 < request.len() && matches!(request.arg(index + 1), b"~" | b"=");
                index += if has_sign { 3 } else { 2 };
            }
            b"LIMIT" => index += 2,
            [b'*'] | [b'0'..=b'9', ..] => return Some(Form::Entry { id: index, is_approximate: approximate }),
            // Options that are newer than this table.
            _ => return None,
        }
    }
    None
}

/// What the follower is sent, or `None` if the leader's reply says that nothing happened.
pub fn effect(request: &Request, form: Form, key: &[u8], reply: &[u8], facts: Facts) -> Option<Effect> {
    let whole = |bytes| Some(Effect { bytes, answer: None, expiry: None });
    let built = |bytes, answer| Some(Effect { bytes, answer, expiry: facts.expiry });
    match form {
        Form::Same => whole(request.bytes().clone()),
        Form::Delete => whole(command(&[b"DEL", key])),
        Form::Set { value, wrote } => {
            let is_null = reply::is_null(reply) || reply::integer(reply) == Some(0);
            let did_write = match wrote {
                Wrote::Always => true,
                Wrote::UnlessNull => !is_null,
                Wrote::IfNull => is_null,
            };
            did_write.then(|| whole(set(key, request.arg(value), facts.expiry)))?
        }
        Form::Number => {
            let mut digits = itoa::Buffer::new();
            let number = match reply::integer(reply) {
                Some(number) => digits.format(number).as_bytes(),
                None => reply::bulk(reply)?,
            };
            whole(set(key, number, facts.expiry))
        }
        Form::Expiry | Form::Trimmed if reply::integer(reply) == Some(0) => None,
        _ if form != Form::Replay && reply::is_null(reply) => None,
        // Where the leader has no key any more, that is all there is to say.
        _ if facts.expiry == Some(-2) => whole(command(&[b"DEL", key])),
        Form::Replay => built(request.bytes().clone(), Some(Bytes::copy_from_slice(reply))),
        Form::Expiry => match facts.expiry {
            // 1 says that the key was there, and then it has this time, or went because the time is over.
            Some(at) if at >= 0 => {
                let bytes = command(&[b"PEXPIREAT", key, itoa::Buffer::new().format(at).as_bytes()]);
                Some(Effect { bytes, answer: Some(number(1)), expiry: None })
            }
            _ => built(command(&[b"PERSIST", key]), None),
        },
        Form::Spopped => {
            let members = texts(reply)?;
            let removed = number(members.len() as i64);
            (!members.is_empty()).then(|| built(with_args(&[b"SREM", key], &members), Some(removed)))?
        }
        Form::Mpopped { end } => popped(key, reply, end).and_then(|(bytes, answer)| built(bytes, Some(answer))),
        Form::Score => {
            let member = request.arg(request.len() - 1);
            built(command(&[b"ZADD", key, text(reply)?, member]), None)
        }
        Form::Entry { id, is_approximate } => {
            let mut args: Vec<&[u8]> = vec![b"XADD", key];
            let mut digits = itoa::Buffer::new();
            match is_approximate {
                true => args.extend([&b"MAXLEN"[..], digits.format(facts.length?).as_bytes()]),
                false => args.extend((2..id).map(|index| request.arg(index))),
            }
            args.push(reply::bulk(reply)?);
            args.extend((id + 1..request.len()).map(|index| request.arg(index)));
            built(command(&args), Some(Bytes::copy_from_slice(reply)))
        }
        Form::Trimmed => {
            let length = itoa::Buffer::new().format(facts.length?).to_string();
            built(command(&[b"XTRIM", key, b"MAXLEN", length.as_bytes()]), Some(Bytes::copy_from_slice(reply)))
        }
    }
}

/// SET with the time that the leader has for the key, or DEL where it has expired there since.
fn set(key: &[u8], value: &[u8], expiry: Option<i64>) -> Bytes {
    match expiry {
        Some(-2) => command(&[b"DEL", key]),
        Some(at) if at >= 0 => command(&[b"SET", key, value, b"PXAT", itoa::Buffer::new().format(at).as_bytes()]),
        _ => command(&[b"SET", key, value]),
    }
}

/// What takes from the follower what LMPOP or ZMPOP took from the leader, and the answer to it.
fn popped(key: &[u8], reply: &[u8], end: End) -> Option<(Bytes, Bytes)> {
    let [_, elements] = <[_; 2]>::try_from(reply::elements(reply)?).ok()?;
    let elements = &reply[elements];
    if end == End::Named {
        let pairs = reply::elements(elements)?;
        let member = |pair: std::ops::Range<usize>| texts(&elements[pair])?.first().copied();
        let members = pairs.into_iter().map(member).collect::<Option<Vec<&[u8]>>>()?;
        return Some((with_args(&[b"ZREM", key], &members), number(members.len() as i64)));
    }
    let name: &[u8] = if end == End::Left { b"LPOP" } else { b"RPOP" };
    let count = texts(elements)?.len();
    Some((command(&[name, key, itoa::Buffer::new().format(count).as_bytes()]), Bytes::copy_from_slice(elements)))
}

/// The first text of each element; of a single string, itself.
fn texts(reply: &[u8]) -> Option<Vec<&[u8]>> {
    match reply::elements(reply) {
        Some(elements) => elements.into_iter().map(|range| text(&reply[range])).collect(),
        None => Some(vec![text(reply)?]),
    }
}

fn text(frame: &[u8]) -> Option<&[u8]> {
    reply::bulk(frame).or_else(|| reply::double(frame))
}

fn number(value: i64) -> Bytes {
    let mut out = BytesMut::new();
    write::integer(&mut out, value);
    out.freeze()
}

/// Whether the follower's answer says the same as the one that was expected. Numbers are compared as numbers, for servers
/// of different versions write the same score in different ways, and the two protocols in two kinds.
pub fn agrees(expected: &[u8], answer: &[u8]) -> bool {
    if expected == answer || (reply::is_null(expected) && reply::is_null(answer)) {
        return true;
    }
    if let (Some(expected_elements), Some(elements)) = (reply::elements(expected), reply::elements(answer)) {
        let mut pairs = expected_elements.iter().zip(&elements);
        return expected_elements.len() == elements.len()
            && pairs.all(|(one, other)| agrees(&expected[one.clone()], &answer[other.clone()]));
    }
    let value = |frame| std::str::from_utf8(text(frame)?).ok()?.parse::<f64>().ok();
    match (reply::integer(expected), reply::integer(answer)) {
        (None, None) => value(expected).is_some_and(|expected| value(answer) == Some(expected)),
        _ => false,
    }
}

/// A command as a RESP array.
pub fn command(args: &[&[u8]]) -> Bytes {
    let mut out = BytesMut::with_capacity(args.iter().map(|arg| arg.len() + 16).sum::<usize>() + 16);
    write::command(&mut out, args);
    out.freeze()
}

fn with_args(first: &[&[u8]], rest: &[&[u8]]) -> Bytes {
    command(&[first, rest].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The follower's command after a request, the leader's reply and its facts.
    fn effect_of(words: &str, reply: &str, expiry: i64, length: i64) -> Option<Effect> {
        let request = Request::from_args(&words.split(' ').collect::<Vec<_>>());
        let spec = command::lookup(request.arg(0)).unwrap();
        let Outline { work, form } = outline(spec, &request);
        assert_ne!(work, Work::Opaque, "{words} is copied");
        let facts = Facts { expiry: Some(expiry), length: Some(length) };
        effect(&request, form, b"k", reply.replace('|', "\r\n").as_bytes(), facts)
    }

    fn sent(words: &str, reply: &str, expiry: i64) -> Option<String> {
        let bytes = effect_of(words, reply, expiry, 7)?.bytes;
        let text =
            |range: std::ops::Range<usize>| String::from_utf8(reply::bulk(&bytes[range]).unwrap().to_vec()).unwrap();
        Some(reply::elements(&bytes)?.into_iter().map(text).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn effects_say_what_the_reply_says_happened() {
        let cases: &[(&str, &str, i64, Option<&str>)] = &[
            ("SET k v EX 9", "+OK|", 5_000, Some("SET k v PXAT 5000")),
            ("SET k v PX 1", "+OK|", -2, Some("DEL k")),
            ("SET k v NX", "$-1|", -1, None),
            ("SET k v NX GET", "$-1|", -1, Some("SET k v")),
            ("SET k v NX GET", "_|", -2, Some("DEL k")),
            ("SET k v NX GET", "$1|x|", -1, None),
            ("SET k v GET", "$-1|", -1, Some("SET k v")),
            ("SET k v XX GET", "$-1|", -2, None),
            ("SET k v KEEPTTL", "+OK|", 5_000, Some("SET k v PXAT 5000")),
            ("SETNX k v", ":0|", -1, None),
            ("INCR k", ":0|", 5_000, Some("SET k 0 PXAT 5000")),
            ("INCRBYFLOAT k 0.1", "$4|10.6|", -1, Some("SET k 10.6")),
            ("HSET k f v", ":1|", 5_000, Some("HSET k f v")),
            ("HSET k f v", ":1|", -2, Some("DEL k")),
            ("EXPIRE k 5", ":1|", 5_000, Some("PEXPIREAT k 5000")),
            ("EXPIRE k 5", ":0|", -2, None),
            ("EXPIRE k -1", ":1|", -2, Some("DEL k")),
            ("GETEX k PERSIST", "$1|v|", -1, Some("PERSIST k")),
            ("GETEX k PERSIST", "_|", -2, None),
            ("SPOP k", "$1|m|", -1, Some("SREM k m")),
            ("SPOP k 2", "~2|$1|m|$1|n|", -1, Some("SREM k m n")),
            ("SPOP k 2", "*2|$1|m|$1|n|", -2, Some("DEL k")),
            ("SPOP k 0", "*0|", -1, None),
            ("LMPOP 1 k RIGHT COUNT 5", "*2|$1|k|*2|$1|b|$1|a|", -1, Some("RPOP k 2")),
            ("ZMPOP 1 k MIN COUNT 2", "*2|$1|k|*2|*2|$1|a|$1|1|*2|$1|b|,2.5|", -1, Some("ZREM k a b")),
            ("ZMPOP 1 k MIN", "*-1|", -2, None),
            ("ZINCRBY k 1 m", ",3.5|", -1, Some("ZADD k 3.5 m")),
            ("ZADD k GT INCR 1 m", "$1|3|", -1, Some("ZADD k 3 m")),
            ("ZADD k NX INCR 1 m", "$-1|", -1, None),
            ("XADD k * f v", "$3|5-1|", -1, Some("XADD k 5-1 f v")),
            ("XADD k NOMKSTREAM * f v", "$-1|", -2, None),
            ("XADD k MAXLEN = 3 * f v", "$3|5-1|", -1, Some("XADD k MAXLEN = 3 5-1 f v")),
            ("XADD k MINID ~ 3 LIMIT 9 * f v", "$3|5-1|", -1, Some("XADD k MAXLEN 7 5-1 f v")),
            ("XTRIM k MAXLEN ~ 3", ":2|", -1, Some("XTRIM k MAXLEN 7")),
            ("XTRIM k MAXLEN ~ 3", ":0|", -1, None),
            ("XREADGROUP GROUP g c STREAMS k >", "*-1|", -1, Some("XREADGROUP GROUP g c STREAMS k >")),
            ("DEL k", ":0|", -2, Some("DEL k")),
        ];
        for (words, reply, expiry, expected) in cases {
            assert_eq!(
                sent(words, reply, *expiry).as_deref(),
                *expected,
                "{words} answered {reply} with expiry {expiry}"
            );
        }
    }

    #[test]
    fn what_builds_on_the_value_is_checked_and_what_leaves_a_whole_one_is_not() {
        let checked = |words, reply| effect_of(words, reply, 5_000, 7).unwrap().expiry;
        assert_eq!(effect_of("EXPIRE k 5", ":1|", 5_000, 7).unwrap().answer, Some(number(1)));
        for (words, reply) in [("HSET k f v", ":1|"), ("SPOP k", "$1|m|"), ("XADD k 5-1 f v", "$3|5-1|")] {
            assert_eq!(checked(words, reply), Some(5_000), "{words}");
        }
        for (words, reply) in [("SET k v", "+OK|"), ("INCR k", ":2|"), ("DEL k", ":1|"), ("GETSET k v", "$1|x|")] {
            assert_eq!(checked(words, reply), None, "{words}");
        }
    }

    #[test]
    fn options_that_are_newer_than_the_table_are_copied() {
        for words in ["SET k v IFEQ x", "XADD k KEEPREF * f v", "RESTORE k 0 x", "XCLAIM k g c 0 1-1"] {
            let request = Request::from_args(&words.split(' ').collect::<Vec<_>>());
            assert_eq!(outline(command::lookup(request.arg(0)).unwrap(), &request).work, Work::Opaque, "{words}");
        }
    }

    #[test]
    fn answers_agree_by_value_and_not_by_form() {
        for (one, other) in [
            (":1|", ":1|"),
            ("$3|0.1|", "$19|0.10000000000000001|"),
            ("$1|2|", ",2|"),
            ("$-1|", "_|"),
            ("*1|$1|a|", "*1|$1|a|"),
        ] {
            assert!(
                agrees(one.replace('|', "\r\n").as_bytes(), other.replace('|', "\r\n").as_bytes()),
                "{one} {other}"
            );
        }
        for (one, other) in
            [(":1|", ":0|"), ("$1|a|", "$1|b|"), ("*1|$1|a|", "*1|$1|b|"), ("*1|$1|a|", "*0|"), ("+OK|", "$-1|")]
        {
            assert!(
                !agrees(one.replace('|', "\r\n").as_bytes(), other.replace('|', "\r\n").as_bytes()),
                "{one} {other}"
            );
        }
    }
}
