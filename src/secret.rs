//! What must not be seen: passwords and tokens. Neither a log nor an error, an answer or a `Debug` shows them, and a guess
//! learns nothing from how long its refusal takes.

use std::fmt;

use aws_lc_rs::constant_time;
use aws_lc_rs::digest::{SHA256, digest};
use serde::Deserialize;

/// Longer guesses are refused without a look: nobody has such a password, and hashing one would keep a worker busy.
const GUESS_BYTES_MAX: usize = 4096;

/// A password or a token in clear, because it has to be sent somewhere, or was written so.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Where it is sent.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether somebody knows it.
    pub fn is(&self, guess: &[u8]) -> bool {
        Digest::of(self.0.as_bytes()).is_of(guess)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("***")
    }
}

/// The SHA-256 of a password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of a password.
    pub fn of(password: &[u8]) -> Self {
        let hash = digest(&SHA256, password);
        Self(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// From 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |index: usize| text.as_bytes().get(index).and_then(|byte| char::from(*byte).to_digit(16));
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = (digit(2 * index)? << 4 | digit(2 * index + 1)?) as u8;
        }
        (text.len() == 64).then_some(Self(bytes))
    }

    /// Whether it is that of a guess.
    pub fn is_of(&self, guess: &[u8]) -> bool {
        guess.len() <= GUESS_BYTES_MAX && constant_time::verify_slices_are_equal(&self.0, &Self::of(guess).0).is_ok()
    }
}

/// With the hash of a weak password one may find the password.
impl fmt::Debug for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_secret_counts_and_nothing_shows_it() {
        let secret = Secret::from("abc");
        assert!(secret.is(b"abc"));
        for guess in [&b"ab"[..], b"abcd", b"", b"abC", &[b'a'; 5000]] {
            assert!(!secret.is(guess));
        }
        assert_eq!(format!("{:?} {:?}", secret, Digest::of(b"abc")), "*** ***");
    }

    #[test]
    fn a_hash_is_written_as_sha256sum_prints_it() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(Digest::parse(abc).unwrap() == Digest::of(b"abc"));
        assert!(Digest::parse(&abc.to_uppercase()).unwrap().is_of(b"abc"));
        for wrong in ["", &abc[1..], &format!("{abc}0"), &abc.replace('b', "g")] {
            assert!(Digest::parse(wrong).is_none());
        }
    }
}
