//! The installed packages, a line each, as the distribution's package manager prints them. An update moves some of them.

use super::words::{self, Words};
use super::{Machine, push};
use crate::plan::Distribution;
use crate::rng::Draws;

/// An update changes one of this many packages.
const UPDATED_EVERY: u64 = 17;

pub(super) fn text(machine: &Machine, version: u64, bytes: usize, draws: &mut Draws) -> String {
    let words = words::of(machine.distribution);
    let mut list = List {
        text: String::with_capacity(bytes + 128),
        is_rpm: matches!(
            machine.distribution,
            Distribution::Rhel | Distribution::Centos
        ),
        suffix: words.suffix,
        version,
        number: 0,
    };
    list.text.push('[');
    // A package that only this machine has: no other machine has the same list.
    let host = machine.name.split('.').next().unwrap_or_default();
    list.add(format_args!("site-config-{host}"), 1, version);
    for name in words.packages {
        list.add(
            format_args!("{name}"),
            draws.next(),
            version / UPDATED_EVERY,
        );
    }
    stems(&mut list, words, bytes, draws);
    while list.text.len() + 64 < bytes {
        let family = draws.pick(&words::FAMILIES);
        let stem = draws.pick(&words::STEMS);
        let bits = draws.next();
        list.add_updated(format_args!("{family}{stem}{}", bits % 97), bits);
    }
    list.text.push(']');
    list.text
}

fn stems(list: &mut List, words: &Words, bytes: usize, draws: &mut Draws) {
    for stem in words::STEMS {
        for part in words.parts {
            let bits = draws.next();
            if list.text.len() + 64 < bytes && bits % 5 < 3 {
                list.add_updated(format_args!("{stem}{part}"), bits);
            }
        }
    }
}

struct List {
    text: String,
    is_rpm: bool,
    suffix: &'static str,
    version: u64,
    number: u64,
}

impl List {
    fn add_updated(&mut self, name: std::fmt::Arguments<'_>, bits: u64) {
        let updates = (self.version + self.number % UPDATED_EVERY) / UPDATED_EVERY;
        self.add(name, bits, updates);
    }

    fn add(&mut self, name: std::fmt::Arguments<'_>, bits: u64, updates: u64) {
        let [major, minor, patch, ..] = bits.to_le_bytes();
        let (major, minor, patch) = (major % 9, minor % 30, patch % 20);
        let (comma, between) = (
            if self.number == 0 { "" } else { "," },
            if self.is_rpm { '-' } else { ' ' },
        );
        let suffix = self.suffix;
        push(
            &mut self.text,
            format_args!(
                r#"{comma}"{name}{between}{major}.{minor}.{patch}-{}{suffix}""#,
                updates + 1
            ),
        );
        self.number += 1;
    }
}
