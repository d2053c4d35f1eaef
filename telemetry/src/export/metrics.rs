//! Metrics as the protocol has them.
//!
//! The SDK's own types for collected metrics cannot be built outside of it, so this fills the
//! published messages of the protocol and sends them over the same transport.

use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as ProtoValue;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{
    self as proto, AggregationTemporality, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
use prost::Message as _;

use crate::metrics::{
    Distribution, Exemplar, FamilySnapshot, Kind, Labels, Number, Point, Snapshot, Unit, Value,
};

/// What every request about metrics says besides.
pub(super) struct Frame {
    pub(super) resource: ProtoResource,
    pub(super) schema_url: String,
    pub(super) scope: InstrumentationScope,
}

/// One request, and how many data points it has.
pub(super) struct Request {
    pub(super) message: Bytes,
    pub(super) points: usize,
}

// === impl Frame ===

impl Frame {
    /// `snapshot` in requests of at most about `bytes` each.
    pub(super) fn requests(
        &self,
        snapshot: Snapshot,
        bytes: usize,
    ) -> impl Iterator<Item = Request> {
        let taken = Taken(nanoseconds(snapshot.at));
        let families = snapshot.families.into_iter();
        let mut metrics = families.flat_map(move |family| taken.metrics(family, bytes));
        let mut waiting = None;
        std::iter::from_fn(move || {
            let (mut batch, mut len, mut points) = (Vec::new(), 0, 0);
            while let Some((metric, count)) = waiting.take().or_else(|| metrics.next()) {
                let metric_len = metric.encoded_len();
                if !batch.is_empty() && len + metric_len > bytes {
                    waiting = Some((metric, count));
                    break;
                }
                len += metric_len;
                points += count;
                batch.push(metric);
            }
            (!batch.is_empty()).then(|| Request { message: self.encode(batch), points })
        })
    }

    fn encode(&self, metrics: Vec<Metric>) -> Bytes {
        let scope = Some(self.scope.clone());
        let scope = ScopeMetrics { scope, metrics, schema_url: String::new() };
        let resource = ResourceMetrics {
            resource: Some(self.resource.clone()),
            scope_metrics: vec![scope],
            schema_url: self.schema_url.clone(),
        };
        ExportMetricsServiceRequest { resource_metrics: vec![resource] }.encode_to_vec().into()
    }
}

/// When the numbers were read.
#[derive(Clone, Copy)]
struct Taken(u64);

// === impl Taken ===

impl Taken {
    /// A family as metrics of at most about `bytes` each, with the number of their points.
    fn metrics(self, family: FamilySnapshot, bytes: usize) -> Vec<(Metric, usize)> {
        const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;
        let FamilySnapshot { name, kind, unit, help, points } = family;
        let wrap = |(data, count)| {
            let (name, description) = (name.to_owned(), help.to_owned());
            let unit = ucum(unit).to_owned();
            (Metric { name, description, unit, metadata: Vec::new(), data: Some(data) }, count)
        };
        let (aggregation_temporality, is_monotonic) = (CUMULATIVE, true);
        match kind {
            Kind::Counter => pieces(points, bytes, |point| self.number(point, true))
                .map(|(data_points, count)| {
                    let sum = proto::Sum { data_points, aggregation_temporality, is_monotonic };
                    wrap((Data::Sum(sum), count))
                })
                .collect(),
            Kind::Gauge => pieces(points, bytes, |point| self.number(point, false))
                .map(|(data_points, count)| {
                    wrap((Data::Gauge(proto::Gauge { data_points }), count))
                })
                .collect(),
            Kind::Histogram => pieces(points, bytes, |point| self.histogram(point))
                .map(|(data_points, count)| {
                    let histogram = proto::Histogram { data_points, aggregation_temporality };
                    wrap((Data::Histogram(histogram), count))
                })
                .collect(),
        }
    }

    fn number(self, point: Point, cumulative: bool) -> Option<NumberDataPoint> {
        let Value::Number(value) = point.value else { return None };
        Some(NumberDataPoint {
            attributes: attributes(&point.labels),
            start_time_unix_nano: if cumulative { nanoseconds(point.began) } else { 0 },
            time_unix_nano: self.0,
            value: Some(number(value)),
            ..Default::default()
        })
    }

    fn histogram(self, point: Point) -> Option<HistogramDataPoint> {
        let Value::Distribution(distribution) = point.value else { return None };
        let Distribution { bounds, counts, count, sum, exemplars } = distribution;
        Some(HistogramDataPoint {
            attributes: attributes(&point.labels),
            start_time_unix_nano: nanoseconds(point.began),
            time_unix_nano: self.0,
            count,
            sum: Some(float(sum)),
            bucket_counts: counts,
            explicit_bounds: bounds.to_vec(),
            exemplars: exemplars.into_iter().map(exemplar).collect(),
            ..Default::default()
        })
    }
}

/// What its kind has no points of is left out.
fn pieces<P: prost::Message>(
    points: Vec<Point>,
    bytes: usize,
    convert: impl Fn(Point) -> Option<P>,
) -> impl Iterator<Item = (Vec<P>, usize)> {
    let mut points = points.into_iter().filter_map(convert).peekable();
    std::iter::from_fn(move || {
        let mut piece = vec![points.next()?];
        let mut len = piece[0].encoded_len();
        while let Some(point) = points.next_if(|point| {
            len += point.encoded_len();
            len <= bytes
        }) {
            piece.push(point);
        }
        let count = piece.len();
        Some((piece, count))
    })
}

fn number(number: Number) -> number_data_point::Value {
    use number_data_point::Value;
    match number {
        Number::Signed(value) => Value::AsInt(value),
        // The protocol's integers are signed.
        Number::Unsigned(value) => {
            i64::try_from(value).map_or(Value::AsDouble(value as f64), Value::AsInt)
        }
        Number::Float(_) | Number::Micros(_) => Value::AsDouble(float(number)),
    }
}

fn float(number: Number) -> f64 {
    match number {
        Number::Unsigned(value) => value as f64,
        Number::Signed(value) => value as f64,
        Number::Float(value) => value,
        Number::Micros(value) => value as f64 / 1e6,
    }
}

fn exemplar(exemplar: Exemplar) -> proto::Exemplar {
    proto::Exemplar {
        filtered_attributes: Vec::new(),
        time_unix_nano: nanoseconds(Duration::from_millis(exemplar.unix_ms)),
        // Which span of the trace it was is not remembered.
        span_id: Vec::new(),
        trace_id: exemplar.trace.0.to_be_bytes().to_vec(),
        value: Some(proto::exemplar::Value::AsDouble(exemplar.micros as f64 / 1e6)),
    }
}

fn attributes(labels: &Labels) -> Vec<KeyValue> {
    let pair = |(key, value): &(&'static str, Box<str>)| KeyValue {
        key: (*key).to_owned(),
        value: Some(AnyValue { value: Some(ProtoValue::StringValue(value.to_string())) }),
        ..Default::default()
    };
    labels.iter().map(pair).collect()
}

/// In the Unified Code for Units of Measure, which the conventions ask for.
fn ucum(unit: Unit) -> &'static str {
    match unit {
        Unit::None => "",
        Unit::Seconds => "s",
        Unit::Bytes => "By",
        Unit::Ratio => "1",
    }
}

