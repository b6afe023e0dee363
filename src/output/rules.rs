//! The meaning of each finding and each quarantine reason for a publisher: what the standard says, and what to do.
//!
//! Guarantees: every word that the code counts is listed here once (checked by a test), and a section is named only
//! where its text was read. `validator` names the rule by which the ecosystem's validator (`openactive/rpde-validator`)
//! calls the same departure; where it has none, nothing is made up.

/// A way to depart from the standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// The fixed kebab-case word.
    pub word: &'static str,
    /// What is wrong, in one line.
    pub title: &'static str,
    pub severity: Severity,
    /// The section of the standard that says otherwise.
    pub section: Section,
    /// What the publisher can do.
    pub remedy: &'static str,
    /// The validator's rules for it.
    pub validator: &'static [&'static str],
}

/// How bad a departure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The standard says MUST; consumers lose data or stop.
    Failure,
    /// Consumers cope with it, at a cost.
    Warning,
}

impl Severity {
    /// The fixed spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Warning => "warning",
        }
    }
}

/// A section of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// The document and the section's heading.
    pub title: &'static str,
    /// URL of the section.
    pub url: &'static str,
}

macro_rules! rpde {
    ($name:ident, $heading:literal, $anchor:literal) => {
        const $name: Section = Section {
            title: concat!("RPDE 1.0, \"", $heading, "\""),
            url: concat!("https://www.w3.org/2017/08/realtime-paged-data-exchange/#", $anchor),
        };
    };
}

rpde!(CORE, "Core concept", "core-concept");
rpde!(GRAMMAR, "Response grammar", "response-grammar");
rpde!(RESPONSE, "<response>", "-response-");
rpde!(ITEM, "<item>", "-item-");
rpde!(DELETED, "Deleted items", "deleted-items");
rpde!(CONTENT_TYPE, "Content type", "content-type");
rpde!(FILTERING, "In-stream filtering", "in-stream-filtering");
rpde!(ORDER, "Strict chronological ordering of items", "strict-chronological-ordering-of-items");

const JSON_ENCODING: Section = Section {
    title: "RFC 8259, section 8.1, \"Character Encoding\"",
    url: "https://www.rfc-editor.org/rfc/rfc8259#section-8.1",
};
const JSON_GRAMMAR: Section =
    Section { title: "RFC 8259, section 2, \"JSON Grammar\"", url: "https://www.rfc-editor.org/rfc/rfc8259#section-2" };
const HTTP_FIELDS: Section =
    Section { title: "RFC 9110, section 5, \"Fields\"", url: "https://www.rfc-editor.org/rfc/rfc9110#section-5" };
const HTTP_CODING: Section = Section {
    title: "RFC 9110, section 8.4, \"Content-Encoding\"",
    url: "https://www.rfc-editor.org/rfc/rfc9110#section-8.4",
};
const HTTP_STATUS: Section = Section {
    title: "RFC 9110, section 15.3, \"Successful 2xx\"",
    url: "https://www.rfc-editor.org/rfc/rfc9110#section-15.3",
};
const DRAFT: &str = "https://openactive.io/realtime-paged-data-exchange/0.2.1/";
const WEBHOOKS: Section = Section { title: "RPDE 0.2.1 (draft), section 3b, \"Webhooks\"", url: DRAFT };
const EVENTS: Section = Section { title: "RPDE 0.2.1 (draft), section 3c, \"Server-Sent Events\"", url: DRAFT };

const REQUIRED: &[&str] = &["RequiredItemPropertiesRule"];
const VALUES: &[&str] = &["RequiredPropertyValuesRule"];
const INCREASE: &[&str] = &["AfterTimestampRule", "AfterChangeNumberRule"];

