//! Faults in how a page spells its `next`, which leads to the right place all the same, or to another host.

use super::dialect::Dialect;
use super::fault::Fault;
use super::poll_faults::PageRequest;

/// A host that can't exist (RFC 6761 §6.4).
pub(super) const FOREIGN: &str = "http://foreign.invalid";

/// Whether the fault is one of these.
pub(super) fn concerns(fault: Fault) -> bool {
    matches!(
        fault,
        Fault::NoNext | Fault::RelativeNext | Fault::PercentEncoded | Fault::UpperCaseHost | Fault::ForeignNext
    )
}

/// The `next` to send in place of `honest`; the outer `None` where the fault can't happen.
///
/// An empty page keeps its `next` but where the fault leaves it equal: another one would not be the end.
pub(super) fn faulty_next(
    fault: Fault,
    dialect: Dialect,
    request: &PageRequest,
    honest: Option<&str>,
    at_end: bool,
) -> Option<Option<String>> {
    let honest = honest?;
    let absolute = dialect != Dialect::Draft;
    let place = honest.strip_prefix(&request.base).unwrap_or(honest);
    let next = match fault {
        Fault::NoNext => None,
        Fault::RelativeNext if absolute => Some(place.to_owned()),
        Fault::PercentEncoded if !at_end => Some(encoded(honest)?),
        Fault::UpperCaseHost if absolute && !at_end => Some(format!("{}{place}", request.base.to_uppercase())),
        Fault::ForeignNext => Some(format!("{FOREIGN}{place}")),
        _ => return None,
    };
    Some(next)
}

/// Encodes the first sign of each parameter's value, though nothing asks for it.
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
