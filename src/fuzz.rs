//! Damage for the tests of parsers: real input with seeded changes, for a bounded time. A panic names the seed and the bytes.

/// Changes of each piece of the corpus; a few hundred milliseconds for the slowest parser, and every one of them runs in
/// each test run.
const ROUNDS: u64 = 4_000;

/// Calls `parse` with damaged copies of `corpus`. What it answers is its own; it must answer, and not panic.
pub fn fuzz(corpus: &[&[u8]], mut parse: impl FnMut(&[u8])) {
    for (index, whole) in corpus.iter().enumerate() {
        parse(whole);
        for seed in 0..ROUNDS {
            let mut chance = fastrand::Rng::with_seed(seed << 8 | index as u64);
            let mut bytes = whole.to_vec();
            for _ in 0..chance.u8(1..5) {
                damage(&mut bytes, corpus, &mut chance);
            }
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| parse(&bytes)));
            assert!(told.is_ok(), "seed {seed} of piece {index}: {}", bytes.escape_ascii());
        }
    }
}

/// Numbers at which arithmetic breaks, and bytes that mean something in some form.
const WORDS: [&[u8]; 14] = [
    b"\r\n",
    b"$",
    b"*",
    b"%",
    b"-1",
    b"0",
    b"65536",
    b"4294967296",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"\"",
    b"\xff\xfe",
    b"${",
    b"..",
];

fn damage(bytes: &mut Vec<u8>, corpus: &[&[u8]], chance: &mut fastrand::Rng) {
    let at = chance.usize(0..=bytes.len());
    let end = (at + chance.usize(0..12)).min(bytes.len());
    match chance.u8(0..7) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end)),
        2 if at < bytes.len() => bytes[at] = chance.u8(..),
        3 if at < bytes.len() => bytes[at] ^= 1 << chance.u8(0..8),
        4 => {
            let word = WORDS[chance.usize(..WORDS.len())];
            bytes.splice(at..end.min(at + chance.usize(0..=word.len())), word.iter().copied());
        }
        5 => {
            let copy = bytes[at..end].to_vec();
            bytes.splice(at..at, copy);
        }
        _ => {
            let other = corpus[chance.usize(..corpus.len())];
            let from = chance.usize(0..=other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}
