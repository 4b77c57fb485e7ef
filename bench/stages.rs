//! Criterion benches of the pure stages, each with its throughput in bytes: decode, content hash, merge.
//!
//! `cargo bench` runs them. A figure means something only beside another of the same run on the same machine.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;
use serde_json::value::{RawValue, to_raw_value};
use vogeler::document::NodeDocument;
use vogeler::hash::content_hash;
use vogeler::wire::{Content, Format, PluginResult, Seq};

/// Sizes of the values, in bytes: a short list, a typical fact set, a long package list.
const SIZES: [usize; 3] = [2_000, 20_000, 100_000];

/// A list of package lines of about `bytes`.
fn packages(bytes: usize) -> Box<RawValue> {
    let lines: Vec<String> = (0..bytes / 40)
        .map(|n| {
            format!(
                "package-{n:06} {}.{}.{}-1+deb12u{n:04}",
                n % 9,
                n % 7,
                n % 5
            )
        })
        .collect();
    to_raw_value(&lines).unwrap_or_default()
}

fn result(bytes: usize) -> PluginResult {
    let json = packages(bytes);
    let hash = content_hash(&json, &[]).unwrap_or_else(|error| panic!("{error}"));
    PluginResult {
        node: "web01.example.com"
            .parse()
            .unwrap_or_else(|error| panic!("{error}")),
        plugin: "dpkg".parse().ok(),
        seq: Seq(1),
        collected_at: Timestamp::UNIX_EPOCH,
        run: None,
        format: Format::Output,
        duration_ms: Some(100),
        content: Content::Value { json, hash },
    }
}

fn stages(criterion: &mut Criterion) {
    for size in SIZES {
        let result = result(size);
        let body = result.encode().unwrap_or_default();
        let value = packages(size);
        let mut document = NodeDocument::new(&result.node, Timestamp::UNIX_EPOCH);
        document.apply(&result, Timestamp::UNIX_EPOCH, Duration::ZERO);
        let stored = document
            .to_json(&result.node, Timestamp::UNIX_EPOCH)
            .unwrap_or_default();
        let next = PluginResult {
            seq: Seq(2),
            ..result.clone()
        };

        let mut group = criterion.benchmark_group("stages");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(BenchmarkId::new("decode", size), |bencher| {
            bencher.iter(|| PluginResult::decode(black_box(&body), Timestamp::UNIX_EPOCH));
        });
        group.bench_function(BenchmarkId::new("hash", size), |bencher| {
            bencher.iter(|| content_hash(black_box(&value), &[]));
        });
        group.bench_function(BenchmarkId::new("merge", size), |bencher| {
            bencher.iter(|| {
                let mut document = NodeDocument::parse(&next.node, black_box(&stored)).ok()?;
                document.apply(&next, Timestamp::UNIX_EPOCH, Duration::ZERO);
                document.to_json(&next.node, Timestamp::UNIX_EPOCH).ok()
            });
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(2));
    targets = stages
}
criterion_main!(benches);
