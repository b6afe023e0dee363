//! The orders that operators can give to a running mirror, and the handle that sends them to the supervisor. Carrying
//! them out is done in `orders` and `quarantine`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::ack::Ack;
pub use crate::store::forget::ItemSelector;
pub use crate::store::quarantine_batch::QuarantineSelection;

/// An operator's order to one feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Stop the feed; it stays stopped over restarts.
    Pause,
    /// Start the feed again; a purged one from its beginning.
    Resume,
    /// Poll now, whatever the feed waits for.
    PollNow,
    /// Resync the feed; with `trust_source`, the source's items replace stored ones that are newer.
    Resync {
        /// Whether the walk replaces items that were stored before it began, newer or not.
        trust_source: bool,
        /// With `trust_source`: whether the sweep goes on however much it removes.
        accept: bool,
    },
    /// Let a held sweep go on.
    AcceptSweep,
    /// Set the poll cursor to this URL.
    Seek(String),
    /// Silence the feed's alerts for a time, or end that.
    Ack(Option<Ack>),
    /// Remove the feed's rows, quarantine and cursors.
    Purge,
    /// Forget an item for good, or allow a forgotten one again.
    Forget {
        item: ItemSelector,
        /// Whether to allow the item again.
        undo: bool,
    },
}

impl Order {
    /// The order's name on the command line and in paths.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::PollNow => "poll-now",
            Self::Resync { .. } | Self::AcceptSweep => "resync",
            Self::Seek(_) => "seek",
            Self::Ack(_) => "ack",
            Self::Purge => "purge",
            Self::Forget { .. } => "forget",
        }
    }
}

/// The answer to an order, mostly a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderAnswer<T = String> {
    /// The order was carried out.
    Done(T),
    /// The order is being carried out, or will be as soon as possible; with a text.
    Accepted(String),
}

impl OrderAnswer {
    /// The answer's text.
    pub fn into_words(self) -> String {
        match self {
            Self::Done(words) | Self::Accepted(words) => words,
        }
    }
}

/// An operator's order to one quarantine row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuarantineOrder {
    /// Decode the row again; if that works now, apply it and remove it from quarantine.
    Retry,
    /// Remove the row.
    Drop,
}

/// The result of an order to many quarantine rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuarantineBatchReport {
    /// Rows that have left quarantine.
    pub removed: u64,
    /// Rows that could not be read or applied.
    pub failed: u64,
    /// The first of the failed rows, and why it failed.
    pub first_error: Option<String>,
}

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No such feed or row.
    #[error("{0}")]
    Unknown(String),
    /// The order can't be carried out in the present state; the text says why.
    #[error("{0}")]
    Refused(String),
    /// The mirror is stopping.
    #[error("the mirror is stopping")]
    Stopping,
}

pub(super) enum ControlRequest {
    Feed(String, Order, oneshot::Sender<Result<OrderAnswer, ControlError>>),
    Quarantine(i64, QuarantineOrder, oneshot::Sender<Result<OrderAnswer, ControlError>>),
    QuarantineBatch(
        QuarantineSelection,
        QuarantineOrder,
        oneshot::Sender<Result<OrderAnswer<QuarantineBatchReport>, ControlError>>,
    ),
    Ping(oneshot::Sender<()>),
}

/// Sends requests to the supervisor; cheap to clone.
#[derive(Clone)]
pub struct Control {
    requests: mpsc::Sender<ControlRequest>,
    supervisor_started: Arc<AtomicBool>,
}

/// The supervisor's end: receives the requests.
pub struct ControlReceiver {
    requests: mpsc::Receiver<ControlRequest>,
    /// Whether the supervisor receives requests yet: until the database is open, nothing answers them.
    supervisor_started: Arc<AtomicBool>,
}

impl ControlReceiver {
    /// The next request; none once all handles are dropped.
    pub(super) async fn next(&mut self) -> Option<ControlRequest> {
        self.supervisor_started.store(true, Ordering::Relaxed);
        self.requests.recv().await
    }
}

/// Requests that may wait for the supervisor.
const MAX_QUEUED_REQUESTS: usize = 64;
/// How long the caller of an order waits for it to be carried out.
pub const ORDER_WAIT: Duration = Duration::from_millis(1_500);

/// A handle and the receiver of its requests.
pub fn channel() -> (Control, ControlReceiver) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_REQUESTS);
    let supervisor_started = Arc::<AtomicBool>::default();
    (
        Control { requests: sender, supervisor_started: Arc::clone(&supervisor_started) },
        ControlReceiver { requests: receiver, supervisor_started },
    )
}

/// A request to a stub that stands for the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StubRequest {
    /// An order to a feed, by its name.
    Feed(String, Order),
    /// An order to a quarantine row, by its number.
    Quarantine(i64, QuarantineOrder),
    /// An order to many quarantine rows.
    QuarantineBatch(QuarantineSelection, QuarantineOrder),
    /// Whether the supervisor is alive; the answer's text is ignored.
    Ping,
}

