//! Faults in how a page writes its `next`: it leads to the right page all the same, or to another host.

use super::dialect::Dialect;
use super::fault::Fault;
use super::poll_faults::PageRequest;

/// A host that can't exist (RFC 6761 §6.4).
pub(super) const FOREIGN: &str = "http://foreign.invalid";

/// Whether this module applies the fault.
pub(super) fn concerns(fault: Fault) -> bool {
    matches!(
        fault,
        Fault::NoNext | Fault::RelativeNext | Fault::PercentEncoded | Fault::UpperCaseHost | Fault::ForeignNext
    )
}

/// The `next` to send in place of `correct_next`; the outer `None` where the fault can't happen.
///
/// An empty page's `next` changes only where it stays equal to the requested URL: another `next` would not be the end.
pub(super) fn faulty_next(
    fault: Fault,
    dialect: Dialect,
    request: &PageRequest,
    correct_next: Option<&str>,
    at_end: bool,
) -> Option<Option<String>> {
    let correct_next = correct_next?;
    let absolute = dialect != Dialect::Draft;
    let path_and_query = correct_next.strip_prefix(&request.base).unwrap_or(correct_next);
    let next = match fault {
        Fault::NoNext => None,
        Fault::RelativeNext if absolute => Some(path_and_query.to_owned()),
        Fault::PercentEncoded if !at_end => Some(encoded(correct_next)?),
        Fault::UpperCaseHost if absolute && !at_end => Some(format!("{}{path_and_query}", request.base.to_uppercase())),
        Fault::ForeignNext => Some(format!("{FOREIGN}{path_and_query}")),
        _ => return None,
    };
    Some(next)
}

/// Percent-encodes the first character of each parameter's value, though nothing requires it.
fn encoded(next: &str) -> Option<String> {
    let (path, query) = next.split_once('?')?;
    let pairs: Vec<String> = query.split('&').map(encoded_pair).collect();
    Some(format!("{path}?{}", pairs.join("&")))
}

fn encoded_pair(pair: &str) -> String {
    let Some((name, value)) = pair.split_once('=') else { return pair.to_owned() };
    match value.as_bytes() {
        [first, rest @ ..] if first.is_ascii_alphanumeric() => {
            format!("{name}=%{first:02X}{}", String::from_utf8_lossy(rest))
        }
        _ => pair.to_owned(),
    }
}
