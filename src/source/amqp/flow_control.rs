//! Decides when a connection to a broker is read, and when it ends. Shared by the connection's stream, on the AMQP
//! library's thread, and its consumer. Never does I/O.
//!
//! While [`Window`] is full nothing more is read, so that the broker has to wait. A frame that [`FrameReader`] rejects
//! ends the connection; complete messages before it are acknowledged first, so that they are not delivered again with
//! it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::frames::FrameReader;
use super::window::{Violation, Window};

/// The flow control of one connection. Clones share it.
#[derive(Clone)]
pub(super) struct FlowControl(Arc<Mutex<FlowState>>);

struct FlowState {
    frames: FrameReader,
    window: Window,
    violation: Option<Violation>,
    /// Acknowledgements that the consumer has decided on and that are not sent yet.
    pending_acks: u32,
    closed: bool,
    /// Wakes the stream that waits to read.
    reader: Option<Waker>,
}

/// An acknowledgement that is not sent yet.
pub(super) struct PendingAck<'a>(&'a FlowControl);

impl FlowControl {
    /// Flow control for a consumer with this prefetch.
    pub(super) fn new(prefetch: u16) -> Self {
        Self(Arc::new(Mutex::new(FlowState {
            frames: FrameReader::new(),
            window: Window::new(prefetch),
            violation: None,
            pending_acks: 0,
            closed: false,
            reader: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, FlowState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that every message up to the one with this tag is about to be acknowledged. Called before the broker can
    /// send more; the returned guard is dropped once the acknowledgement is sent.
    pub(super) fn acknowledge(&self, tag: u64) -> PendingAck<'_> {
        let mut state = self.state();
        state.window.acknowledge(tag);
        state.pending_acks += 1;
        state.wake();
        PendingAck(self)
    }

    /// Records that the connection is closed, and wakes the stream.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.wake();
    }

    /// Why the broker's bytes were rejected, if they were.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.state().violation.clone()
    }

    /// Whether nothing is read until a message is acknowledged.
    pub(super) fn is_full(&self) -> bool {
        self.state().window.is_full()
    }

    /// Ready once the connection may be read; an error once it ends.
    pub(super) fn poll_readable(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        let waits = match &state.violation {
            Some(_) => state.pending_acks > 0 || state.window.holds_whole_messages(),
            None => state.window.is_full(),
        };
        if waits && !state.closed {
            state.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        match &state.violation {
            Some(violation) => Poll::Ready(Err(io::Error::other(violation.clone()))),
            None => Poll::Ready(Ok(())),
        }
    }

    /// How many of the received bytes the AMQP library may see.
    pub(super) fn admit(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let FlowState { frames, window, violation, .. } = &mut *state;
        match frames.feed(bytes, window) {
            Ok(()) => bytes.len(),
            Err(rejection) => {
                *violation = Some(rejection.violation);
                rejection.admitted
            }
        }
    }

    /// Records that bytes were sent to the broker.
    pub(super) fn sent(&self) {
        self.state().frames.sent();
    }
}

impl Drop for PendingAck<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.pending_acks -= 1;
        state.wake();
    }
}

impl FlowState {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use super::super::frames::fixtures::{deliver, header, message};
    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the connection is read from: `None` while it waits.
    fn readable(flow: &FlowControl, wakes: &Arc<Wakes>) -> Option<bool> {
        let waker = Waker::from(Arc::clone(wakes));
        match flow.poll_readable(&Context::from_waker(&waker)) {
            Poll::Pending => None,
            Poll::Ready(result) => Some(result.is_ok()),
        }
    }

    fn woken(wakes: &Wakes) -> u32 {
        wakes.0.swap(0, Ordering::Relaxed)
    }

    #[test]
    fn a_full_window_is_read_again_once_a_message_is_acknowledged() {
        let (flow, wakes) = (FlowControl::new(9), Arc::default());
        let large = message(1, &vec![b' '; 9 << 20]);
        assert_eq!(flow.admit(&large), large.len());
        assert_eq!(readable(&flow, &wakes), Some(true), "a single message never fills it");
        flow.admit(&deliver(2));
        assert_eq!((readable(&flow, &wakes), flow.is_full()), (None, true));
        drop(flow.acknowledge(1));
        assert_eq!((woken(&wakes), readable(&flow, &wakes)), (1, Some(true)));
    }

    #[test]
    fn a_violation_ends_the_connection_only_once_the_acknowledgements_before_it_are_sent() {
        let (flow, wakes) = (FlowControl::new(9), Arc::default());
        flow.admit(&[message(1, b"{}"), message(2, b"{}"), deliver(3)].concat());
        let large = header(1 << 62, b"\x00\x00");
        assert_eq!(flow.admit(&large), large.len() - 1);
        assert_eq!(readable(&flow, &wakes), None);
        drop(flow.acknowledge(1));
        assert_eq!(readable(&flow, &wakes), None);
        let pending_ack = flow.acknowledge(2);
        assert_eq!(readable(&flow, &wakes), None, "a connection that ended now would lose it");
        woken(&wakes);
        drop(pending_ack);
        assert_eq!((woken(&wakes), readable(&flow, &wakes)), (1, Some(false)));
        assert_eq!(flow.violation(), Some(Violation::TooLarge(1 << 62)));
    }

    #[test]
    fn a_stream_that_waits_to_read_is_woken_when_the_connection_is_closed() {
        let (flow, wakes) = (FlowControl::new(9), Arc::default());
        flow.admit(&[message(1, &vec![b' '; 9 << 20]), deliver(2)].concat());
        assert_eq!(readable(&flow, &wakes), None);
        flow.close();
        assert_eq!((woken(&wakes), readable(&flow, &wakes)), (1, Some(true)), "and reads the end");
    }
}
