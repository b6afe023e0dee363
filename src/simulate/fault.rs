//! The publisher's faults, by name, each on one channel: a fault of one channel never affects another.

use std::fmt;

/// The channel that a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultChannel {
    /// Pages that are requested.
    Poll,
    /// A stream of events: its beginning, or one of its events.
    Stream,
    /// Pushed data: a page to a webhook, a batch of messages to a queue.
    Push,
}

/// One fault, as the help lists it.
#[derive(Clone, Copy, Debug)]
pub struct FaultInfo {
    pub fault: Fault,
    /// Its fixed kebab-case name: the mirror's word for the same thing, where it has one.
    pub name: &'static str,
    pub on: FaultChannel,
    /// Whether a correct consumer holds the expected items by itself some time after the fault is over; where a stream
    /// or a push left something out, by polling, which the standard asks of everyone (0.2.1 §3).
    pub heals: bool,
    /// What happens, in one line.
    pub does: &'static str,
}

macro_rules! faults {
    ($($channel:ident { $($variant:ident $name:literal $heals:literal $does:literal;)+ })+) => {
        /// A way to misbehave.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "each is described in FAULTS, which the command line prints")]
        pub enum Fault { $($($variant),+),+ }

        /// Every way to misbehave.
        pub const FAULTS: &[FaultInfo] = &[
            $($(FaultInfo {
                fault: Fault::$variant,
                name: $name,
                on: FaultChannel::$channel,
                heals: $heals,
                does: $does,
            }),+),+
        ];
    };
}

faults! {
    Poll {
        Http408 "http-408" true "answers 408 Request Timeout";
        Http425 "http-425" true "answers 425 Too Early";
        Http429 "http-429" true "answers 429 Too Many Requests";
        RetryAfter "retry-after" true "answers 429 with Retry-After: 1";
        Http500 "http-500" true "answers 500 Internal Server Error";
        Http502 "http-502" true "answers 502 Bad Gateway, in HTML";
        Http503 "http-503" true "answers 503 Service Unavailable; by chance never three times in a row";
        Http401 "http-401" false "answers 401 Unauthorized";
        Http403 "http-403" false "answers 403 Forbidden";
        Http404 "http-404" false "answers 404 Not Found";
        Http410 "http-410" false "answers 410 Gone";
        Reset "reset" true "drops the connection before the answer";
        Silence "silence" true "sends no byte, and drops the connection in the end";
        Drip "drip" true "sends the answer so slowly that nobody waits for its end";
        CutShort "cut-short" true "sends fewer bytes than Content-Length says";
        Truncated "truncated" true "sends half of the JSON, with the right length for that";
        NotJson "not-json" true "sends the text \"No ride data found\" in place of a page";
        Html "html" true "answers 200 with a web application firewall's HTML";
        NoItems "no-items" true "sends JSON without `items`";
        WrongEncoding "wrong-encoding" true "sends a page with a byte that is no UTF-8";
        Bom "bom" true "begins the page with a byte order mark";
        ContentType "content-type" true "sends the page as text/html";
        TooLarge "too-large" true "sends a page with tens of megabytes of white space";
        ZipBomb "zip-bomb" true "sends tens of kilobytes that decompress to tens of megabytes";
        DamagedGzip "damaged-gzip" true "sends a compressed page with damaged bytes";
        NoId "no-id" true "adds a record without id";
        BadId "bad-id" true "adds a record whose id is neither number nor text";
        NoModified "no-modified" true "adds a record without modified";
        BadModified "bad-modified" true "adds a record whose modified is neither number nor text";
        NoKind "no-kind" true "adds a record without kind";
        UnknownState "unknown-state" true "adds a record in the state \"archived\"";
        NoData "no-data" true "adds an updated record without data";
        NotAnObject "not-an-object" true "adds a record that is a text";
        AtId "at-id" true "gives an item `@id` in place of `id`";
        DeletedWithData "deleted-with-data" true "leaves the data with a deleted item";
        Duplicate "duplicate" true "lists an item twice on a page, in two versions";
        OutOfOrder "out-of-order" true "lists a page's items in another order";
        ModifiedAsText "modified-as-text" true "sends modified as text";
        FloatModified "float-modified" true "sends modified with a fraction, .0";
        NoNext "no-next" true "sends a page without next";
        RelativeNext "relative-next" true "sends a relative next in a dialect whose is absolute";
        PercentEncoded "percent-encoded" true "sends a next with needlessly encoded parameters";
        UpperCaseHost "upper-case-host" true "sends a next with scheme and host in capitals";
        EmptyPages "empty-pages" true "puts an empty page in between, with another next";
        ManyEmptyPages "many-empty-pages" true "puts twelve empty pages in between";
        SelfNext "self-next" true "sends a page with items to itself; asked again, it moves on";
        Loop "loop" true "sends back to a page before";
        ForeignNext "foreign-next" false "sends to another host";
        ForeignRedirect "foreign-redirect" false "redirects to another host";
        Redirect "redirect" true "redirects to another place of the same host";
        Endless "endless" false "always has another page";
        ShortPages "short-pages" true "sends one item a page";
        Slow "slow" true "answers after 200 to 500 ms";
        LateCommit "late-commit" true "lets an item appear shortly before the end, behind its readers: found by looking back";
        WentBack "went-back" false "restores the feed to an older state, once";
        DeadCursor "dead-cursor" true "answers 404 from now on for all positions given out before, once";
        Gone "gone" false "answers 404 or 410 for the whole feed until calm";
        Forgets "forgets" true "no longer lists the oldest tombstones that were read";
        StaleCache "stale-cache" true "serves an older last page again";
    }
    Stream {
        SseDrop "sse-drop" true "cuts the stream, in the middle of an event or between two";
        SseSilence "sse-silence" true "keeps the stream open, sends nothing more, and drops it in the end";
        SseSkip "sse-skip" true "leaves an item out of the stream";
        SseRepeat "sse-repeat" true "sends the last events again";
        SseJunk "sse-junk" true "sends events that are no items, and items in every spelling the format allows";
        SseWrongType "sse-wrong-type" true "answers 200 with HTML in place of a stream";
        SseUnavailable "sse-unavailable" true "answers 503 with Retry-After: 1; by chance never three times in a row";
        SseStale "sse-stale" true "sends an older version of an item after the newer one";
    }
    Push {
        PushSkip "push-skip" true "leaves an item out of what is pushed";
        PushRepeat "push-repeat" true "pushes what was taken once more";
        PushJunk "push-junk" true "pushes a body that is no JSON, or a record that can't be understood";
        PushStale "push-stale" true "pushes an older version of an item after the newer one";
    }
}

impl Fault {
    /// The fault of this name.
    pub fn named(name: &str) -> Option<Self> {
        FAULTS.iter().find(|row| row.name == name).map(|row| row.fault)
    }

    pub fn name(self) -> &'static str {
        FAULTS[self as usize].name
    }

    /// The channel that it affects.
    pub fn on(self) -> FaultChannel {
        FAULTS[self as usize].on
    }

    /// Whether a correct consumer holds the expected items by itself some time after the fault is over.
    pub fn heals(self) -> bool {
        FAULTS[self as usize].heals
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