fn nanoseconds(since: Duration) -> u64 {
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::model::TraceId;

    fn point(label: &str, value: Value) -> Point {
        let labels = [("app", label.into())].into();
        Point { labels, began: Duration::from_secs(5), value }
    }

    fn family(name: &'static str, kind: Kind, unit: Unit, points: Vec<Point>) -> FamilySnapshot {
        FamilySnapshot { name, kind, unit, help: "Help.", points }
    }

    fn requests(families: Vec<FamilySnapshot>, bytes: usize) -> Vec<(Vec<Metric>, usize)> {
        let resource = ProtoResource::default();
        let scope = InstrumentationScope::default();
        let frame = Frame { resource, schema_url: String::new(), scope };
        let (at, began) = (Duration::from_secs(9), Duration::from_secs(1));
        let requests = frame.requests(Snapshot { at, began, families }, bytes);
        requests
            .map(|Request { message, points }| {
                let request = ExportMetricsServiceRequest::decode(message).expect("a message");
                let resources = request.resource_metrics.into_iter();
                let scopes = resources.flat_map(|resource| resource.scope_metrics);
                (scopes.flat_map(|scope| scope.metrics).collect(), points)
            })
            .collect()
    }

    #[test]
    fn numbers_keep_their_kind_and_their_times() {
        let numbers = [
            Number::Unsigned(3),
            Number::Unsigned(u64::MAX),
            Number::Signed(-2),
            Number::Micros(1_500_000),
        ];
        let points = numbers.map(|number| point("a", Value::Number(number))).to_vec();
        let counter =
            family("ferrule_a_seconds_total", Kind::Counter, Unit::Seconds, points.clone());
        let gauge = family("ferrule_b_bytes", Kind::Gauge, Unit::Bytes, points);
        let [(metrics, 8)] = &requests(vec![counter, gauge], 1 << 20)[..] else { panic!("one") };
        let [counter, gauge] = &metrics[..] else { panic!("two metrics") };
        assert_eq!((&*counter.unit, &*gauge.unit), ("s", "By"));
        let (Some(Data::Sum(sum)), Some(Data::Gauge(gauge))) = (&counter.data, &gauge.data) else {
            panic!("a sum and a gauge")
        };
        use number_data_point::Value::{AsDouble, AsInt};
        let values: Vec<_> = sum.data_points.iter().filter_map(|point| point.value).collect();
        assert_eq!(values, [AsInt(3), AsDouble(u64::MAX as f64), AsInt(-2), AsDouble(1.5)]);
        let seconds = |seconds: u64| seconds * 1_000_000_000;
        let times = |point: &NumberDataPoint| (point.start_time_unix_nano, point.time_unix_nano);
        assert_eq!(times(&sum.data_points[0]), (seconds(5), seconds(9)));
        assert_eq!(times(&gauge.data_points[0]), (0, seconds(9)));
    }

    #[test]
    fn a_histogram_keeps_its_exemplars() {
        let exemplar = Exemplar { bucket: 1, trace: TraceId(7), micros: 250_000, unix_ms: 8_000 };
        let value = Value::Distribution(Distribution {
            bounds: &[0.1],
            counts: vec![1, 2],
            count: 3,
            sum: Number::Micros(600_000),
            exemplars: vec![exemplar],
        });
        let family =
            family("ferrule_c_seconds", Kind::Histogram, Unit::Seconds, vec![point("a", value)]);
        let [(metrics, 1)] = &requests(vec![family], 1 << 20)[..] else { panic!("one request") };
        let Some(Data::Histogram(histogram)) = &metrics[0].data else { panic!("a histogram") };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum, &point.bucket_counts[..]), (3, Some(0.6), &[1, 2][..]));
        let exemplar = &point.exemplars[0];
        assert_eq!(exemplar.trace_id, 7_u128.to_be_bytes());
        assert_eq!(exemplar.value, Some(proto::exemplar::Value::AsDouble(0.25)));
        assert_eq!(exemplar.time_unix_nano, 8_000_000_000);
    }

    #[test]
    fn many_points_are_several_requests() {
        let label = |number: usize| format!("app-{number:04}");
        let value = || Value::Number(Number::Unsigned(1));
        let points: Vec<_> = (0..1000).map(|number| point(&label(number), value())).collect();
        let small = vec![point("b", value())];
        let families = vec![
            family("ferrule_a_total", Kind::Counter, Unit::None, points),
            family("ferrule_b_total", Kind::Counter, Unit::None, small),
        ];
        let requests = requests(families, 10_000);
        assert!(requests.len() > 3);
        let lens = requests
            .iter()
            .map(|(metrics, _)| metrics.iter().map(prost::Message::encoded_len).sum::<usize>());
        assert!(lens.into_iter().all(|len| len < 10_500));
        assert_eq!(requests.iter().map(|(_, points)| points).sum::<usize>(), 1001);
    }
}
