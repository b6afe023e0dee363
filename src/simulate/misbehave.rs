//! What a feed answers: the truth, or what the chosen fault makes of it.
//!
//! One fault at most befalls a request. A fault that can't happen now (an item twice on an empty page) gives way to the
//! next. Faults by chance befall a feed at most twice in a row, so that a patient reader always gets on; those with a
//! share of 1 befall it as often as they can.

use super::dialect::{Asked, Detour};
use super::dice::Dice;
use super::fault::Fault;
use super::feed::{Feed, Position, Record, Start};
use super::page::Page;
use super::publisher::Served;
use super::{dialect::Dialect, paging, records};

/// A request for a page.
pub(super) struct Request {
    pub(super) asked: Asked,
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
pub(super) struct Answer {
    /// The page's body.
    pub(super) text: String,
    /// Whether the page is the feed's last.
    pub(super) last: bool,
    pub(super) fault: Option<Fault>,
}

/// What a feed's faults remember.
pub(super) struct Mood {
    dice: Dice,
    /// Whether the whole feed answers 410 rather than 404 when it is gone.
    pub(super) gone_for_good: bool,
    in_a_row: u32,
    gone: bool,
    has_gone_back: bool,
    has_died: bool,
    /// Positions of an earlier era are dead.
    era: u32,
    detours: u64,
    here: String,
    before: Option<String>,
    sent_to_itself: Option<String>,
    read: Option<Position>,
    cache: Option<Cached>,
}

/// The last page as a cache holds it.
struct Cached {
    place: String,
    text: String,
    changes: u64,
}

/// How often chance may befall a feed in a row.
pub(super) const MOST_IN_A_ROW: u32 = 2;
const MANY: u32 = 12;

/// Answers a request; `faults` are those that may happen, each with its share.
pub(super) fn answer(served: &mut Served, request: &mut Request, faults: &[(Fault, f64)]) -> Answer {
    let Served { feed, mood, .. } = served;
    mood.arrive(feed, &request.asked);
    if let Some(answer) = mood.standing(feed, request) {
        return answer;
    }
    for fault in befalling(&mut mood.dice, faults, mood.in_a_row < MOST_IN_A_ROW) {
        if let Some(answer) = mood.misbehave(fault, feed, request) {
            mood.in_a_row += 1;
            return answer;
        }
    }
    mood.in_a_row = 0;
    let answer = honest(feed, request);
    if faults.iter().any(|(fault, _)| *fault == Fault::StaleCache) && answer.last {
        let place = request.asked.place.clone();
        mood.cache = Some(Cached { place, text: answer.text.clone(), changes: feed.changes() });
    }
    answer
}

/// The faults that befall a request, in the order to try them: the rarest first. Those by chance need a `chance`.
pub(super) fn befalling(dice: &mut Dice, faults: &[(Fault, f64)], chance: bool) -> Vec<Fault> {
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

fn honest(feed: &Feed, request: &Request) -> Answer {
    let records = records_of(feed, request);
    let text = page(feed, request, &records).text();
    Answer { text, last: records.len() < limit(request), fault: None }
}

fn limit(request: &Request) -> usize {
    request.asked.limit.unwrap_or(request.page).min(request.page).max(1)
}

fn records_of(feed: &Feed, request: &Request) -> Vec<Record> {
    feed.records(&request.asked.start, limit(request))
}

/// The page of these records; the last page of a feed sends to itself, byte for byte.
fn page(feed: &Feed, request: &Request, records: &[Record]) -> Page {
    let asked = &request.asked;
    let next = records.last().map(|last| asked.next(feed.dialect, &last.at));
    let next = next.unwrap_or_else(|| asked.place.clone());
    Page::new(feed, records, spelt(feed, request, &next))
}

/// 1.0 sends to absolute URLs, 0.2.1 to relative ones.
fn spelt(feed: &Feed, request: &Request, place: &str) -> String {
    if feed.dialect == Dialect::Draft { place.to_owned() } else { format!("{}{place}", request.base) }
}

impl Mood {
    pub(super) fn new(index: usize, seed: u64) -> Self {
        Self {
            dice: Dice::new(seed, index as u64),
            gone_for_good: index.is_multiple_of(2),
            in_a_row: 0,
            gone: false,
            has_gone_back: false,
            has_died: false,
            era: 0,
            detours: 0,
            here: String::new(),
            before: None,
            sent_to_itself: None,
            read: None,
            cache: None,
        }
    }

    /// Ends what faults have begun. Dead positions stay dead, or a reader could meet them again.
    pub(super) fn calm(&mut self) {
        self.in_a_row = 0;
        self.gone = false;
        self.has_gone_back = false;
        self.has_died = false;
        self.sent_to_itself = None;
        self.cache = None;
    }

    fn arrive(&mut self, feed: &Feed, asked: &Asked) {
        if asked.place != self.here {
            let here = std::mem::replace(&mut self.here, asked.place.clone());
            self.before = (!here.is_empty()).then_some(here);
        }
        let read = match &asked.start {
            Start::Beginning => return,
            Start::After(position) => position.clone(),
            Start::Beyond(modified) => Position { modified: *modified, id: super::form::Id::Number(u64::MAX) },
        };
        // A position beyond the end is one that the feed went back from, or that nobody has given out.
        if feed.end().is_some_and(|end| read.modified <= end.modified) && self.read.as_ref() < Some(&read) {
            self.read = Some(read);
        }
    }

    /// What an earlier fault has left standing.
    fn standing(&mut self, feed: &Feed, request: &mut Request) -> Option<Answer> {
        let bare = |fault| Some(Answer { text: String::new(), last: false, fault: Some(fault) });
        if self.gone {
            return bare(Fault::Gone);
        }
        if request.asked.start == Start::Beginning {
            request.asked.era = self.era;
        } else if request.asked.era < self.era {
            return bare(Fault::DeadCursor);
        }
        let detour = request.asked.detour.filter(|detour| detour.left > 0)?;
        let onward = Detour { left: detour.left - 1, ..detour };
        Some(self.on_a_detour(feed, request, onward, Fault::ManyEmptyPages))
    }

    /// Lets the fault happen, where it can.
    fn misbehave(&mut self, fault: Fault, feed: &mut Feed, request: &Request) -> Option<Answer> {
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
            Fault::Redirect if request.asked.moved => None,
            // Who makes a position from a first page's last item can't know its era: it would be dead for good.
            Fault::NoNext if request.asked.start == Start::Beginning && self.era > 0 => None,
            _ => self.on_the_page(fault, feed, request),
        }
    }

    /// Faults that leave the feed's list as it is and spell one page wrong, or send it wrong.
    fn on_the_page(&mut self, fault: Fault, feed: &Feed, request: &Request) -> Option<Answer> {
        let records = records_of(feed, request);
        let last = records.len() < limit(request);
        let mut page = page(feed, request, &records);
        if records::concerns(fault) {
            records::spoil(fault, &mut page, feed, &records, &mut self.dice)?;
        } else if paging::concerns(fault) {
            page.next = paging::spoilt(fault, feed.dialect, request, page.next.as_deref(), records.is_empty())?;
        }
        Some(Answer { text: page.text(), last, fault: Some(fault) })
    }

    fn in_history(&mut self, fault: Fault, feed: &mut Feed, request: &Request) -> Option<Answer> {
        let at_end = records_of(feed, request).is_empty();
        let happens = match fault {
            Fault::LateCommit => at_end && feed.commit_late(),
            Fault::WentBack if at_end && !self.has_gone_back => {
                self.has_gone_back = feed.restore();
                self.has_gone_back
            }
            Fault::DeadCursor if request.asked.start != Start::Beginning && !self.has_died => {
                self.has_died = true;
                self.era += 1;
                // What is served or sent back to from now on must be alive.
                (self.before, self.cache) = (None, None);
                true
            }
            Fault::Gone => {
                self.gone = true;
                true
            }
            Fault::Forgets => self.read.as_ref().is_some_and(|read| feed.forget(read)),
            Fault::Endless => {
                let missing = limit(request) - records_of(feed, request).len();
                feed.change(missing as u64);
                missing > 0
            }
            Fault::StaleCache => return self.stale_page(feed, request),
            _ => false,
        };
        happens.then(|| Answer { fault: Some(fault), ..honest(feed, request) })
    }

    fn stale_page(&self, feed: &Feed, request: &Request) -> Option<Answer> {
        let cached = self.cache.as_ref()?;
        let stale = cached.place == request.asked.place && cached.changes != feed.changes();
        let differs = stale && honest(feed, request).text != cached.text;
        differs.then(|| Answer { text: cached.text.clone(), last: true, fault: Some(Fault::StaleCache) })
    }

    fn on_the_way(&mut self, fault: Fault, feed: &Feed, request: &Request) -> Option<Answer> {
        if matches!(fault, Fault::EmptyPages | Fault::ManyEmptyPages) {
            self.detours += 1;
            let left = if fault == Fault::ManyEmptyPages { MANY - 1 } else { 0 };
            return Some(self.on_a_detour(feed, request, Detour { number: self.detours, left }, fault));
        }
        let mut records = records_of(feed, request);
        let last = records.len() < limit(request);
        let here = &request.asked.place;
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
            page.next = Some(spelt(feed, request, &next));
        }
        Some(Answer { text: page.text(), last, fault: Some(fault) })
    }

    /// A place that was asked before; else the first page.
    fn back_from(&self, here: &str) -> Option<String> {
        let first = here.split('?').next().unwrap_or(here);
        self.before.clone().or_else(|| (here != first).then(|| first.to_owned()))
    }

    /// An empty page that stands for the same position as the one asked for.
    fn on_a_detour(&self, feed: &Feed, request: &Request, onward: Detour, fault: Fault) -> Answer {
        let mut page = page(feed, request, &[]);
        page.next = Some(spelt(feed, request, &request.asked.by_detour(onward)));
        Answer { text: page.text(), last: false, fault: Some(fault) }
    }
}
