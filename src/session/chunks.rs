//! The memory that the clients of a worker are read into: all of them into one chunk, so that bytes are held only where they
//! wait for something. A chunk that is full waits until nobody holds a request of it any more, and is read into again: what
//! an allocator gives back to the system after each burst costs a page fault for every 4 KiB of the next one.

use std::collections::VecDeque;

use bytes::BytesMut;

/// Of a chunk, where no request needs more.
const CHUNK_BYTES: usize = 64 << 10;
/// Of all chunks that wait: requests of 64 KiB of a hundred clients. Beyond it the oldest is left to who holds a part of it.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// How many of the oldest are asked whether they are free.
const TRIES: usize = 4;

/// See the module.
#[derive(Default)]
pub struct Chunks {
    current: Chunk,
    /// The oldest first. Of most of them somebody holds a request.
    waiting: VecDeque<Chunk>,
    waiting_bytes: usize,
    is_used: bool,
}

#[derive(Default)]
struct Chunk {
    /// What is left of it.
    rest: BytesMut,
    /// All of it.
    bytes: usize,
}

impl Chunks {
    /// An empty buffer into which at least `wanted` bytes can be read. What was read is taken out with [`BytesMut::split`].
    pub fn room(&mut self, wanted: usize) -> &mut BytesMut {
        if self.current.rest.capacity() < wanted && !self.current.rest.try_reclaim(wanted) {
            self.change(wanted);
        }
        &mut self.current.rest
    }

    fn change(&mut self, wanted: usize) {
        self.is_used = true;
        let full = std::mem::take(&mut self.current);
        self.waiting_bytes += full.bytes;
        self.waiting.push_back(full);
        for _ in 0..TRIES {
            let Some(mut oldest) = self.waiting.pop_front() else { break };
            if oldest.rest.try_reclaim(wanted) {
                self.waiting_bytes -= oldest.bytes;
                self.current = oldest;
                return;
            }
            self.waiting.push_back(oldest);
        }
        while self.waiting_bytes > WAITING_BYTES_MAX {
            self.let_go();
        }
        let bytes = wanted.next_multiple_of(4096).max(CHUNK_BYTES);
        self.current = Chunk { rest: BytesMut::with_capacity(bytes), bytes };
    }

    /// To be called now and then: gives memory back, bit by bit, where it was not needed since the last time.
    pub fn tick(&mut self) {
        if !std::mem::take(&mut self.is_used) {
            for _ in 0..self.waiting.len().div_ceil(4) {
                self.let_go();
            }
        }
    }

    /// Memory of all of them.
    pub fn bytes(&self) -> usize {
        self.current.bytes + self.waiting_bytes
    }

    fn let_go(&mut self) {
        self.waiting_bytes -= self.waiting.pop_front().map_or(0, |chunk| chunk.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a request of so many bytes, all of them the same.
    fn read(chunks: &mut Chunks, bytes: usize, with: u8) -> BytesMut {
        let room = chunks.room(bytes);
        assert!(room.is_empty() && room.capacity() >= bytes);
        room.resize(bytes, with);
        room.split()
    }

    #[test]
    fn a_chunk_is_used_again_when_nobody_holds_a_part_of_it() {
        let mut chunks = Chunks::default();
        let begin = chunks.room(1).as_ptr();
        let held: Vec<BytesMut> = (0..4).map(|_| read(&mut chunks, CHUNK_BYTES / 4, 1)).collect();
        assert_ne!(chunks.room(1).as_ptr(), begin, "all of it is held");
        drop(held);
        let other = read(&mut chunks, CHUNK_BYTES, 2);
        assert_eq!(chunks.room(1).as_ptr(), begin);
        assert!(other.iter().all(|byte| *byte == 2));
    }

    #[test]
    fn what_is_held_is_never_written_to() {
        let mut chunks = Chunks::default();
        let mut held = VecDeque::new();
        for number in 0..5_000usize {
            let (with, bytes) = (number as u8, 1 + number * 7_919 % (CHUNK_BYTES + 10_000));
            held.push_back((with, read(&mut chunks, bytes, with)));
            // Some are held for longer than others.
            if held.len() > 20 {
                let (with, bytes) = held.remove(number * 31 % 20).expect("one of them");
                assert!(bytes.iter().all(|byte| *byte == with), "request {number}");
            }
            assert!(chunks.waiting_bytes <= WAITING_BYTES_MAX + 2 * CHUNK_BYTES);
            assert_eq!(chunks.waiting_bytes, chunks.waiting.iter().map(|chunk| chunk.bytes).sum::<usize>());
        }
    }

    #[test]
    fn memory_is_given_back_when_it_is_not_needed() {
        let mut chunks = Chunks::default();
        let held: Vec<BytesMut> = (0..1_000).map(|_| read(&mut chunks, CHUNK_BYTES, 1)).collect();
        assert!(chunks.waiting_bytes > WAITING_BYTES_MAX / 2);
        drop(held);
        chunks.tick();
        assert!(chunks.waiting_bytes > WAITING_BYTES_MAX / 2, "it was needed a moment ago");
        (0..50).for_each(|_| chunks.tick());
        assert_eq!((chunks.waiting_bytes, chunks.waiting.len()), (0, 0));
    }
}