impl QuarantineBatchReport {
    /// The result as a text for the operator.
    pub fn words(&self, order: QuarantineOrder) -> String {
        let records = |count| if count == 1 { "1 record".to_owned() } else { format!("{count} records") };
        let done = match order {
            QuarantineOrder::Retry => format!("{} could be read, and left quarantine", records(self.removed)),
            QuarantineOrder::Drop => format!("{} dropped", records(self.removed)),
        };
        match &self.first_error {
            Some(first_error) => format!("{done}; still there: {}, the first: {first_error}", records(self.failed)),
            None => done,
        }
    }
}

impl Control {
    /// A handle whose requests `answer` answers one after the other, where no supervisor runs. Needs a tokio runtime;
    /// ends with the last clone of the handle.
    pub fn with_stub<F, A>(mut answer: F) -> Self
    where
        F: FnMut(StubRequest) -> A + Send + 'static,
        A: Future<Output = Result<String, ControlError>> + Send,
    {
        let (control, mut receiver) = channel();
        control.supervisor_started.store(true, Ordering::Relaxed);
        tokio::spawn(async move {
            while let Some(request) = receiver.next().await {
                // The caller may no longer wait.
                match request {
                    ControlRequest::Feed(name, order, reply) => {
                        let _ = reply.send(answer(StubRequest::Feed(name, order)).await.map(OrderAnswer::Done));
                    }
                    ControlRequest::Quarantine(id, order, reply) => {
                        let _ = reply.send(answer(StubRequest::Quarantine(id, order)).await.map(OrderAnswer::Done));
                    }
                    ControlRequest::QuarantineBatch(selection, order, reply) => {
                        let batch_report = |_| {
                            OrderAnswer::Done(QuarantineBatchReport { removed: 1, ..QuarantineBatchReport::default() })
                        };
                        let _ =
                            reply.send(answer(StubRequest::QuarantineBatch(selection, order)).await.map(batch_report));
                    }
                    ControlRequest::Ping(reply) => {
                        if answer(StubRequest::Ping).await.is_ok() {
                            let _ = reply.send(());
                        }
                    }
                }
            }
        });
        control
    }

    /// Gives an order to a feed; the answer's text says what was done. An order that takes longer than [`ORDER_WAIT`],
    /// since the store or another order delays it, is accepted: it is carried out as soon as possible.
    ///
    /// # Errors
    /// When there is no such feed, or the order can't be carried out.
    pub async fn order_feed(&self, name: &str, order: Order) -> Result<OrderAnswer, ControlError> {
        let accepted = format!("{name}: {} is accepted, and carried out as soon as it can be", order.verb());
        self.send_order(accepted, |reply| ControlRequest::Feed(name.to_owned(), order, reply)).await
    }

    /// Gives an order to a quarantine row; the answer's text says what was done, or that the order was accepted.
    ///
    /// # Errors
    /// When there is no such row, or the record still can't be decoded.
    pub async fn order_record(&self, id: i64, order: QuarantineOrder) -> Result<OrderAnswer, ControlError> {
        let accepted = format!("record {id}: accepted, and seen to as soon as it can be");
        self.send_order(accepted, |reply| ControlRequest::Quarantine(id, order, reply)).await
    }

    /// Gives an order to many quarantine rows.
    ///
    /// # Errors
    /// When there is no such feed, or the mirror can't be written.
    pub async fn order_records(
        &self,
        selection: QuarantineSelection,
        order: QuarantineOrder,
    ) -> Result<OrderAnswer<QuarantineBatchReport>, ControlError> {
        let accepted =
            "this is accepted: the records are seen to one after the other, and the log says what came of it"
                .to_owned();
        self.send_order(accepted, |reply| ControlRequest::QuarantineBatch(selection, order, reply)).await
    }

    async fn send_order<T>(
        &self,
        accepted: String,
        request: impl FnOnce(oneshot::Sender<Result<OrderAnswer<T>, ControlError>>) -> ControlRequest,
    ) -> Result<OrderAnswer<T>, ControlError> {
        let (reply, answer) = oneshot::channel();
        // With a full queue no order is being carried out: refusing says so, and waiting would not.
        self.requests.try_send(request(reply)).map_err(|error| match error {
            TrySendError::Full(_) => ControlError::Refused("too many orders wait already".to_owned()),
            TrySendError::Closed(_) => ControlError::Stopping,
        })?;
        match tokio::time::timeout(ORDER_WAIT, answer).await {
            Ok(answer) => answer.map_err(|_| ControlError::Stopping)?,
            Err(_) => Ok(OrderAnswer::Accepted(accepted)),
        }
    }

    /// Returns once the supervisor has answered: it is alive. A supervisor that is not started yet need not answer.
    ///
    /// # Errors
    /// When the supervisor is stopping.
    pub async fn ping(&self) -> Result<(), ControlError> {
        if !self.supervisor_started.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.ask(ControlRequest::Ping).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> ControlRequest) -> Result<T, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| ControlError::Stopping)?;
        answer.await.map_err(|_| ControlError::Stopping)
    }
}
