//! What operators can ask of a running mirror, and the handle to ask with.

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
    /// Stop, restarts included.
    Pause,
    /// Go on; a purged feed begins anew.
    Resume,
    /// Ask now, whatever the wait.
    PollNow,
    /// Read the feed anew; what the source says replaces what is newer if `trust_source`.
    Resync {
        /// Whether the walk replaces what was stored before it began, newer or not.
        trust_source: bool,
        /// With `trust_source`: whether its sweep goes on whatever it removes.
        accept: bool,
    },
    /// Let a held sweep go on.
    AcceptSweep,
    /// Put the poll cursor at this URL.
    Seek(String),
    /// Silence the feed's alerts for a while, or let them come again.
    Ack(Option<Ack>),
    /// Remove the feed's rows, quarantine and cursors.
    Purge,
    /// Forget an item for good, or let a forgotten one be taken again.
    Forget {
        /// Which.
        item: ItemSelector,
        /// Whether it may be taken again.
        undo: bool,
    },
}

impl Order {
    /// What it is called.
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

/// What an order comes to, mostly in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderAnswer<T = String> {
    /// It was carried out.
    Done(T),
    /// It is being carried out, or will be as soon as it can be; in words.
    Accepted(String),
}

impl OrderAnswer {
    /// The words.
    pub fn into_words(self) -> String {
        match self {
            Self::Done(words) | Self::Accepted(words) => words,
        }
    }
}

/// An operator's order to one quarantine row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuarantineOrder {
    /// Read it again; a row that can be read now is applied and leaves quarantine.
    Retry,
    /// Remove it.
    Drop,
}

/// What came of an order to many quarantine rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuarantineBatchReport {
    /// Rows that have left quarantine.
    pub removed: u64,
    /// Rows that could not be read or applied.
    pub failed: u64,
    /// The first of those, and why.
    pub first_error: Option<String>,
}

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No such feed or row.
    #[error("{0}")]
    Unknown(String),
    /// It can't be done as things are; the words say why.
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

/// Asks the supervisor; cheap to clone.
#[derive(Clone)]
pub struct Control {
    requests: mpsc::Sender<ControlRequest>,
    begun: Arc<AtomicBool>,
}

/// The supervisor's end: what it is asked.
pub struct ControlReceiver {
    requests: mpsc::Receiver<ControlRequest>,
    /// Whether anybody has taken a request: before, as while the database can't be opened, nobody is there to answer.
    begun: Arc<AtomicBool>,
}

impl ControlReceiver {
    /// The next request; nothing once nobody can ask any more.
    pub(super) async fn next(&mut self) -> Option<ControlRequest> {
        self.begun.store(true, Ordering::Relaxed);
        self.requests.recv().await
    }
}

/// Orders that may wait for the supervisor.
const MAX_QUEUED_REQUESTS: usize = 64;
/// How long whoever gives an order waits for it to be carried out.
pub const ORDER_WAIT: Duration = Duration::from_millis(1_500);

/// A handle and what it leads to.
pub fn channel() -> (Control, ControlReceiver) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_REQUESTS);
    let begun = Arc::<AtomicBool>::default();
    (Control { requests: sender, begun: Arc::clone(&begun) }, ControlReceiver { requests: receiver, begun })
}

/// What a stand-in for the supervisor is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StubRequest {
    /// An order to a feed, by its name.
    Feed(String, Order),
    /// An order to a quarantine row, by its number.
    Quarantine(i64, QuarantineOrder),
    /// An order to many quarantine rows.
    Sort(QuarantineSelection, QuarantineOrder),
    /// Whether it is alive; the words it answers are not looked at.
    Ping,
}

impl QuarantineBatchReport {
    /// What came of it, in words.
    pub fn words(&self, order: QuarantineOrder) -> String {
        let records = |count| if count == 1 { "1 record".to_owned() } else { format!("{count} records") };
        let done = match order {
            QuarantineOrder::Retry => format!("{} could be read, and left quarantine", records(self.removed)),
            QuarantineOrder::Drop => format!("{} dropped", records(self.removed)),
        };
        match &self.first_error {
            Some(why) => format!("{done}; still there: {}, the first: {why}", records(self.failed)),
            None => done,
        }
    }
}

