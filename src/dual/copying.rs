//! How copies are made, and how much was copied. Shared by all workers and the jobs; each value stands for itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes above which a key is copied piece by piece. RESTORE of 4 MiB holds a server up for 5 to 18 ms and DUMP for 12 to
/// 57 ms (a hash; measured on two shared cores), of 64 MiB for 100 to 400 and 190 to 800 ms.
pub const LARGE_BYTES: u64 = 4 << 20;
/// Bytes a second that all copies together may take: half of a gigabit.
pub const BYTES_PER_SECOND: u64 = 64 << 20;

/// See the module. A reload changes the settings of it.
#[derive(Debug)]
pub struct Copying {
    large_bytes: AtomicU64,
    bytes_per_second: AtomicU64,
    is_by_type: AtomicBool,
    /// A server has refused the other's DUMP: they are of different versions, and stay so until the next start.
    is_dump_refused: AtomicBool,
    bytes: AtomicU64,
    keys: AtomicU64,
    keys_in_pieces: AtomicU64,
    keys_equal: AtomicU64,
    keys_refused: AtomicU64,
}

impl Default for Copying {
    fn default() -> Self {
        Self {
            large_bytes: AtomicU64::new(LARGE_BYTES),
            bytes_per_second: AtomicU64::new(BYTES_PER_SECOND),
            is_by_type: AtomicBool::new(false),
            is_dump_refused: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            keys: AtomicU64::new(0),
            keys_in_pieces: AtomicU64::new(0),
            keys_equal: AtomicU64::new(0),
            keys_refused: AtomicU64::new(0),
        }
    }
}

/// What was copied since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    pub bytes: u64,
    pub keys: u64,
    /// Of these by their type, piece by piece.
    pub in_pieces: u64,
    /// Found equal instead.
    pub equal: u64,
    /// Refused for their type.
    pub refused: u64,
}

impl Copying {
    /// Takes the settings. `bytes_per_second`: 0 for no limit.
    pub fn set(&self, large_bytes: u64, bytes_per_second: u64, is_by_type: bool) {
        self.large_bytes.store(large_bytes, Ordering::Relaxed);
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
        self.is_by_type.store(is_by_type, Ordering::Relaxed);
    }

    /// Whether a key of this size is copied piece by piece.
    pub fn is_large(&self, bytes: u64) -> bool {
        bytes > self.large_bytes.load(Ordering::Relaxed)
    }

    /// Whether every key is copied by its type.
    pub fn is_by_type(&self) -> bool {
        self.is_by_type.load(Ordering::Relaxed) || self.is_dump_refused.load(Ordering::Relaxed)
    }

    /// Bytes a second that all copies may take; 0: as many as go through.
    pub fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second.load(Ordering::Relaxed)
    }

    /// Notes that a server does not read the other's DUMP; true the first time.
    pub(super) fn refuse_dump(&self) -> bool {
        !self.is_dump_refused.swap(true, Ordering::Relaxed)
    }

    pub(super) fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_key(&self) {
        self.keys.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_in_pieces(&self) {
        self.keys_in_pieces.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_equal(&self) {
        self.keys_equal.fetch_add(1, Ordering::Relaxed);
    }

    /// The count before it.
    pub(super) fn count_refused(&self) -> u64 {
        self.keys_refused.fetch_add(1, Ordering::Relaxed)
    }

    /// What was copied since the start.
    pub fn copies(&self) -> Copies {
        let get = |total: &AtomicU64| total.load(Ordering::Relaxed);
        Copies {
            bytes: get(&self.bytes),
            keys: get(&self.keys),
            in_pieces: get(&self.keys_in_pieces),
            equal: get(&self.keys_equal),
            refused: get(&self.keys_refused),
        }
    }
}
