//! Keys known to be whole on both stores. Pure, and bounded.
//!
//! Kept as 128-bit seeded hashes: 16 bytes a key, and a collision, which would trust a key wrongly, is out of reach by chance
//! (2^-64 at 2^32 keys). Nor can it be had by intent: the seeds are random, nothing that depends on a hash is ever shown, and
//! the route's generation is hashed too, so that whoever found one would harm keys of the same tenant. A hash that withstands
//! more, SipHash, was the dearest single thing in a dual write. When full it is emptied: forgetting is always safe and costs
//! one more copy a key.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

use foldhash::quality::RandomState;

use crate::routing::Key;

/// See the module.
#[derive(Clone, Debug)]
pub struct Presence {
    keys: HashSet<(u64, u64), BuildHasherDefault<First>>,
    seeds: (RandomState, RandomState),
    keys_max: usize,
}

impl Presence {
    /// A set of up to `keys_max` keys, empty.
    pub fn new(keys_max: usize) -> Self {
        Self { keys: HashSet::default(), seeds: Default::default(), keys_max }
    }

    fn hash(&self, generation: u32, key: &Key) -> (u64, u64) {
        (self.seeds.0.hash_one((generation, key)), self.seeds.1.hash_one((generation, key)))
    }

    /// Whether the key was added under this generation of its route, and not forgotten since.
    pub fn has(&self, generation: u32, key: &Key) -> bool {
        !self.keys.is_empty() && self.keys.contains(&self.hash(generation, key))
    }

    /// Adds a key; a full set is emptied first.
    pub fn add(&mut self, generation: u32, key: &Key) {
        if self.keys.len() >= self.keys_max {
            self.keys.clear();
        }
        self.keys.insert(self.hash(generation, key));
    }
}

/// The first half of what is hashed, which is a keyed hash already.
#[derive(Default)]
struct First(Option<u64>);

impl Hasher for First {
    fn write_u64(&mut self, half: u64) {
        self.0.get_or_insert(half);
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not called for pairs of u64; whatever comes must still have a part in the hash.
        for byte in bytes {
            self.0 = Some(self.0.unwrap_or(0).rotate_left(8) ^ u64::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_present_under_its_generation_until_the_set_is_full() {
        let mut presence = Presence::new(3);
        let key = |name: &str| Key::copied(0, name.as_bytes());
        presence.add(1, &key("a"));
        assert!(presence.has(1, &key("a")) && !presence.has(2, &key("a")) && !presence.has(1, &key("b")));
        assert!(!presence.has(1, &Key { db: 1, ..key("a") }), "the same name in another database is another key");
        for name in ["b", "c", "d"] {
            presence.add(1, &key(name));
        }
        assert!(presence.has(1, &key("d")) && !presence.has(1, &key("a")), "forgotten, which is safe");
    }
}
