//! What a feed answers: the truth, or what the chosen fault makes of it.
//!
//! One fault at most befalls a request. A fault that can't happen now (an item twice on an empty page) gives way to the
//! next. Faults by chance befall a feed at most twice in a row, so that a patient reader always gets on; those with a
//! share of 1 befall it as often as they can.

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
    /// Scheme and authority as the reader knows them.
    pub(super) base: String,
    /// Whether the reader takes gzip.
    pub(super) gzip: bool,
    /// Items on a page.
    pub(super) page: usize,
    /// Whether a feed that is gone says 410 rather than 404.
    pub(super) gone_for_good: bool,
}

/// What is said to it.
pub(super) struct PageReply {
    /// The page's body.
    pub(super) text: String,
    /// Whether the page is the feed's last.
    pub(super) last: bool,
    pub(super) fault: Option<Fault>,
}

/// What a feed's faults remember.
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
    detours: u64,
    current_query: String,
    previous_query: Option<String>,
    sent_to_itself: Option<String>,
    read_up_to: Option<ListPosition>,
    cache: Option<CachedPage>,
}

/// The last page as a cache holds it.
struct CachedPage {
    place: String,
    text: String,
    changes: u64,
}

/// How often chance may befall a feed in a row.
pub(super) const MOST_IN_A_ROW: u32 = 2;
const MANY: u32 = 12;

/// Answers a request; `faults` are those that may happen, each with its share.
pub(super) fn answer(served: &mut FeedWithFaults, request: &mut PageRequest, faults: &[(Fault, f64)]) -> PageReply {
    let FeedWithFaults { feed, poll_faults: mood, .. } = served;
    mood.note_request(feed, &request.query);
    if let Some(answer) = mood.ongoing_fault(feed, request) {
        return answer;
    }
    for fault in faults_for(&mut mood.random, faults, mood.in_a_row < MOST_IN_A_ROW) {
        if let Some(answer) = mood.misbehave(fault, feed, request) {
            mood.in_a_row += 1;
            return answer;
        }
    }
    mood.in_a_row = 0;
    let answer = correct_answer(feed, request);
    if faults.iter().any(|(fault, _)| *fault == Fault::StaleCache) && answer.last {
        let place = request.query.place.clone();
        mood.cache = Some(CachedPage { place, text: answer.text.clone(), changes: feed.changes() });
    }
    answer
}

