//! Writes series under their metric: one block per name, labels in the metric's order, values escaped.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};

use super::names::{Metric, MetricType};
use crate::store::commits::CommitTimes;

/// Writes one scrape's metrics.
pub(super) struct MetricWriter<'a>(pub(super) DescriptorEncoder<'a>);

#[derive(Clone, Copy)]
pub(super) enum MetricValue {
    Integer(i64),
    Float(f64),
    Count(u64),
    /// Of an info metric, whose labels hold the information.
    Info,
}

impl MetricValue {
    pub(super) fn flag(value: bool) -> Self {
        Self::Integer(i64::from(value))
    }

    pub(super) fn size(value: u64) -> Self {
        Self::Integer(i64::try_from(value).unwrap_or(i64::MAX))
    }

    /// A stored count; a negative one is taken for zero.
    pub(super) fn count(value: i64) -> Self {
        Self::Count(u64::try_from(value).unwrap_or(0))
    }
}

impl MetricWriter<'_> {
    /// Writes a metric with its series; each series has as many label values as the metric has labels.
    pub(super) fn write<'s, const N: usize>(
        &mut self,
        metric: &Metric,
        series: impl IntoIterator<Item = ([&'s str; N], MetricValue)>,
    ) -> fmt::Result {
        debug_assert_eq!(metric.labels.len(), N, "{}", metric.name);
        let mut block = self.0.encode_descriptor(metric.family(), metric.help, None, metric.kind)?;
        for (values, value) in series {
            let labels: Vec<(&str, &str)> = metric.labels.iter().copied().zip(values).collect();
            match value {
                MetricValue::Info => block.encode_info(&labels)?,
                value if N == 0 => write_value(&mut block, value)?,
                value => write_value(&mut block.encode_family(&labels)?, value)?,
            }
        }
        Ok(())
    }

    /// Writes a metric of one series without labels, or of none.
    pub(super) fn one(&mut self, metric: &Metric, value: impl Into<Option<MetricValue>>) -> fmt::Result {
        self.write(metric, value.into().map(|value| ([], value)))
    }

    pub(super) fn times(&mut self, metric: &Metric, times: &CommitTimes) -> fmt::Result {
        debug_assert_eq!(metric.kind, MetricType::Histogram);
        let mut block = self.0.encode_descriptor(metric.family(), metric.help, None, metric.kind)?;
        let buckets: Vec<(f64, u64)> = times
            .buckets()
            .map(|(bound, count)| (bound.map_or(f64::INFINITY, |bound| bound.as_secs_f64()), count))
            .collect();
        block.encode_histogram::<NoLabelSet>(times.total.as_secs_f64(), times.count(), &buckets, None)
    }
}

fn write_value(block: &mut MetricEncoder<'_>, value: MetricValue) -> fmt::Result {
    match value {
        MetricValue::Integer(value) => block.encode_gauge(&value),
        MetricValue::Float(value) => block.encode_gauge(&value),
        MetricValue::Count(value) => block.encode_counter::<NoLabelSet, u64, f64>(&value, None),
        MetricValue::Info => Ok(()),
    }
}