impl Control {
    /// A handle whose orders `answer` carries out one after the other, where no supervisor runs. Needs a tokio runtime;
    /// ends with the last clone of the handle.
    pub fn with_stub<F, A>(mut answer: F) -> Self
    where
        F: FnMut(StubRequest) -> A + Send + 'static,
        A: Future<Output = Result<String, ControlError>> + Send,
    {
        let (control, mut orders) = channel();
        control.begun.store(true, Ordering::Relaxed);
        tokio::spawn(async move {
            while let Some(request) = orders.next().await {
                // Whoever asked may be gone.
                match request {
                    ControlRequest::Feed(name, order, reply) => {
                        let _ = reply.send(answer(StubRequest::Feed(name, order)).await.map(OrderAnswer::Done));
                    }
                    ControlRequest::Quarantine(id, order, reply) => {
                        let _ = reply.send(answer(StubRequest::Quarantine(id, order)).await.map(OrderAnswer::Done));
                    }
                    ControlRequest::QuarantineBatch(chosen, order, reply) => {
                        let sorted = |_| {
                            OrderAnswer::Done(QuarantineBatchReport { removed: 1, ..QuarantineBatchReport::default() })
                        };
                        let _ = reply.send(answer(StubRequest::Sort(chosen, order)).await.map(sorted));
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

    /// Gives a feed an order; the answer says in words what was done. What takes longer than [`PATIENCE`], since the store
    /// or another order keeps it, is accepted: it is carried out as soon as it can be.
    ///
    /// # Errors
    /// When there is no such feed, or the order can't be carried out.
    pub async fn order_feed(&self, name: &str, order: Order) -> Result<OrderAnswer, ControlError> {
        let accepted = format!("{name}: {} is accepted, and carried out as soon as it can be", order.verb());
        self.send_order(accepted, |reply| ControlRequest::Feed(name.to_owned(), order, reply)).await
    }

    /// Gives a quarantine row an order; the answer says in words what was done, or that it was accepted.
    ///
    /// # Errors
    /// When there is no such row, or it still can't be read.
    pub async fn order_record(&self, id: i64, order: QuarantineOrder) -> Result<OrderAnswer, ControlError> {
        let accepted = format!("record {id}: accepted, and seen to as soon as it can be");
        self.send_order(accepted, |reply| ControlRequest::Quarantine(id, order, reply)).await
    }

    /// Gives many quarantine rows an order.
    ///
    /// # Errors
    /// When there is no such feed, or the mirror can't be written.
    pub async fn order_records(
        &self,
        chosen: QuarantineSelection,
        order: QuarantineOrder,
    ) -> Result<OrderAnswer<QuarantineBatchReport>, ControlError> {
        let accepted =
            "this is accepted: the records are seen to one after the other, and the log says what came of it"
                .to_owned();
        self.send_order(accepted, |reply| ControlRequest::QuarantineBatch(chosen, order, reply)).await
    }

    async fn send_order<T>(
        &self,
        accepted: String,
        request: impl FnOnce(oneshot::Sender<Result<OrderAnswer<T>, ControlError>>) -> ControlRequest,
    ) -> Result<OrderAnswer<T>, ControlError> {
        let (reply, answer) = oneshot::channel();
        // A full queue says that nothing of it is being carried out: that is better told than added to.
        self.requests.try_send(request(reply)).map_err(|error| match error {
            TrySendError::Full(_) => ControlError::Refused("too many orders wait already".to_owned()),
            TrySendError::Closed(_) => ControlError::Stopping,
        })?;
        match tokio::time::timeout(ORDER_WAIT, answer).await {
            Ok(answer) => answer.map_err(|_| ControlError::Stopping)?,
            Err(_) => Ok(OrderAnswer::Accepted(accepted)),
        }
    }

    /// Returns once the supervisor has answered: it is alive. One that has not begun yet need not.
    ///
    /// # Errors
    /// When it is stopping.
    pub async fn ping(&self) -> Result<(), ControlError> {
        if !self.begun.load(Ordering::Relaxed) {
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
