//! Numbers and times as a person reads them. Pure.

use jiff::Timestamp;

/// Shown where nothing is known.
pub const NOTHING: &str = "–";

/// A count: `1,234,567`.
pub fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && digit != '-' && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate per second with up to two significant digits, or all whole ones: `0.25`, `3.1`, `1,200`.
pub fn rate(value: Option<f64>) -> String {
    match value {
        None => NOTHING.to_owned(),
        Some(value) if value <= 0.0 => "0".to_owned(),
        Some(value) if value < 1.0 => format!("{value:.2}"),
        Some(value) if value < 10.0 => format!("{value:.1}"),
        Some(value) => count(value),
    }
}

/// A length of time in seconds: `250 ms`, `12.5 s`, `3 min`, `5 h`, `2 days`.
pub fn seconds(value: f64) -> String {
    match value {
        value if value <= 0.0 => "0 s".to_owned(),
        value if value < 1.0 => format!("{:.0} ms", (value * 1000.0).max(1.0)),
        value if value < 10.0 => format!("{value:.1} s"),
        value if value < 120.0 => format!("{value:.0} s"),
        value if value < 7200.0 => format!("{:.0} min", value / 60.0),
        value if value < 172_800.0 => format!("{:.0} h", value / 3600.0),
        value => format!("{:.0} days", value / 86_400.0),
    }
}

/// A size: `512 B`, `1.5 MiB`.
pub fn bytes(value: f64) -> String {
    let mut rest = value;
    for unit in ["B", "KiB", "MiB"] {
        if rest < 1024.0 {
            let digits = usize::from(unit != "B" && rest < 10.0);
            return format!("{rest:.digits$} {unit}");
        }
        rest /= 1024.0;
    }
    format!("{rest:.1} GiB")
}

/// How long ago: `12 s ago`, or `now` for a time in the future, since clocks differ.
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    match now.duration_since(at).as_secs_f64() {
        age if age < 1.0 => "now".to_owned(),
        age if age < 120.0 => format!("{:.0} s ago", age.floor()),
        age => format!("{} ago", seconds(age)),
    }
}

/// A moment to the second, in UTC: `2026-11-22 17:40:32 UTC`.
pub fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: numbers and times are short and have their unit.
    #[test]
    fn figures_are_readable() {
        assert_eq!(
            [0.0, 999.0, 1000.0, 1_234_567.0].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        let rates = [None, Some(0.0), Some(0.253), Some(3.12), Some(1200.4)];
        assert_eq!(rates.map(rate), ["–", "0", "0.25", "3.1", "1,200"]);
        let spans = [0.0, 0.0002, 0.25, 1.25, 59.9, 180.0, 18_000.0, 200_000.0];
        let shown = [
            "0 s", "1 ms", "250 ms", "1.2 s", "60 s", "3 min", "5 h", "2 days",
        ];
        assert_eq!(spans.map(seconds), shown);
        let sizes = [
            0.0,
            512.0,
            1536.0,
            67_108_864.0,
            3.0 * 1024.0 * 1024.0 * 1024.0,
        ];
        assert_eq!(
            sizes.map(bytes),
            ["0 B", "512 B", "1.5 KiB", "64 MiB", "3.0 GiB"]
        );
        let now = Timestamp::from_second(1_795_369_232).unwrap();
        assert_eq!(ago(now, now), "now");
        assert_eq!(
            ago(Timestamp::from_second(1_795_369_220).unwrap(), now),
            "12 s ago"
        );
        assert_eq!(moment(now), "2026-11-22 17:40:32 UTC");
    }
}
