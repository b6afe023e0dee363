//! A feed's responses to polls: the correct page, or what the chosen fault makes of it.
//!
//! At most one fault affects a request. A fault that can't happen now (a duplicate on an empty page) is skipped for the
//! next one. Faults by chance affect a feed at most twice in a row, so that a persistent reader always advances; those
//! with a share of 1 affect it as often as they can.

use super::dialect::{EmptyPageRun, PageQuery};
use super::fault::Fault;
use super::feed::{FeedModel, ListPosition, ListedRecord, PageStart};
use super::page::DraftPage;
use super::publisher::FeedWithFaults;
use super::random::Random;
use super::{dialect::Dialect, next_faults, record_faults};

/// A request for a page.
pub(super) struct PageRequest {
    pub(super) query: PageQuery,
    /// Scheme and authority as the reader wrote them.
    pub(super) base: String,
    /// Whether the reader accepts gzip.
    pub(super) gzip: bool,
    /// Items on a page.
    pub(super) page: usize,
    /// Whether a feed that is gone answers 410 rather than 404.
    pub(super) gone_for_good: bool,
}

/// The reply to a request for a page.
pub(super) struct PageReply {
    /// The page's body.
    pub(super) text: String,
    /// Whether the page is the feed's last.
    pub(super) last: bool,
    pub(super) fault: Option<Fault>,
}

/// The state of a feed's poll faults.
pub(super) struct PollFaults {
    random: Random,
    /// Whether the whole feed answers 410 rather than 404 when it is gone.
    pub(super) gone_for_good: bool,
    in_a_row: u32,
    gone: bool,
    has_gone_back: bool,
    has_died: bool,
    /// Positions of an earlier era are dead.
    era: u32,
    empty_runs: u64,
    current_query: String,
    previous_query: Option<String>,
    sent_to_itself: Option<String>,
    read_up_to: Option<ListPosition>,
    cache: Option<CachedPage>,
}

/// The last page as a cache keeps it.
struct CachedPage {
    path_and_query: String,
    text: String,
    changes: u64,
}

/// How often in a row faults by chance may affect a feed.
pub(super) const MOST_IN_A_ROW: u32 = 2;
const MANY_EMPTY_PAGES: u32 = 12;

/// The reply to a request; `faults` are those that may happen, each with its share.
pub(super) fn answer(
    feed_with_faults: &mut FeedWithFaults,
    request: &mut PageRequest,
    faults: &[(Fault, f64)],
) -> PageReply {
    let FeedWithFaults { feed, poll_faults, .. } = feed_with_faults;
    poll_faults.note_request(feed, &request.query);
    if let Some(reply) = poll_faults.ongoing_fault(feed, request) {
        return reply;
    }
    for fault in faults_for(&mut poll_faults.random, faults, poll_faults.in_a_row < MOST_IN_A_ROW) {
        if let Some(reply) = poll_faults.apply(fault, feed, request) {
            poll_faults.in_a_row += 1;
            return reply;
        }
    }
    poll_faults.in_a_row = 0;
    let reply = correct_answer(feed, request);
    if faults.iter().any(|(fault, _)| *fault == Fault::StaleCache) && reply.last {
        let path_and_query = request.query.path_and_query.clone();
        poll_faults.cache = Some(CachedPage { path_and_query, text: reply.text.clone(), changes: feed.changes() });
    }
    reply
}

/// The faults that affect a request, in the order to try them: the rarest first. Those by chance only when `chance` is
/// set.
pub(super) fn faults_for(random: &mut Random, faults: &[(Fault, f64)], chance: bool) -> Vec<Fault> {
    let mut hit: Vec<(Fault, f64, u64)> = Vec::new();
    for (fault, share) in faults {
        // A number is always drawn, so that one request's faults don't change those of the next request.
        let (hits, order) = (random.hits(*share), random.below(u64::MAX));
        if hits && (*share >= 1.0 || chance) {
            hit.push((*fault, *share, order));
        }
    }
    hit.sort_by(|one, other| one.1.total_cmp(&other.1).then(one.2.cmp(&other.2)));
    hit.into_iter().map(|(fault, ..)| fault).collect()
}

fn correct_answer(feed: &FeedModel, request: &PageRequest) -> PageReply {
    let records = records_of(feed, request);
    let text = page(feed, request, &records).text();
    PageReply { text, last: records.len() < limit(request), fault: None }
}