/// The rules that findings name.
pub const RULES: &[Departure] = &[
    Departure {
        word: "at-id",
        title: "items carry `@id` in place of `id`",
        severity: Severity::Failure,
        section: GRAMMAR,
        remedy: "name the property `id`: JSON-LD belongs inside `data` alone",
        validator: REQUIRED,
    },
    Departure {
        word: "bom",
        title: "pages begin with a byte order mark",
        severity: Severity::Failure,
        section: JSON_ENCODING,
        remedy: "write the pages as UTF-8 without a byte order mark",
        validator: &[],
    },
    Departure {
        word: "content-encoding",
        title: "pages are not compressed as `Content-Encoding` says",
        severity: Severity::Failure,
        section: HTTP_CODING,
        remedy: "name in `Content-Encoding` the one coding that the page was compressed with, if any, and send nothing behind its end",
        validator: &[],
    },
    Departure {
        word: "content-type",
        title: "pages are not sent as application/json",
        severity: Severity::Failure,
        section: CONTENT_TYPE,
        remedy: "send `Content-Type: application/json`",
        validator: &["HttpContentTypeRule"],
    },
    Departure {
        word: "data-not-object",
        title: "`data` is no object",
        severity: Severity::Failure,
        section: ITEM,
        remedy: "make `data` an object: consumers look for its properties",
        validator: VALUES,
    },
    Departure {
        word: "deleted-with-data",
        title: "deleted items carry `data`",
        severity: Severity::Failure,
        section: DELETED,
        remedy: "leave `data` out of items whose state is `deleted`",
        validator: REQUIRED,
    },
    Departure {
        word: "duplicate",
        title: "an item stands on a page more than once",
        severity: Severity::Failure,
        section: CORE,
        remedy: "list each item once, at its latest position: check the query for a join that doubles rows, and caches for stale pages",
        validator: &["DuplicateItemsRule"],
    },
    Departure {
        word: "empty-pages",
        title: "many empty pages stand in a row before the end",
        severity: Severity::Warning,
        section: FILTERING,
        remedy: "filter in the query, so that a page is filled before it is sent: every consumer pays for each empty one",
        validator: &[],
    },
    Departure {
        word: "header-line",
        title: "the head of an answer has lines that are no headers",
        severity: Severity::Failure,
        section: HTTP_FIELDS,
        remedy: "send `name: value` lines alone, without a blank before the colon or control characters: look for programs that print warnings before the page",
        validator: &[],
    },
    Departure {
        word: "http-next",
        title: "`next` or a redirect names http where the feed is asked by https",
        severity: Severity::Warning,
        section: RESPONSE,
        remedy: "write https into `next`: tell the program behind the proxy by which scheme it is asked",
        validator: &[],
    },
    Departure {
        word: "items-null",
        title: "pages have null in place of a list of items",
        severity: Severity::Failure,
        section: RESPONSE,
        remedy: "write an empty list, `[]`, where a page has no items: without it consumers can't tell the end",
        validator: &["RequiredPropertiesRule"],
    },
    Departure {
        word: "license-too-long",
        title: "`license` is longer than 4 KiB",
        severity: Severity::Failure,
        section: RESPONSE,
        remedy: "name the licence by its URL",
        validator: &[],
    },
    Departure {
        word: "long-event-id",
        title: "a stream's event id is longer than 2 KiB",
        severity: Severity::Warning,
        section: EVENTS,
        remedy: "send ids that a client can keep and send back in `Last-Event-ID`: at most 2 KiB",
        validator: &[],
    },
    Departure {
        word: "loop",
        title: "`next` leads back to a page that was read before",
        severity: Severity::Failure,
        section: RESPONSE,
        remedy: "make `next` from the last item of the page, and order items by `modified`, then `id`: no consumer gets to the end as it is",
        validator: INCREASE,
    },
    Departure {
        word: "lost-cursor",
        title: "a redirect drops the position that was asked for",
        severity: Severity::Failure,
        section: RESPONSE,
        remedy: "redirect with the whole query, or publish the feed's URL as it is served",
        validator: &[],
    },
    Departure {
        word: "modified-class",
        title: "`modified` changes its form between items",
        severity: Severity::Failure,
        section: ITEM,
        remedy: "write `modified` in one form throughout, as an integer where possible, so that any two values compare",
        validator: &[],
    },
    Departure {
        word: "moving-end",
        title: "the end of the feed is an empty page whose `next` is another one each time",
        severity: Severity::Failure,
        section: RESPONSE,
        remedy: "let the last page's `next` be its own URL: a `next` that carries the clock never shows that it is the end",
        validator: &[],
    },
    Departure {
        word: "next-fragment",
        title: "`next` has a raw `#`, which no request carries",
        severity: Severity::Failure,
        section: RESPONSE,
        remedy: "percent-encode it as %23: what stands behind a raw `#` never reaches the server",
        validator: &[],
    },
    Departure {
        word: "no-kind",
        title: "items have no `kind`",
        severity: Severity::Failure,
        section: ITEM,
        remedy: "give every item its `kind`",
        validator: REQUIRED,
    },
    Departure {
        word: "no-next",
        title: "pages have no `next`",
        severity: Severity::Failure,
        section: RESPONSE,
        remedy: "give every page `next`, the last one its own URL: without it consumers can't tell the end, nor what is gone",
        validator: &["RequiredPropertiesRule"],
    },
    Departure {
        word: "out-of-order",
        title: "items are not in the order of `modified`, then `id`",
        severity: Severity::Failure,
        section: ORDER,
        remedy: "order the query by `modified`, then `id`, both ascending: consumers that page by them miss items",
        validator: &[],
    },
    Departure {
        word: "quarantine-full",
        title: "more records than can be kept aside could not be understood",
        severity: Severity::Warning,
        section: ITEM,
        remedy: "put right what the other points of this list say about single records; further ones were dropped",
        validator: &[],
    },
    Departure {
        word: "repeating-end",
        title: "the end of the feed repeats its items under an ever-new `next`",
        severity: Severity::Failure,
        section: RESPONSE,
        remedy: "end the feed with an empty page whose `next` is its own URL",
        validator: &[],
    },
    Departure {
        word: "self-next",
        title: "a page with items has its own URL as `next`",
        severity: Severity::Failure,
        section: RESPONSE,
        remedy: "make `next` from the last item of the page; a page's own URL belongs on an empty page alone",
        validator: &["NextPageNotCurrentPageRule"],
    },
    Departure {
        word: "sse-event",
        title: "a stream has events that are not named `itemupdate`",
        severity: Severity::Warning,
        section: EVENTS,
        remedy: "send items as events named `itemupdate`, and keep a connection alive by comments",
        validator: &[],
    },
    Departure {
        word: "status",
        title: "pages are sent with a status other than 200",
        severity: Severity::Failure,
        section: HTTP_STATUS,
        remedy: "send whole pages with status 200",
        validator: &[],
    },
    Departure {
        word: "unreadable-header",
        title: "a header of a page can't be read",
        severity: Severity::Warning,
        section: HTTP_FIELDS,
        remedy: "write dates as `Sat, 28 Nov 2026 12:00:00 GMT`, `Age` as seconds, and `ETag` in plain ASCII",
        validator: &[],
    },
];

