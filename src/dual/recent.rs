//! Which keys of dual routes the proxy has written lately, for whoever listens to the stores' notifications and asks whether
//! a change was its own ([`jobs::bypass`](crate::jobs::bypass)).
//!
//! A table of fixed size in which keys share cells, so a key may seem to be written that was not, and never the other way
//! round. It is made when somebody begins to listen, and a write costs one load where nobody does. Time is counted in seconds
//! by whoever listens.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Cells: 2 MiB, in which 50,000 keys a second hide a tenth of the foreign ones for a second, and most after ten.
const CELLS: usize = 1 << 19;

/// See the module. Each cell stands for itself, so relaxed ordering is enough.
#[derive(Debug, Default)]
pub struct Recent {
    /// The second that goes on; 0: nobody listens.
    second: AtomicU32,
    cells: OnceLock<Box<[AtomicU32]>>,
}

impl Recent {
    /// A key is about to be written, or has just been.
    #[inline]
    pub fn note(&self, name: &[u8]) {
        let second = self.second.load(Ordering::Relaxed);
        if second > 0 {
            self.cell(name).store(second, Ordering::Relaxed);
        }
    }

    #[cold]
    fn made(&self) -> &[AtomicU32] {
        self.cells.get_or_init(|| (0..CELLS).map(|_| AtomicU32::new(0)).collect())
    }

    fn cell(&self, name: &[u8]) -> &AtomicU32 {
        let cells = self.cells.get().map_or_else(|| self.made(), |cells| &cells[..]);
        &cells[crc32fast::hash(name) as usize % CELLS]
    }

    /// From now on it is this second; 0: nobody listens any more.
    pub fn set_second(&self, second: u32) {
        self.second.store(second, Ordering::Relaxed);
    }

    /// Whether the key was written in that second or later.
    pub fn has(&self, name: &[u8], since: u32) -> bool {
        let written = self.cell(name).load(Ordering::Relaxed);
        written > 0 && written >= since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_while_somebody_listens_is_known_for_as_long_as_it_is_asked_for() {
        let recent = Recent::default();
        recent.note(b"before");
        assert!(recent.cells.get().is_none(), "nobody listens, and it costs no memory");
        recent.set_second(7);
        recent.note(b"key");
        assert!(!recent.has(b"before", 0) && !recent.has(b"other", 0));
        assert!(recent.has(b"key", 0) && recent.has(b"key", 7) && !recent.has(b"key", 8));
        recent.set_second(0);
        recent.note(b"after");
        assert!(!recent.has(b"after", 0));
    }
}
