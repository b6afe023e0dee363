//! Progress of a first load and when it may end: from the size that its dataset site states, and the rate so far.
//!
//! Both are rough, and said to be so: `totalItems` is approximate by its nature, and deleted records come on top of it.

use super::format::span;

/// A rate over less time than this means nothing.
const MIN_RATE_SECONDS: f64 = 3.0;

/// `about 40 %, some 3 min to go`: of about `total` items the mirror has `done`, `lately` of them from the last
/// `seconds`.
pub fn words(done: u64, lately: u64, total: u64, seconds: f64) -> String {
    let total = total.max(1);
    let percent = (u128::from(done) * 100 / u128::from(total)).min(99);
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    let rate = lately as f64 / seconds.max(f64::EPSILON);
    let left = total.saturating_sub(done);
    if left == 0 || lately == 0 || seconds < MIN_RATE_SECONDS {
        return format!("about {percent} %");
    }
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an estimate; `as` saturates")]
    let seconds = (left as f64 / rate).ceil() as i64;
    format!("about {percent} %, some {} to go", span(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_says_how_far_and_how_long() {
        for (done, lately, total, seconds, said) in [
            (400, 400, 1000, 120.0, "about 40 %, some 3 min to go"),
            // on from where it was: 100 items in 10 s, 500 to go
            (500, 100, 1000, 10.0, "about 50 %, some 50 s to go"),
            (0, 0, 1000, 60.0, "about 0 %"),
            (10, 10, 1000, 0.1, "about 1 %"),
            (1000, 10, 1000, 60.0, "about 99 %"),
            (5000, 10, 1000, 60.0, "about 99 %"),
            (1, 1, 0, 60.0, "about 99 %"),
            (1, 1, u64::MAX, 60.0, "about 0 %, some 106,751,991,167,300 d to go"),
        ] {
            assert_eq!(words(done, lately, total, seconds), said, "{done} of {total}");
        }
    }
}
