//! Criterion benches of the pure stages, each with its throughput: decode, content hash and merge in bytes; coalescer,
//! batch buffer and verdicts in results, nodes and rows.
//!
//! `cargo bench` runs them. A figure means something only beside another of the same run on the same machine.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use jiff::Timestamp;
use serde_json::value::{RawValue, to_raw_value};
use vogeler::document::NodeDocument;
use vogeler::hash::content_hash;
use vogeler::ingest::stages::{batch, coalesce};
use vogeler::store::couch::count_stored;
use vogeler::wire::{Content, Format, NodeName, PluginResult, Seq};

/// Sizes of the values, in bytes: a short list, a typical fact set, a long package list.
const SIZES: [usize; 3] = [2_000, 20_000, 100_000];

/// Plugins of a node, and results of each plugin that come while one write is under way.
const PLUGINS: usize = 5;
const RESULTS_EACH: u64 = 10;
/// Nodes that announce themselves: enough for full batches, with none left over.
const ANNOUNCED: usize = 10_000;
/// Documents of a usual write, and of a large one.
const ROWS: [usize; 2] = [100, 500];

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

/// Results of one node, plugin by plugin in turn: the case that the coalescer is for.
fn coalescing(criterion: &mut Criterion) {
    let newest = result(SIZES[0]);
    let results: Vec<PluginResult> = (1..=RESULTS_EACH)
        .flat_map(|seq| (0..PLUGINS).map(move |plugin| (seq, format!("plugin{plugin}"))))
        .map(|(seq, plugin)| PluginResult {
            plugin: plugin.parse().ok(),
            seq: Seq(seq),
            ..newest.clone()
        })
        .collect();
    let now = Timestamp::UNIX_EPOCH;
    assert_eq!(coalesce(results.clone(), now), PLUGINS);
    let mut group = elements(criterion, results.len());
    group.bench_function(BenchmarkId::new("coalesce", results.len()), |bencher| {
        let copy = || results.clone();
        bencher.iter_batched(
            copy,
            |results| coalesce(results, now),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Nodes that announce themselves until their batch is full.
fn batching(criterion: &mut Criterion) {
    let sizes = vec![SIZES[0]; ANNOUNCED];
    let count_max = vogeler::config::Server::default().batch_count_max;
    assert_eq!(batch(&sizes), ANNOUNCED / count_max);
    let mut group = elements(criterion, ANNOUNCED);
    group.bench_function(BenchmarkId::new("batch", ANNOUNCED), |bencher| {
        bencher.iter(|| batch(black_box(&sizes)));
    });
    group.finish();
}

/// CouchDB's answer to a write of `count` documents, of which every tenth is a conflict.
fn verdicts(criterion: &mut Criterion) {
    for count in ROWS {
        let nodes: Vec<NodeName> = (0..count)
            .filter_map(|n| format!("node{n:06}.example.com").parse().ok())
            .collect();
        let sent: Vec<&NodeName> = nodes.iter().collect();
        let row = |(n, id): (usize, &NodeName)| match n % 10 {
            0 => format!(
                r#"{{"id":"{id}","error":"conflict","reason":"Document update conflict."}}"#
            ),
            _ => format!(r#"{{"ok":true,"id":"{id}","rev":"2-7051cbe5c8faecd085a3fa619e6e6337"}}"#),
        };
        let rows: Vec<String> = nodes.iter().enumerate().map(row).collect();
        let body = format!("[{}]\n", rows.join(",\n")).into();
        assert_eq!(count_stored(&body, &sent), count * 9 / 10);
        let mut group = elements(criterion, count);
        group.bench_function(BenchmarkId::new("verdicts", count), |bencher| {
            bencher.iter(|| count_stored(black_box(&body), &sent));
        });
        group.finish();
    }
}

fn elements(criterion: &mut Criterion, count: usize) -> BenchmarkGroup<'_, WallTime> {
    let mut group = criterion.benchmark_group("stages");
    group.throughput(Throughput::Elements(count as u64));
    group
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(2));
    targets = stages, coalescing, batching, verdicts
}
criterion_main!(benches);
