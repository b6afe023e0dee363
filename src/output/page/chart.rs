//! A chart of how much a feed changes: one bar per hour, as inline SVG with the same information as text.
//!
//! The bars of a chart share one scale, from zero to the chart's highest bar; an hour with any change is visible.

use std::fmt;

use askama::filters::HtmlSafe;

use super::super::format::counted;
use super::super::format::number;

const HOUR_MILLISECONDS: i64 = 3_600_000;
/// The width of a bar and the gap beside it.
const BAR_STEP: usize = 4;

/// The hour of a time in milliseconds since 1970.
pub(super) fn hour(millisecond: i64) -> i64 {
    millisecond.div_euclid(HOUR_MILLISECONDS)
}

/// Changes per hour; the last hour is not over yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chart {
    hours: Vec<i64>,
    height: i64,
}

impl Chart {
    /// A chart of `length` hours up to `now`, from (hour, changes); `height` is in the SVG's own units.
    pub(super) fn new(activity: impl Iterator<Item = (i64, i64)>, now: i64, length: usize, height: i64) -> Self {
        let mut hours = vec![0; length];
        for (hour, changes) in activity {
            let ago = usize::try_from(now - hour).ok();
            if let Some(bar) = ago.and_then(|ago| length.checked_sub(ago + 1)).and_then(|at| hours.get_mut(at)) {
                *bar += changes;
            }
        }
        Self { hours, height }
    }

    /// Changes of all hours.
    pub(super) fn sum(&self) -> i64 {
        self.hours.iter().sum()
    }

    /// Changes of the hour that had most.
    pub(super) fn highest(&self) -> i64 {
        self.hours.iter().copied().max().unwrap_or(0)
    }

    /// Changes of each day of 24 hours, the last one first.
    pub(super) fn days(&self) -> Vec<i64> {
        self.hours.rchunks(24).map(|day| day.iter().sum()).collect()
    }

    /// The chart as text.
    pub(super) fn words(&self) -> String {
        let span = match self.hours.len() {
            24 => "24 hours".to_owned(),
            hours => format!("{} days", hours / 24),
        };
        if self.sum() == 0 {
            return format!("no changes in the last {span}");
        }
        let last = self.hours.last().copied().unwrap_or(0);
        let (sum, highest) = (counted(self.sum(), "change"), number(self.highest()));
        format!("{sum} in the last {span}, at most {highest} an hour, {} in this one", number(last))
    }
}

// Holds only numbers and fixed words.
impl HtmlSafe for Chart {}

impl fmt::Display for Chart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (width, height, highest) = (self.hours.len() * BAR_STEP - 1, self.height, self.highest());
        write!(
            f,
            "<svg class=\"chart\" viewBox=\"0 0 {width} {height}\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"{}\">",
            self.words()
        )?;
        f.write_str("<path d=\"")?;
        for (at, changes) in self.hours.iter().enumerate().filter(|(_, changes)| **changes > 0) {
            // Not in integers: an hour may hold millions of changes.
            let bar_height = (*changes as f64 / highest.max(1) as f64 * height as f64).max(1.5);
            write!(f, "M{} {height}v-{bar_height:.1}h{}v{bar_height:.1}z", at * BAR_STEP, BAR_STEP - 1)?;
        }
        f.write_str("\"/></svg>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_stand_where_they_belong_and_others_are_left_out() {
        let chart = Chart::new([(100, 5), (77, 7), (76, 9), (99, 1), (101, 3)].into_iter(), 100, 24, 24);
        assert_eq!((chart.hours[23], chart.hours[22], chart.hours[0], chart.sum()), (5, 1, 7, 13));
        assert_eq!(chart.words(), "13 changes in the last 24 hours, at most 7 an hour, 5 in this one");
        let svg = chart.to_string();
        assert!(svg.contains("M0 24v-24.0h3v24.0z"), "the highest is as tall as the chart: {svg}");
        assert_eq!(svg.matches('M').count(), 3, "{svg}");
        assert!(svg.contains("aria-label=\"13 changes"), "{svg}");
    }

    #[test]
    fn days_are_counted_back_from_now() {
        let chart = Chart::new([(1000, 1), (977, 2), (976, 4), (833, 8), (832, 16)].into_iter(), 1000, 168, 24);
        assert_eq!(chart.days(), [3, 4, 0, 0, 0, 0, 8]);
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        let chart = Chart::new([].into_iter(), 0, 168, 24);
        assert_eq!(chart.words(), "no changes in the last 7 days");
        assert!(chart.to_string().contains("d=\"\""));
    }
}
