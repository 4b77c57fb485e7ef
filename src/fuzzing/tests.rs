//! The committed seeds, run through the checks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::TARGETS;

/// Largest seed, in bytes. People read seeds too, so they are small and few.
const SEED_BYTES_MAX: usize = 8 * 1024;
const SEEDS_MAX: usize = 64;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let stem = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        path.file_stem().unwrap().to_str().unwrap().to_owned()
    };
    fs::read_dir(folder).unwrap().map(stem).collect()
}

/// Goal: every seed of every target keeps the promises that fuzzing checks.
#[test]
fn every_seed_passes_its_check() {
    let mut failed = Vec::new();
    for (name, check) in TARGETS {
        let seeds = fs::read_dir(fuzz().join("seeds").join(name)).unwrap();
        let seeds: Vec<_> = seeds.map(|seed| seed.unwrap().path()).collect();
        assert!(
            (1..=SEEDS_MAX).contains(&seeds.len()),
            "{name}: {}",
            seeds.len()
        );
        for seed in seeds {
            let bytes = fs::read(&seed).unwrap();
            assert!(bytes.len() <= SEED_BYTES_MAX, "{}", seed.display());
            if std::panic::catch_unwind(|| check(&bytes)).is_err() {
                failed.push(seed);
            }
        }
    }
    assert!(failed.is_empty(), "see the panics above: {failed:#?}");
}

/// Goal: each check has seeds and is a target of cargo-fuzz, and there are no other targets or seeds.
#[test]
fn checks_targets_and_seeds_have_the_same_names() {
    let checks: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&fuzz().join("seeds")), checks);
    assert_eq!(names(&fuzz().join("fuzz_targets")), checks);
    let manifest: toml::Table = fs::read_to_string(fuzz().join("Cargo.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let bins = manifest["bin"].as_array().unwrap().iter();
    let bins: BTreeSet<_> = bins
        .map(|bin| bin["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(bins, checks);
}
