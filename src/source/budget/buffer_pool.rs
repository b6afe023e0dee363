//! Buffers that pages no longer need, for the next ones: memory fresh from the kernel is dear, since it comes page by
//! page and zeroed.

use std::sync::{Mutex, PoisonError};

/// Buffers kept, how large they may be, and the steps their sizes come in, so that they fit again.
const KEPT: usize = 4;
const LARGEST: usize = 4 << 20;
const STEP: usize = 256 << 10;

/// A few buffers.
#[derive(Default)]
pub(super) struct BufferPool(Mutex<Vec<Vec<u8>>>);

impl BufferPool {
    /// A buffer of so many bytes, whatever they are: one kept, or a new one.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        if bytes < STEP / 2 {
            return vec![0; bytes];
        }
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = spare.iter().position(|buffer| (bytes..=2 * bytes).contains(&buffer.capacity()));
        let kept = fitting.map(|place| spare.swap_remove(place));
        drop(spare);
        let mut buffer = kept.unwrap_or_else(|| vec![0; bytes.next_multiple_of(STEP)]);
        buffer.resize(bytes, 0);
        buffer
    }

    /// Keeps a buffer, in place of the oldest.
    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        if !(STEP..=LARGEST).contains(&buffer.capacity()) {
            return;
        }
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() >= KEPT {
            spare.remove(0);
        }
        spare.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_serves_the_next_page_of_its_size_and_no_smaller_one() {
        let spare = BufferPool::default();
        let first = spare.take(300 << 10);
        let place = first.as_ptr();
        spare.give_back(first);
        for smaller in [1 << 10, 200 << 10] {
            let buffer = spare.take(smaller);
            assert_ne!(buffer.as_ptr(), place);
        }
        let next = spare.take(400 << 10);
        assert_eq!((next.as_ptr(), next.len()), (place, 400 << 10));
    }
}
