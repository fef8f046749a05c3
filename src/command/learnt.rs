//! Commands that the table does not know (modules, newer servers), learnt from the server's own COMMAND INFO.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;

use crate::command::{Access, CommandSpec, EffectKind, Keys, Kind};
use crate::resp::reply;

/// Names that are kept for the life of the process: more than any server has.
const NAMES_MAX: usize = 1_000;

type ByName = HashMap<Box<[u8]>, &'static CommandSpec>;

/// Replaced as a whole when a command is learnt, which happens once for each.
static LEARNT: LazyLock<ArcSwap<ByName>> = LazyLock::new(ArcSwap::default);

/// The row of a command that was learnt.
pub fn find(name: &[u8]) -> Option<&'static CommandSpec> {
    LEARNT.load().get(&*name.to_ascii_uppercase()).copied()
}

/// Learns from a RESP2 reply to `COMMAND INFO name`; `None`: the server does not know it either, or too many are kept.
pub fn learn(frame: &[u8]) -> Option<&'static CommandSpec> {
    let spec = parse(frame)?;
    let known = LEARNT.load();
    if known.len() >= NAMES_MAX {
        return None;
    }
    // Kept for ever, as the rows of the table are; bounded by `NAMES_MAX`.
    let kept: &'static CommandSpec = Box::leak(Box::new(spec));
    LEARNT.rcu(|known| {
        let mut more = ByName::clone(known);
        more.insert(kept.name.as_bytes().into(), kept);
        Arc::new(more)
    });
    Some(kept)
}

/// `[[name, arity, [flags], first key, last key, step, ..]]`
fn parse(frame: &[u8]) -> Option<CommandSpec> {
    let row = &frame[reply::elements(frame)?.first()?.clone()];
    let cells = reply::elements(row)?;
    let cell = |index: usize| cells.get(index).map(|range| &row[range.clone()]);
    let number = |index: usize| i16::try_from(reply::integer(cell(index)?)?).ok();
    let name = std::str::from_utf8(reply::bulk(cell(0)?)?).ok()?.to_uppercase();
    let flags = cell(2)?;
    let flags: Vec<&[u8]> = reply::elements(flags)?.into_iter().map(|range| word(&flags[range])).collect();
    let has = |flag: &str| flags.contains(&flag.as_bytes());
    let (first, last, step) = (number(3)?, number(4)?, number(5)?);
    let access = match (first, has("write")) {
        (0, _) => Access::None,
        (_, true) => Access::Write,
        _ => Access::Read,
    };
    let kind = match first {
        _ if has("movablekeys") => {
            Kind::Refused("it is newer than this proxy, and COMMAND INFO does not tell where its keys are")
        }
        _ if has("blocking") => Kind::Blocking,
        0 => Kind::Keyless,
        _ => Kind::Keyed,
    };
    Some(CommandSpec {
        name: Box::leak(name.into_boxed_str()),
        arity: number(1)?,
        access,
        keys: if first > 0 { Keys::Range { first, last, step } } else { Keys::None },
        kind,
        effect: if access == Access::Write { EffectKind::Copy } else { EffectKind::None },
        since: (0, 0),
    })
}

/// The word of a simple string.
fn word(frame: &[u8]) -> &[u8] {
    frame.trim_ascii_end().strip_prefix(b"+").unwrap_or(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_answers_teach_nothing_wrong() {
        let whole = b"*1\r\n*7\r\n$8\r\njson.foo\r\n:-3\r\n*2\r\n+write\r\n+denyoom\r\n:1\r\n:-1\r\n:2\r\n*0\r\n";
        crate::fuzz::fuzz(&[whole], |bytes| {
            if let Ok(Some(length)) = crate::resp::scan::ReplyScanner::default().scan(bytes)
                && let Some(spec) = parse(&bytes[..length])
            {
                let request = crate::resp::request::Request::from_args(&["json.foo", "a", "b", "c"]);
                let _ = (spec.takes(4), crate::command::keys_of(&spec, &request));
            }
        });
    }

    #[test]
    fn a_command_is_learnt_once_and_found_in_any_case() {
        let frame = b"*1\r\n*7\r\n$8\r\njson.foo\r\n:-3\r\n*2\r\n+write\r\n+denyoom\r\n:1\r\n:1\r\n:1\r\n*0\r\n";
        assert!(find(b"JSON.FOO").is_none());
        let spec = learn(frame).unwrap();
        assert_eq!(
            (spec.arity, spec.access, spec.kind, spec.effect),
            (-3, Access::Write, Kind::Keyed, EffectKind::Copy)
        );
        assert!(std::ptr::eq(find(b"Json.Foo").unwrap(), spec));
        assert!(learn(b"*1\r\n*-1\r\n").is_none(), "the server says nil for what it does not know");
    }
}
