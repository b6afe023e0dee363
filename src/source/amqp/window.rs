//! Counts the deliveries that are not acknowledged, against the prefetch and the memory limit. Pure.
//!
//! A delivery counts as acknowledged from the consumer's decision on, before the broker can know.

use std::collections::VecDeque;

use crate::source::sse::MAX_EVENT_BYTES;

/// The largest body accepted, bytes: as large as an event may be.
pub(super) const MAX_MESSAGE_BYTES: u64 = MAX_EVENT_BYTES;
/// The most bytes delivered and not acknowledged, unless one message alone is larger; two batches.
const WINDOW_BYTES: u64 = 8 << 20;
/// The AMQP library's memory besides the body, bytes: for a delivery, and for each value in its headers.
const DELIVERY_BYTES: u64 = 1_024;
const VALUE_BYTES: u64 = 128;

/// Why a broker's bytes are not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// A message of so many bytes.
    #[error("a message of {0} bytes, where {MAX_MESSAGE_BYTES} are taken at most")]
    TooLarge(u64),
    /// More deliveries than this that are not acknowledged.
    #[error("more than {0} messages ahead of their acknowledgement")]
    OverPrefetch(usize),
    /// A frame that is not AMQP 0-9-1, or that no consumer expects.
    #[error("{0}")]
    BadFrame(String),
}

/// The deliveries of a connection, which has one consumer.
#[derive(Debug)]
pub(super) struct Window {
    prefetch: usize,
    unacknowledged: VecDeque<Delivery>,
    newest_tag: u64,
    bytes: u64,
    content: ContentState,
}

#[derive(Debug)]
struct Delivery {
    tag: u64,
    bytes: u64,
}

/// The frame of the newest delivery that must come next (§4.2.6).
#[derive(Debug)]
enum ContentState {
    Nothing,
    Header,
    Body(u64),
}

impl Window {
    /// The window of a consumer with this prefetch.
    pub(super) fn new(prefetch: u16) -> Self {
        let prefetch = usize::from(prefetch);
        Self { prefetch, unacknowledged: VecDeque::new(), newest_tag: 0, bytes: 0, content: ContentState::Nothing }
    }

    /// Records the method frame that begins a delivery, of so many bytes.
    pub(super) fn begin(&mut self, tag: u64, bytes: usize) -> Result<(), Violation> {
        if !matches!(self.content, ContentState::Nothing) {
            return Err(bad_frame("a delivery while the one before it was not whole"));
        }
        if tag <= self.newest_tag {
            // An acknowledgement covers all up to a tag: out of order it would cover what is not committed.
            return Err(bad_frame("delivery tags that don't grow"));
        }
        self.newest_tag = tag;
        self.content = ContentState::Header;
        self.unacknowledged.push_back(Delivery { tag, bytes: 0 });
        self.charge(bytes as u64 + DELIVERY_BYTES);
        if self.unacknowledged.len() > self.prefetch {
            return Err(Violation::OverPrefetch(self.prefetch));
        }
        Ok(())
    }

    /// Records the content header, of so many bytes and so many values, which announces a body of `body` bytes.
    pub(super) fn header(&mut self, body: u64, bytes: usize, values: u64) -> Result<(), Violation> {
        if !matches!(self.content, ContentState::Header) {
            return Err(bad_frame("a content header without a delivery"));
        }
        if body > MAX_MESSAGE_BYTES {
            return Err(Violation::TooLarge(body));
        }
        self.content = if body == 0 { ContentState::Nothing } else { ContentState::Body(body) };
        self.charge(body + bytes as u64 + values * VALUE_BYTES);
        Ok(())
    }

    /// Records so many bytes of the body.
    pub(super) fn body(&mut self, bytes: usize) -> Result<(), Violation> {
        let ContentState::Body(left) = self.content else {
            return Err(bad_frame("a body without a content header"));
        };
        self.content = match left.checked_sub(bytes as u64) {
            Some(0) => ContentState::Nothing,
            Some(left) => ContentState::Body(left),
            None => return Err(bad_frame("a body longer than its content header says")),
        };
        Ok(())
    }

    /// Removes every delivery up to the one with this tag.
    pub(super) fn acknowledge(&mut self, tag: u64) {
        while self.unacknowledged.front().is_some_and(|delivery| delivery.tag <= tag) {
            self.bytes -= self.unacknowledged.pop_front().map_or(0, |delivery| delivery.bytes);
        }
    }

