//! The process list, a line each: kernel threads, the distribution's daemons, and what the machine is for.

use super::{Machine, push, words};
use crate::rng::Draws;

/// How far process ids move from one collection to the next.
const PID_STEP: u64 = 3;

pub(super) fn text(machine: &Machine, version: u64, bytes: usize, draws: &mut Draws) -> String {
    let words = words::of(machine.distribution);
    let mut text = String::with_capacity(bytes + 128);
    text.push_str(r#"["root 1 /usr/lib/systemd/systemd --switched-root --system""#);
    for thread in 0..draws.between(20, 60) {
        push(
            &mut text,
            format_args!(
                r#","root {} [kworker/{}:{}-events]""#,
                thread + 2,
                thread % 8,
                thread / 8
            ),
        );
    }
    let mut pid = 700;
    for daemon in words.daemons {
        pid += draws.between(1, 20);
        push(&mut text, format_args!(r#","root {pid} {daemon}""#));
    }
    // A line that only this machine and collection have.
    let name = &machine.name;
    push(
        &mut text,
        format_args!(
            r#","vogeler {} /usr/bin/vogeler client --collection {version} --node {name}""#,
            pid + 1
        ),
    );
    while text.len() + 96 < bytes {
        pid += draws.between(1, 40);
        let daemon = draws.pick(&words::DAEMONS);
        push(
            &mut text,
            format_args!(
                r#","app{} {} {daemon}""#,
                draws.below(8),
                pid + version * PID_STEP
            ),
        );
    }
    text.push(']');
    text
}