/// The faults that befall a request, in the order to try them: the rarest first. Those by chance need a `chance`.
pub(super) fn faults_for(dice: &mut Random, faults: &[(Fault, f64)], chance: bool) -> Vec<Fault> {
    let mut hit: Vec<(Fault, f64, u64)> = Vec::new();
    for (fault, share) in faults {
        // Always rolled, so that what one request got doesn't change what the next one gets.
        let (hits, order) = (dice.hits(*share), dice.below(u64::MAX));
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

/// The page of these records; the last page of a feed sends to itself, byte for byte.
fn page(feed: &FeedModel, request: &PageRequest, records: &[ListedRecord]) -> DraftPage {
    let asked = &request.query;
    let next = records.last().map(|last| asked.next(feed.dialect, &last.at));
    let next = next.unwrap_or_else(|| asked.place.clone());
    DraftPage::new(feed, records, render_next(feed, request, &next))
}

/// 1.0 sends to absolute URLs, 0.2.1 to relative ones.
fn render_next(feed: &FeedModel, request: &PageRequest, place: &str) -> String {
    if feed.dialect == Dialect::Draft { place.to_owned() } else { format!("{}{place}", request.base) }
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
            detours: 0,
            current_query: String::new(),
            previous_query: None,
            sent_to_itself: None,
            read_up_to: None,
            cache: None,
        }
    }

    /// Ends what faults have begun. Dead positions stay dead, or a reader could meet them again.
    pub(super) fn reset_faults(&mut self) {
        self.in_a_row = 0;
        self.gone = false;
        self.has_gone_back = false;
        self.has_died = false;
        self.sent_to_itself = None;
        self.cache = None;
    }

    fn note_request(&mut self, feed: &FeedModel, asked: &PageQuery) {
        if asked.place != self.current_query {
            let here = std::mem::replace(&mut self.current_query, asked.place.clone());
            self.previous_query = (!here.is_empty()).then_some(here);
        }
        let read = match &asked.start {
            PageStart::Beginning => return,
            PageStart::After(position) => position.clone(),
            PageStart::AfterModified(modified) => {
                ListPosition { modified: *modified, id: super::value_forms::Id::Number(u64::MAX) }
            }
        };
        // A position beyond the end is one that the feed went back from, or that nobody has given out.
        if feed.end().is_some_and(|end| read.modified <= end.modified) && self.read_up_to.as_ref() < Some(&read) {
            self.read_up_to = Some(read);
        }
    }

    /// What an earlier fault has left standing.
    fn ongoing_fault(&mut self, feed: &FeedModel, request: &mut PageRequest) -> Option<PageReply> {
        let bare = |fault| Some(PageReply { text: String::new(), last: false, fault: Some(fault) });
        if self.gone {
            return bare(Fault::Gone);
        }
        if request.query.start == PageStart::Beginning {
            request.query.era = self.era;
        } else if request.query.era < self.era {
            return bare(Fault::DeadCursor);
        }
        let detour = request.query.empty_run.filter(|detour| detour.left > 0)?;
        let onward = EmptyPageRun { left: detour.left - 1, ..detour };
        Some(self.empty_page(feed, request, onward, Fault::ManyEmptyPages))
    }

    /// Lets the fault happen, where it can.
    fn misbehave(&mut self, fault: Fault, feed: &mut FeedModel, request: &PageRequest) -> Option<PageReply> {
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
            Fault::Redirect if request.query.moved => None,
            // Who makes a position from a first page's last item can't know its era: it would be dead for good.
            Fault::NoNext if request.query.start == PageStart::Beginning && self.era > 0 => None,
            _ => self.on_the_page(fault, feed, request),
        }
    }

    /// Faults that leave the feed's list as it is and spell one page wrong, or send it wrong.
    fn on_the_page(&mut self, fault: Fault, feed: &FeedModel, request: &PageRequest) -> Option<PageReply> {
        let records = records_of(feed, request);
        let last = records.len() < limit(request);
        let mut page = page(feed, request, &records);
        if record_faults::concerns(fault) {
            record_faults::spoil(fault, &mut page, feed, &records, &mut self.random)?;
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
                // What is served or sent back to from now on must be alive.
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
        let stale = cached.place == request.query.place && cached.changes != feed.changes();
        let differs = stale && correct_answer(feed, request).text != cached.text;
        differs.then(|| PageReply { text: cached.text.clone(), last: true, fault: Some(Fault::StaleCache) })
    }

    fn on_the_way(&mut self, fault: Fault, feed: &FeedModel, request: &PageRequest) -> Option<PageReply> {
        if matches!(fault, Fault::EmptyPages | Fault::ManyEmptyPages) {
            self.detours += 1;
            let left = if fault == Fault::ManyEmptyPages { MANY - 1 } else { 0 };
            return Some(self.empty_page(feed, request, EmptyPageRun { number: self.detours, left }, fault));
        }
        let mut records = records_of(feed, request);
        let last = records.len() < limit(request);
        let here = &request.query.place;
        let next = match fault {
            Fault::ShortPages if records.len() > 1 => {
                records.truncate(1);
                None
            }
            Fault::SelfNext if !records.is_empty() && self.sent_to_itself.as_ref() != Some(here) => {
                self.sent_to_itself = Some(here.clone());
                Some(here.clone())
            }
            Fault::Loop if !records.is_empty() => Some(self.back_from(here)?),
            _ => return None,
        };
        let mut page = page(feed, request, &records);
        if let Some(next) = next {
            page.next = Some(render_next(feed, request, &next));
        }
        Some(PageReply { text: page.text(), last, fault: Some(fault) })
    }

    /// A place that was asked before; else the first page.
    fn back_from(&self, here: &str) -> Option<String> {
        let first = here.split('?').next().unwrap_or(here);
        self.previous_query.clone().or_else(|| (here != first).then(|| first.to_owned()))
    }

    /// An empty page that stands for the same position as the one asked for.
    fn empty_page(&self, feed: &FeedModel, request: &PageRequest, onward: EmptyPageRun, fault: Fault) -> PageReply {
        let mut page = page(feed, request, &[]);
        page.next = Some(render_next(feed, request, &request.query.with_empty_run(onward)));
        PageReply { text: page.text(), last: false, fault: Some(fault) }
    }
}