    /// Whether nothing more may be read before a delivery is acknowledged. A single delivery never fills the window:
    /// all before the newest are complete, so the consumer can acknowledge them without reading more.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > WINDOW_BYTES && self.unacknowledged.len() > 1
    }

    /// Whether a complete delivery is not acknowledged.
    pub(super) fn holds_whole_messages(&self) -> bool {
        let incomplete = usize::from(!matches!(self.content, ContentState::Nothing));
        self.unacknowledged.len() > incomplete
    }

    fn charge(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Some(newest) = self.unacknowledged.back_mut() {
            newest.bytes += bytes;
        }
    }
}

fn bad_frame(what: &str) -> Violation {
    Violation::BadFrame(what.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A whole message.
    fn deliver(window: &mut Window, tag: u64, body: u64) {
        window.begin(tag, 40).unwrap();
        window.header(body, 14, 0).unwrap();
        if body > 0 {
            window.body(usize::try_from(body).unwrap()).unwrap();
        }
    }

    #[test]
    fn no_more_than_the_prefetch_may_be_unacknowledged() {
        let mut window = Window::new(2);
        deliver(&mut window, 1, 0);
        deliver(&mut window, 2, 7);
        window.acknowledge(1);
        deliver(&mut window, 3, 7);
        assert_eq!(window.begin(4, 40), Err(Violation::OverPrefetch(2)));

        let mut window = Window::new(2);
        deliver(&mut window, 1, 0);
        deliver(&mut window, 2, 7);
        // An acknowledgement covers all deliveries before it.
        window.acknowledge(2);
        deliver(&mut window, 3, 7);
        deliver(&mut window, 4, 7);
        assert_eq!(Window::new(0).begin(1, 40), Err(Violation::OverPrefetch(0)), "who only looks gets nothing");
    }

    #[test]
    fn a_message_is_as_large_as_an_event_at_most() {
        let mut window = Window::new(2);
        deliver(&mut window, 1, MAX_MESSAGE_BYTES);
        for large in [MAX_MESSAGE_BYTES + 1, 1 << 62, u64::MAX] {
            let mut window = Window::new(2);
            window.begin(1, 40).unwrap();
            assert_eq!(window.header(large, 14, 0), Err(Violation::TooLarge(large)));
        }
    }

    #[test]
    fn the_window_is_full_until_a_delivery_is_acknowledged_and_never_because_of_one_message() {
        let mut window = Window::new(500);
        deliver(&mut window, 1, MAX_MESSAGE_BYTES);
        assert!(!window.is_full());
        window.begin(2, 40).unwrap();
        assert!(window.is_full());
        window.acknowledge(1);
        assert!(!window.is_full());
        // A second delivery is read only when the first is acknowledged.
        window.header(WINDOW_BYTES, 14, 0).unwrap();
        assert!(!window.is_full());
        window.acknowledge(2);
        assert_eq!((window.bytes, window.unacknowledged.len()), (0, 0));
    }

    #[test]
    fn small_messages_and_their_headers_count_too() {
        let filled_by = |body, values| {
            let mut window = Window::new(u16::MAX);
            for tag in 1.. {
                window.begin(tag, 40).unwrap();
                window.header(body, 14, values).unwrap();
                if body > 0 {
                    window.body(usize::try_from(body).unwrap()).unwrap();
                }
                if window.is_full() {
                    return tag;
                }
            }
            unreachable!()
        };
        assert!((7_000..8_000).contains(&filled_by(0, 0)));
        assert!((4_000..5_000).contains(&filled_by(700, 0)));
        assert_eq!(filled_by(0, 100_000), 2);
    }

    #[test]
    fn an_incomplete_message_does_not_wait_to_be_acknowledged() {
        let mut window = Window::new(2);
        deliver(&mut window, 1, 0);
        window.begin(2, 40).unwrap();
        assert!(window.holds_whole_messages());
        window.acknowledge(1);
        assert!(!window.holds_whole_messages());
        window.header(1, 14, 0).unwrap();
        assert!(!window.holds_whole_messages());
        window.body(1).unwrap();
        assert!(window.holds_whole_messages());
    }

    #[test]
    fn contents_arrive_complete_and_in_order() {
        let refused = |result: Result<(), Violation>| assert!(matches!(result, Err(Violation::BadFrame(_))));
        let mut window = Window::new(9);
        refused(window.header(1, 14, 0));
        refused(window.body(1));
        window.begin(1, 40).unwrap();
        refused(window.begin(2, 40));
        window.header(5, 14, 0).unwrap();
        refused(window.header(5, 14, 0));
        window.body(2).unwrap();
        refused(window.begin(2, 40));
        refused(window.body(4));
        window.body(3).unwrap();
        refused(window.body(0));
        refused(window.begin(1, 40));
        window.begin(2, 40).unwrap();
    }
}
