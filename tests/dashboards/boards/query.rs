//! The few shapes of PromQL that most panels ask. `@` stands for the board's filter; a `series` may carry labels.

/// `series{@}`, or with `@` before the labels that it has.
fn filtered(series: &str) -> String {
    match series.split_once('{') {
        Some((name, labels)) => format!("{name}{{@,{labels}"),
        None => format!("{series}{{@}}"),
    }
}

/// What a counter grows by in a second, over all that it is kept for.
pub(crate) fn rate(series: &str) -> String {
    format!("sum(rate({}[$__rate_interval]))", filtered(series))
}

/// What a counter grows by in a second, for each value of `labels`.
pub(crate) fn rate_by(labels: &str, series: &str) -> String {
    format!(
        "sum by ({labels}) (rate({}[$__rate_interval]))",
        filtered(series)
    )
}

/// What a counter grew by in the last hour, for each value of `labels`.
pub(crate) fn hourly_by(labels: &str, series: &str) -> String {
    format!("sum by ({labels}) (increase({}[1h]))", filtered(series))
}

/// The sum over all processes.
pub(crate) fn sum(series: &str) -> String {
    format!("sum({})", filtered(series))
}

/// The sum for each value of `labels`.
pub(crate) fn sum_by(labels: &str, series: &str) -> String {
    format!("sum by ({labels}) ({})", filtered(series))
}

/// The largest of all processes: for what each of them sees alike.
pub(crate) fn max(series: &str) -> String {
    format!("max({})", filtered(series))
}

/// The largest for each value of `labels`.
pub(crate) fn max_by(labels: &str, series: &str) -> String {
    format!("max by ({labels}) ({})", filtered(series))
}

/// The smallest for each value of `labels`.
pub(crate) fn min_by(labels: &str, series: &str) -> String {
    format!("min by ({labels}) ({})", filtered(series))
}

/// A quantile of a histogram, for each value of `labels` (may be empty).
pub(crate) fn quantile(quantile: f64, labels: &str, histogram: &str) -> String {
    let by = if labels.is_empty() {
        "le".to_owned()
    } else {
        format!("le, {labels}")
    };
    let buckets = filtered(&format!("{histogram}_bucket"));
    format!("histogram_quantile({quantile}, sum by ({by}) (rate({buckets}[$__rate_interval])))")
}

/// The mean of a histogram: the true one, which no bucket's bound rounds.
pub(crate) fn mean(histogram: &str) -> String {
    format!(
        "{} / {}",
        rate(&format!("{histogram}_sum")),
        rate(&format!("{histogram}_count"))
    )
}