fn limit(request: &PageRequest) -> usize {
    request.query.limit.unwrap_or(request.page).min(request.page).max(1)
}

fn records_of(feed: &FeedModel, request: &PageRequest) -> Vec<ListedRecord> {
    feed.records(&request.query.start, limit(request))
}

/// The page of these records; a feed's last page has its own URL as `next`, byte for byte.
fn page(feed: &FeedModel, request: &PageRequest, records: &[ListedRecord]) -> DraftPage {
    let query = &request.query;
    let next = records.last().map(|last| query.next(feed.dialect, &last.at));
    let next = next.unwrap_or_else(|| query.path_and_query.clone());
    DraftPage::new(feed, records, render_next(feed, request, &next))
}

/// In 1.0 `next` is an absolute URL, in 0.2.1 a relative one.
fn render_next(feed: &FeedModel, request: &PageRequest, path_and_query: &str) -> String {
    if feed.dialect == Dialect::Draft { path_and_query.to_owned() } else { format!("{}{path_and_query}", request.base) }
}

impl PollFaults {
    pub(super) fn new(index: usize, seed: u64) -> Self {
        Self {
            random: Random::new(seed, index as u64),
            gone_for_good: index.is_multiple_of(2),
            in_a_row: 0,
            gone: false,
            has_gone_back: false,
            has_died: false,
            era: 0,
            empty_runs: 0,
            current_query: String::new(),
            previous_query: None,
            sent_to_itself: None,
            read_up_to: None,
            cache: None,
        }
    }

    /// Ends what faults have begun. Dead positions stay dead, or a reader could advance to them again.
    pub(super) fn reset_faults(&mut self) {
        self.in_a_row = 0;
        self.gone = false;
        self.has_gone_back = false;
        self.has_died = false;
        self.sent_to_itself = None;
        self.cache = None;
    }

    fn note_request(&mut self, feed: &FeedModel, query: &PageQuery) {
        if query.path_and_query != self.current_query {
            let previous = std::mem::replace(&mut self.current_query, query.path_and_query.clone());
            self.previous_query = (!previous.is_empty()).then_some(previous);
        }
        let read = match &query.start {
            PageStart::Beginning => return,
            PageStart::After(position) => position.clone(),
            PageStart::AfterModified(modified) => {
                ListPosition { modified: *modified, id: super::value_forms::Id::Number(u64::MAX) }
            }
        };
        // A position beyond the end is one that the feed went back from, or that was never issued.
        if feed.end().is_some_and(|end| read.modified <= end.modified) && self.read_up_to.as_ref() < Some(&read) {
            self.read_up_to = Some(read);
        }
    }

    /// The reply, where an earlier fault is still in effect.
    fn ongoing_fault(&mut self, feed: &FeedModel, request: &mut PageRequest) -> Option<PageReply> {
        let empty = |fault| Some(PageReply { text: String::new(), last: false, fault: Some(fault) });
        if self.gone {
            return empty(Fault::Gone);
        }
        if request.query.start == PageStart::Beginning {
            request.query.era = self.era;
        } else if request.query.era < self.era {
            return empty(Fault::DeadCursor);
        }
        let run = request.query.empty_run.filter(|run| run.remaining > 0)?;
        let rest = EmptyPageRun { remaining: run.remaining - 1, ..run };
        Some(self.empty_page(feed, request, rest, Fault::ManyEmptyPages))
    }

    /// Applies the fault, where it can happen.
    fn apply(&mut self, fault: Fault, feed: &mut FeedModel, request: &PageRequest) -> Option<PageReply> {
        match fault {
            Fault::LateCommit
            | Fault::WentBack
            | Fault::DeadCursor
            | Fault::Gone
            | Fault::Forgets
            | Fault::Endless
            | Fault::StaleCache => self.in_history(fault, feed, request),
            Fault::EmptyPages | Fault::ManyEmptyPages | Fault::SelfNext | Fault::Loop | Fault::ShortPages => {
                self.on_the_way(fault, feed, request)
            }
            Fault::ZipBomb | Fault::DamagedGzip if !request.gzip => None,
            Fault::Redirect if request.query.redirected => None,
            // A reader that makes a position from a first page's last item can't know its era: that position would be
            // dead for good.
            Fault::NoNext if request.query.start == PageStart::Beginning && self.era > 0 => None,
            _ => self.on_the_page(fault, feed, request),
        }
    }

