//! Keeps buffers of finished pages for the next ones: new memory is expensive, since the kernel maps it page by page
//! and zeroes it. Bounded in number and size; not charged to the budget.

use std::sync::{Mutex, PoisonError};

/// Buffers kept, their largest size, and the step that new sizes are rounded to, so that a buffer fits the next page.
const MOST: usize = 4;
const LARGEST: usize = 4 << 20;
const STEP: usize = 256 << 10;

/// The buffers kept, the oldest first.
#[derive(Default)]
pub(super) struct BufferPool(Mutex<Vec<Vec<u8>>>);

impl BufferPool {
    /// A buffer of so many bytes, of any content: one of the pool, or a new one.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        if bytes < STEP / 2 {
            return vec![0; bytes];
        }
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = buffers.iter().position(|buffer| (bytes..=2 * bytes).contains(&buffer.capacity()));
        let reused = fitting.map(|at| buffers.swap_remove(at));
        drop(buffers);
        let mut buffer = reused.unwrap_or_else(|| vec![0; bytes.next_multiple_of(STEP)]);
        buffer.resize(bytes, 0);
        buffer
    }

    /// Keeps a buffer, in place of the oldest.
    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        if !(STEP..=LARGEST).contains(&buffer.capacity()) {
            return;
        }
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() >= MOST {
            buffers.remove(0);
        }
        buffers.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_is_reused_by_the_next_page_of_its_size_and_no_smaller_one() {
        let buffers = BufferPool::default();
        let first = buffers.take(300 << 10);
        let address = first.as_ptr();
        buffers.give_back(first);
        for smaller in [1 << 10, 200 << 10] {
            let buffer = buffers.take(smaller);
            assert_ne!(buffer.as_ptr(), address);
        }
        let next = buffers.take(400 << 10);
        assert_eq!((next.as_ptr(), next.len()), (address, 400 << 10));
    }
}
