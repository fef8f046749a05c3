//! Where the irregular commands have their keys.

use crate::command::KeyPositions;
use crate::resp::request::Request;

fn number(request: &Request, index: usize) -> Option<usize> {
    if index >= request.len() {
        return None;
    }
    std::str::from_utf8(request.arg(index)).ok()?.parse().ok()
}

/// `count` keys from `first` on, if that many arguments are there.
fn run(request: &Request, first: usize, count: usize) -> Option<KeyPositions> {
    (first.checked_add(count)? <= request.len()).then(|| (first..first + count).collect())
}

/// EVAL script numkeys key …
pub fn script(request: &Request) -> Option<KeyPositions> {
    run(request, 3, number(request, 2)?)
}

/// ZUNION numkeys key …
pub fn counted_1(request: &Request) -> Option<KeyPositions> {
    run(request, 2, number(request, 1)?)
}

/// BLMPOP timeout numkeys key …
pub fn counted_2(request: &Request) -> Option<KeyPositions> {
    run(request, 3, number(request, 2)?)
}

/// ZUNIONSTORE destination numkeys key …
pub fn store_counted(request: &Request) -> Option<KeyPositions> {
    let mut keys = KeyPositions::from_slice(&[1]);
    keys.extend(run(request, 3, number(request, 2)?)?);
    Some(keys)
}

/// The index of STREAMS in XREAD and XREADGROUP, past options whose values could be that word.
fn streams_word(request: &Request) -> Option<usize> {
    let mut index = 1;
    while index < request.len() {
        let word = request.arg(index);
        index += match word.to_ascii_uppercase().as_slice() {
            b"STREAMS" => return Some(index),
            b"GROUP" => 3,
            b"COUNT" | b"BLOCK" => 2,
            b"NOACK" => 1,
            _ => return None,
        };
    }
    None
}

/// XREAD … STREAMS key … id …
pub fn streams(request: &Request) -> Option<KeyPositions> {
    let first = streams_word(request)? + 1;
    let rest = request.len() - first;
    (rest > 0 && rest.is_multiple_of(2)).then(|| (first..first + rest / 2).collect())
}

/// Whether XREAD or XREADGROUP has an option before STREAMS.
pub fn stream_option(request: &Request, option: &[u8]) -> bool {
    let end = streams_word(request).unwrap_or(request.len());
    (1..end).any(|index| request.arg(index).eq_ignore_ascii_case(option))
}

/// SORT key … [STORE destination]; BY and GET patterns are the store's to judge.
pub fn sort(request: &Request) -> Option<KeyPositions> {
    let mut keys = KeyPositions::from_slice(&[1]);
    keys.extend(last_option_value(request, 2, &[b"STORE"]));
    Some(keys)
}

/// GEORADIUS key … [STORE key] [STOREDIST key]
pub fn georadius(request: &Request) -> Option<KeyPositions> {
    let mut keys = KeyPositions::from_slice(&[1]);
    keys.extend(last_option_value(request, 5, &[b"STORE", b"STOREDIST"]));
    Some(keys)
}

fn last_option_value(request: &Request, from: usize, options: &[&[u8]]) -> Option<usize> {
    let is_option = |index: &usize| options.iter().any(|option| request.arg(*index).eq_ignore_ascii_case(option));
    (from..request.len().saturating_sub(1)).rev().find(is_option).map(|index| index + 1)
}

/// The index of DB in `COPY source destination [DB number] [REPLACE]`, if a number follows it.
pub fn copy_option(request: &Request) -> Option<usize> {
    (3..request.len().saturating_sub(1)).find(|index| request.arg(*index).eq_ignore_ascii_case(b"DB"))
}

/// OBJECT ENCODING key, XGROUP CREATE key …, MEMORY USAGE key; HELP, DOCTOR and the like have none.
pub fn subcommand(request: &Request) -> Option<KeyPositions> {
    let keyless: [&[u8]; 5] = [b"HELP", b"DOCTOR", b"STATS", b"PURGE", b"MALLOC-STATS"];
    let has_key = request.len() > 2 && !keyless.iter().any(|word| request.arg(1).eq_ignore_ascii_case(word));
    Some(if has_key { KeyPositions::from_slice(&[2]) } else { KeyPositions::new() })
}

/// DEBUG OBJECT key and what else looks at keys; the other sub-commands concern the server.
pub fn debug(request: &Request) -> Option<KeyPositions> {
    let is = |words: &[&[u8]]| request.len() > 2 && words.iter().any(|word| request.arg(1).eq_ignore_ascii_case(word));
    if is(&[b"DIGEST-VALUE"]) {
        return Some((2..request.len()).collect());
    }
    let looks_at_one = is(&[b"OBJECT", b"SDSLEN", b"ZIPLIST", b"LISTPACK", b"QUICKLIST"]);
    Some(if looks_at_one { KeyPositions::from_slice(&[2]) } else { KeyPositions::new() })
}