/// The reasons for quarantine.
pub const REASONS: &[Departure] = &[
    Departure {
        word: "bad-id",
        title: "`id` is neither text nor a number that programs can hold",
        severity: Severity::Failure,
        section: ITEM,
        remedy: "write `id` as text or as an integer",
        validator: VALUES,
    },
    Departure {
        word: "bad-kind",
        title: "`kind` is no valid text",
        severity: Severity::Failure,
        section: ITEM,
        remedy: "write `kind` as text, characters beyond U+FFFF as whole surrogate pairs",
        validator: &[],
    },
    Departure {
        word: "bad-modified",
        title: "`modified` is neither text nor a number that programs can hold",
        severity: Severity::Failure,
        section: ITEM,
        remedy: "write `modified` as an integer, or as text that compares with itself",
        validator: &[],
    },
    Departure {
        word: "data-too-deep",
        title: "`data` nests more than 1,000 levels deep",
        severity: Severity::Warning,
        section: ITEM,
        remedy: "check what writes `data` for an object that holds itself",
        validator: &[],
    },
    Departure {
        word: "id-too-long",
        title: "`id` is longer than 4 KiB",
        severity: Severity::Warning,
        section: ITEM,
        remedy: "give items short ids",
        validator: &[],
    },
    Departure {
        word: "kind-too-long",
        title: "`kind` is longer than 256 bytes",
        severity: Severity::Warning,
        section: ITEM,
        remedy: "give items one of a few short kinds",
        validator: &[],
    },
    Departure {
        word: "modified-too-long",
        title: "`modified` is longer than 256 bytes",
        severity: Severity::Warning,
        section: ITEM,
        remedy: "write `modified` as an integer, or as a short text",
        validator: &[],
    },
    Departure {
        word: "no-data",
        title: "updated items have no `data`",
        severity: Severity::Failure,
        section: ITEM,
        remedy: "give every updated item its `data`, or mark it `deleted`",
        validator: REQUIRED,
    },
    Departure {
        word: "no-id",
        title: "items have no `id`",
        severity: Severity::Failure,
        section: ITEM,
        remedy: "give every item its `id`, the same one for as long as it exists",
        validator: REQUIRED,
    },
    Departure {
        word: "no-kind",
        title: "items have no `kind`",
        severity: Severity::Failure,
        section: ITEM,
        remedy: "give every item its `kind`",
        validator: REQUIRED,
    },
    Departure {
        word: "no-modified",
        title: "items have no `modified`",
        severity: Severity::Failure,
        section: ITEM,
        remedy: "give every item its `modified`: without it nobody can tell which version is newer",
        validator: REQUIRED,
    },
    Departure {
        word: "not-an-object",
        title: "entries of `items` are not objects",
        severity: Severity::Failure,
        section: ITEM,
        remedy: "list items alone in `items`",
        validator: VALUES,
    },
    Departure {
        word: "not-json",
        title: "what is pushed is not JSON",
        severity: Severity::Failure,
        section: JSON_GRAMMAR,
        remedy: "write events and messages with a JSON library: names in quotes, nothing cut off",
        validator: &[],
    },
    Departure {
        word: "refused-body",
        title: "a post to the webhook could not be read, however often it was sent",
        severity: Severity::Failure,
        section: WEBHOOKS,
        remedy: "post pages, `{\"items\": […]}`, within the size agreed on",
        validator: &[],
    },
    Departure {
        word: "too-many-kinds",
        title: "the feed has more than 1,000 kinds",
        severity: Severity::Warning,
        section: ITEM,
        remedy: "use `kind` for the sort of an item, and `id` to tell items apart",
        validator: &[],
    },
    Departure {
        word: "unknown-state",
        title: "`state` is neither `updated` nor `deleted`",
        severity: Severity::Failure,
        section: ITEM,
        remedy: "write `updated` or `deleted`",
        validator: VALUES,
    },
    Departure {
        word: "wrong-encoding",
        title: "what is pushed is not UTF-8",
        severity: Severity::Failure,
        section: JSON_ENCODING,
        remedy: "write events and messages as UTF-8",
        validator: &[],
    },
];

/// A word that this version doesn't know, as in a file that a newer version wrote.
pub(super) const UNKNOWN: Departure = Departure {
    word: "",
    title: "a departure that this version has no words for",
    severity: Severity::Warning,
    section: Section { title: "RPDE 1.0", url: "https://www.w3.org/2017/08/realtime-paged-data-exchange/" },
    remedy: "see the sample",
    validator: &[],
};

/// The entry of this word.
pub(super) fn of(table: &[Departure], word: &str) -> Departure {
    table.iter().copied().find(|departure| departure.word == word).unwrap_or(UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_stands_once_and_says_something() {
        for table in [RULES, REASONS] {
            for (at, departure) in table.iter().enumerate() {
                assert!(table[..at].iter().all(|before| before.word < departure.word), "{}", departure.word);
                assert!(departure.section.url.starts_with("https://"), "{}", departure.word);
                for text in [departure.title, departure.remedy, departure.section.title] {
                    assert!(text.len() > 8 && !text.ends_with('.'), "{}: {text}", departure.word);
                }
            }
        }
    }

    #[test]
    fn a_word_of_a_newer_version_is_no_failure() {
        assert_eq!(of(RULES, "from-the-future").severity, Severity::Warning);
    }
}
