//! How a write is repeated on the follower so that it ends equal.
//!
//! Computed from the command *and* the leader's reply. Pure. What has no cheaper form is copied (`Work::Opaque`).

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
    /// The request itself.
    Same,
    /// DEL of the key.
    Delete,
    /// SET of argument `value`, with the time that the leader says the key expires at.
    Set { value: usize },
    /// The time that the leader says the key expires at.
    Expiry,
}

impl Form {
    /// Whether PEXPIRETIME is to be read from the leader directly behind the command.
    pub fn asks_expiry(self) -> bool {
        matches!(self, Form::Set { .. } | Form::Expiry)
    }
}

/// What a request does to its one key.
pub fn outline(spec: &CommandSpec, request: &Request) -> Outline {
    let outline = |work, form| Outline { work, form };
    if command::access_of(spec, request) != Access::Write {
        return outline(Work::Read, Form::Same);
    }
    match command::effect_of(spec, request) {
        EffectKind::None => outline(Work::Read, Form::Same),
        EffectKind::Replay => outline(Work::Update, Form::Same),
        EffectKind::Overwrite => outline(Work::Overwrite, Form::Same),
        EffectKind::Delete => outline(Work::Overwrite, Form::Delete),
        EffectKind::Set => set_form(request),
        EffectKind::Expire => outline(Work::Update, Form::Expiry),
        EffectKind::Copy => outline(Work::Opaque, Form::Same),
    }
}

/// SET with options, SETEX, PSETEX, SETNX, GETSET. What may not write the value at all is no overwrite: in first-touch
/// mode the leader's answer depends on the old value, so the key has to be there first.
fn set_form(request: &Request) -> Outline {
    let name = request.arg(0);
    let conditional = |value| Outline { work: Work::Update, form: Form::Set { value } };
    if name.eq_ignore_ascii_case(b"SETEX") || name.eq_ignore_ascii_case(b"PSETEX") {
        return Outline { work: Work::Overwrite, form: Form::Set { value: 3 } };
    }
    if name.eq_ignore_ascii_case(b"SETNX") || name.eq_ignore_ascii_case(b"GETSET") {
        return conditional(2);
    }
    if !name.eq_ignore_ascii_case(b"SET") || request.len() < 3 {
        return Outline { work: Work::Opaque, form: Form::Same };
    }
    let mut asks_old = false;
    for option in (3..request.len()).map(|index| request.arg(index)) {
        // SET GET answers the old value or nil whether it wrote or not, and KEEPTTL keeps a time the follower has too.
        if option.eq_ignore_ascii_case(b"GET") || option.eq_ignore_ascii_case(b"KEEPTTL") {
            return Outline { work: Work::Opaque, form: Form::Same };
        }
        asks_old |= option.eq_ignore_ascii_case(b"NX") || option.eq_ignore_ascii_case(b"XX");
    }
    if asks_old { conditional(2) } else { Outline { work: Work::Overwrite, form: Form::Set { value: 2 } } }
}

/// The bytes for the follower, or `None` if the leader's reply says that nothing happened. `expiry` is the leader's
/// PEXPIRETIME directly behind the command: milliseconds since 1970, -1 without one, -2 without the key.
pub fn effect(request: &Request, form: Form, key: &[u8], reply: &[u8], expiry: Option<i64>) -> Option<Bytes> {
    match form {
        Form::Same => Some(request.bytes().clone()),
        Form::Delete => Some(command(&[b"DEL", key])),
        Form::Set { value } => {
            let is_getset = request.arg(0).eq_ignore_ascii_case(b"GETSET");
            if !is_getset && (reply::is_null(reply) || reply::integer(reply) == Some(0)) {
                return None;
            }
            let value = request.arg(value);
            Some(match expiry {
                Some(-2) => command(&[b"DEL", key]),
                Some(at) if at >= 0 => command(&[b"SET", key, value, b"PXAT", itoa::Buffer::new().format(at).as_bytes()]),
                _ => command(&[b"SET", key, value]),
            })
        }
        Form::Expiry => Some(match expiry {
            Some(-2) => command(&[b"DEL", key]),
            Some(at) if at >= 0 => command(&[b"PEXPIREAT", key, itoa::Buffer::new().format(at).as_bytes()]),
            _ => command(&[b"PERSIST", key]),
        }),
    }
}

/// Whether the follower's answer to a replay agrees with the leader's. Only integers are compared: other replies may
/// differ in form alone, by protocol, order or encoding.
pub fn agrees(leader: &[u8], follower: &[u8]) -> bool {
    match (reply::integer(leader), reply::integer(follower)) {
        (Some(leader), Some(follower)) => leader == follower,
        _ => true,
    }
}

/// A command as a RESP array.
pub fn command(args: &[&[u8]]) -> Bytes {
    let mut out = BytesMut::with_capacity(args.iter().map(|arg| arg.len() + 16).sum::<usize>() + 16);
    write::command(&mut out, args);
    out.freeze()
}
