//! Plots over time as SVG: rate, lag, depth, CPU; faults are shaded.
//!
//! Every second of the run is a point; a second that was not measured (a service was away) is a gap, not a zero.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::Report;
use super::lines::{Line, MILLIS_MIN, cpus, depths, lags, rates};

/// File and title of each plot.
pub(crate) const FILES: [(&str, &str); 4] = [
    ("rate.svg", "Results a second"),
    ("lag.svg", "Time since a result was due"),
    ("depth.svg", "Messages waiting and held"),
    ("cpu.svg", "Cores used"),
];

/// What each plot's axis counts, in the order of [`FILES`].
const UNITS: [&str; 4] = ["a second", "ms", "messages", "cores"];
/// The legend names the times of at most this many faults of a kind.
const TIMES_SHOWN_MAX: usize = 3;

const SIZE: (u32, u32) = (1000, 320);
/// Width of the legend at the right, part of the plot's width.
const LEGEND: u32 = 210;
const LEGEND_TOP: i32 = 60;
const LEGEND_STEP: i32 = 24;
/// Colours that the colour-blind can tell apart, too (Okabe and Ito).
const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];
const SHADE: RGBColor = RGBColor(230, 159, 0);
const FONT: &str = "sans-serif";

/// Writes all plots into `folder`.
pub(crate) fn write(report: &Report, folder: &Path) -> anyhow::Result<()> {
    let timeline = &report.timeline;
    let lines = [
        rates(timeline),
        lags(timeline),
        depths(timeline),
        cpus(timeline),
    ];
    for (((file, title), unit), lines) in FILES.into_iter().zip(UNITS).zip(lines) {
        let is_logarithmic = file == "lag.svg";
        let svg = draw(report, (title, unit), &lines, is_logarithmic)
            .map_err(|error| anyhow!("{file} cannot be drawn: {error}"))?;
        let path = folder.join(file);
        std::fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

type Drawn = Result<String, Box<dyn std::error::Error>>;

fn draw(report: &Report, title: (&str, &str), lines: &[Line], is_logarithmic: bool) -> Drawn {
    let values = lines
        .iter()
        .flat_map(|(_, pieces)| pieces.iter().flatten().map(|(_, value)| *value));
    let most = values.fold(0.0, f64::max).max(1.0) * 1.1;
    if is_logarithmic {
        chart(report, title, lines, (MILLIS_MIN..most).log_scale())
    } else {
        chart(report, title, lines, 0.0..most)
    }
}

fn chart<Y>(report: &Report, (title, unit): (&str, &str), lines: &[Line], values: Y) -> Drawn
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let seconds = report
        .timeline
        .last()
        .map_or(1.0, |sample| sample.at)
        .max(1.0);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (plot, legend) = root.split_horizontally(SIZE.0 - LEGEND);
        let mut builder = ChartBuilder::on(&plot);
        let builder = builder.caption(title, (FONT, 18)).margin(10);
        let builder = builder.x_label_area_size(36).y_label_area_size(70);
        let mut chart = builder.build_cartesian_2d(0.0..seconds, values)?;
        let whole = chart.y_range();
        for fault in &report.faults {
            let (began, ended) = (fault.record.began, fault.record.ended.min(seconds));
            let corners = [(began, whole.start), (ended, whole.end)];
            chart.draw_series([Rectangle::new(corners, SHADE.mix(0.25).filled())])?;
        }
        let mut mesh = chart.configure_mesh();
        let mesh = mesh.light_line_style(BLACK.mix(0.05));
        let mesh = mesh.x_desc("seconds since the load began").y_desc(unit);
        let mesh = mesh.x_label_formatter(&label).y_label_formatter(&label);
        mesh.label_style((FONT, 13)).draw()?;
        for ((_, pieces), colour) in lines.iter().zip(COLOURS) {
            for piece in pieces {
                let points = piece.iter().copied();
                // A line through one point cannot be seen.
                if let [point] = piece[..] {
                    chart.draw_series([Circle::new(point, 2, colour.filled())])?;
                }
                chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
            }
        }
        let mut y = LEGEND_TOP;
        for ((name, _), colour) in lines.iter().zip(COLOURS) {
            legend.draw(&PathElement::new([(0, y), (18, y)], colour.stroke_width(3)))?;
            legend.draw(&Text::new(name.as_str(), (26, y - 6), (FONT, 13)))?;
            y += LEGEND_STEP;
        }
        for name in faults(report) {
            let shade = SHADE.mix(0.25).filled();
            legend.draw(&Rectangle::new([(0, y - 7), (18, y + 7)], shade))?;
            legend.draw(&Text::new(name, (26, y - 6), (FONT, 13)))?;
            y += LEGEND_STEP;
        }
        root.present()?;
    }
    Ok(svg)
}

/// The kinds of faults, each with when it began: `kill_server at 6, 13 s`.
fn faults(report: &Report) -> Vec<String> {
    let mut kinds: Vec<(&str, Vec<f64>)> = Vec::new();
    for fault in &report.faults {
        let record = &fault.record;
        match kinds.iter_mut().find(|(kind, _)| *kind == record.kind) {
            Some((_, times)) => times.push(record.began),
            None => kinds.push((&record.kind, vec![record.began])),
        }
    }
    let name = |(kind, times): &(&str, Vec<f64>)| {
        let shown = times.iter().take(TIMES_SHOWN_MAX);
        let shown: Vec<String> = shown.map(|began| format!("{began:.0}")).collect();
        let more = if times.len() > TIMES_SHOWN_MAX {
            ", …"
        } else {
            ""
        };
        format!("{kind} at {}{more} s", shown.join(", "))
    };
    kinds.iter().map(name).collect()
}

/// The label of an axis: a whole number, with one digit more if it is below 10 and not whole.
#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "plotters hands it over so"
)]
fn label(value: &f64) -> String {
    if *value >= 10.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::good;
    use super::*;
    use crate::faults::FaultRecord;

    /// Goal: all plots are drawn, with their lines named and the fault shaded; an empty run is no error.
    #[test]
    fn plots_are_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = good();
        let record = FaultRecord {
            kind: "kill_server".to_owned(),
            began: 5.0,
            ended: 7.0,
        };
        report.faults.push(super::super::Fault {
            record,
            recovery: None,
        });
        write(&report, folder.path()).unwrap();
        for (file, title) in FILES {
            let svg = std::fs::read_to_string(folder.path().join(file)).unwrap();
            assert!(svg.starts_with("<svg") && svg.contains(title), "{svg}");
            assert!(
                svg.contains("#E69F00") && svg.contains("kill_server at 5 s"),
                "{svg}"
            );
        }
        let rate = std::fs::read_to_string(folder.path().join("rate.svg")).unwrap();
        assert!(
            ["sent", "settled", "polyline"]
                .iter()
                .all(|part| rate.contains(part))
        );
        report.timeline.clear();
        write(&report, folder.path()).unwrap();
    }
}