    /// Faults that leave the feed's list as it is and change one page, or how it is sent.
    fn on_the_page(&mut self, fault: Fault, feed: &FeedModel, request: &PageRequest) -> Option<PageReply> {
        let records = records_of(feed, request);
        let last = records.len() < limit(request);
        let mut page = page(feed, request, &records);
        if record_faults::concerns(fault) {
            record_faults::apply(fault, &mut page, feed, &records, &mut self.random)?;
        } else if next_faults::concerns(fault) {
            page.next =
                next_faults::faulty_next(fault, feed.dialect, request, page.next.as_deref(), records.is_empty())?;
        }
        Some(PageReply { text: page.text(), last, fault: Some(fault) })
    }

    fn in_history(&mut self, fault: Fault, feed: &mut FeedModel, request: &PageRequest) -> Option<PageReply> {
        let at_end = records_of(feed, request).is_empty();
        let happens = match fault {
            Fault::LateCommit => at_end && feed.commit_late(),
            Fault::WentBack if at_end && !self.has_gone_back => {
                self.has_gone_back = feed.restore();
                self.has_gone_back
            }
            Fault::DeadCursor if request.query.start != PageStart::Beginning && !self.has_died => {
                self.has_died = true;
                self.era += 1;
                // Pages served or referred to from now on must have live positions.
                (self.previous_query, self.cache) = (None, None);
                true
            }
            Fault::Gone => {
                self.gone = true;
                true
            }
            Fault::Forgets => self.read_up_to.as_ref().is_some_and(|read| feed.forget(read)),
            Fault::Endless => {
                let missing = limit(request) - records_of(feed, request).len();
                feed.change(missing as u64);
                missing > 0
            }
            Fault::StaleCache => return self.stale_page(feed, request),
            _ => false,
        };
        happens.then(|| PageReply { fault: Some(fault), ..correct_answer(feed, request) })
    }

    fn stale_page(&self, feed: &FeedModel, request: &PageRequest) -> Option<PageReply> {
        let cached = self.cache.as_ref()?;
        let stale = cached.path_and_query == request.query.path_and_query && cached.changes != feed.changes();
        let differs = stale && correct_answer(feed, request).text != cached.text;
        differs.then(|| PageReply { text: cached.text.clone(), last: true, fault: Some(Fault::StaleCache) })
    }

    fn on_the_way(&mut self, fault: Fault, feed: &FeedModel, request: &PageRequest) -> Option<PageReply> {
        if matches!(fault, Fault::EmptyPages | Fault::ManyEmptyPages) {
            self.empty_runs += 1;
            let remaining = if fault == Fault::ManyEmptyPages { MANY_EMPTY_PAGES - 1 } else { 0 };
            return Some(self.empty_page(feed, request, EmptyPageRun { number: self.empty_runs, remaining }, fault));
        }
        let mut records = records_of(feed, request);
        let last = records.len() < limit(request);
        let current = &request.query.path_and_query;
        let next = match fault {
            Fault::ShortPages if records.len() > 1 => {
                records.truncate(1);
                None
            }
            Fault::SelfNext if !records.is_empty() && self.sent_to_itself.as_ref() != Some(current) => {
                self.sent_to_itself = Some(current.clone());
                Some(current.clone())
            }
            Fault::Loop if !records.is_empty() => Some(self.earlier_url(current)?),
            _ => return None,
        };
        let mut page = page(feed, request, &records);
        if let Some(next) = next {
            page.next = Some(render_next(feed, request, &next));
        }
        Some(PageReply { text: page.text(), last, fault: Some(fault) })
    }

    /// A URL that was requested before; else the first page.
    fn earlier_url(&self, current: &str) -> Option<String> {
        let first = current.split('?').next().unwrap_or(current);
        self.previous_query.clone().or_else(|| (current != first).then(|| first.to_owned()))
    }

    /// An empty page at the same position as the requested one.
    fn empty_page(&self, feed: &FeedModel, request: &PageRequest, run: EmptyPageRun, fault: Fault) -> PageReply {
        let mut page = page(feed, request, &[]);
        page.next = Some(render_next(feed, request, &request.query.with_empty_run(run)));
        PageReply { text: page.text(), last: false, fault: Some(fault) }
    }
}
