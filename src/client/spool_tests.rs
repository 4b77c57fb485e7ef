use proptest::prelude::*;

use super::super::envelope::tests::result;
use super::*;

const ROOMY: Bounds = Bounds {
    count_max: 100,
    bytes_max: 1_000_000,
};

fn envelope(seq: Seq) -> Envelope {
    Envelope::seal(&result(seq.0, "text"), None, 10_000).unwrap()
}

fn at(microsecond: i64) -> Timestamp {
    Timestamp::from_microsecond(microsecond).unwrap()
}

fn push(spool: &mut Spool, microsecond: i64) -> Seq {
    let seq = spool.next_seq(at(microsecond));
    spool.push(seq, &envelope(seq)).unwrap();
    seq
}

fn push_all(spool: &mut Spool, microseconds: std::ops::RangeInclusive<i64>) {
    for microsecond in microseconds {
        push(spool, microsecond);
    }
}

/// All waiting results, oldest first. Confirms each on the way.
fn drain(spool: &mut Spool) -> Vec<u64> {
    std::iter::from_fn(|| {
        let (seq, envelope) = spool.oldest().unwrap()?;
        assert_eq!(envelope.seq, seq);
        spool.done(seq);
        Some(seq.0)
    })
    .collect()
}

/// Goal: results not confirmed before a crash are published first after it, in order, and nothing else is.
#[test]
fn leftovers_come_first_and_in_order() {
    let state = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(state.path(), ROOMY).unwrap();
    let first = push(&mut spool, 10);
    push(&mut spool, 20);
    push(&mut spool, 30);
    spool.done(first);
    drop(spool);
    let mut spool = Spool::open(state.path(), ROOMY).unwrap();
    push(&mut spool, 40);
    assert_eq!(drain(&mut spool), [20, 30, 40]);
    assert!(spool.is_empty());
}

/// Goal: the sequence grows over restarts and a clock that steps back, even if all results were confirmed.
#[test]
fn the_sequence_only_grows() {
    let state = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(state.path(), ROOMY).unwrap();
    push(&mut spool, 1000);
    drain(&mut spool);
    drop(spool);
    let mut spool = Spool::open(state.path(), ROOMY).unwrap();
    assert_eq!(spool.next_seq(at(500)), Seq(1001));
    assert_eq!(spool.next_seq(at(500)), Seq(1002));
    assert_eq!(spool.next_seq(at(5000)), Seq(5000));
}

/// Goal: past either bound the oldest go and are counted; a result larger than the whole spool is an error.
#[test]
fn the_oldest_go_when_it_is_full() {
    let state = tempfile::tempdir().unwrap();
    let few = Bounds {
        count_max: 3,
        ..ROOMY
    };
    let mut spool = Spool::open(state.path(), few).unwrap();
    push_all(&mut spool, 1..=5);
    assert_eq!((spool.len(), spool.dropped()), (3, 2));
    let published = spool.oldest().unwrap().unwrap().0;
    push(&mut spool, 6);
    spool.done(published);
    assert_eq!(drain(&mut spool), [4, 5, 6]);
    drop(spool);

    let size = envelope(Seq(7)).to_bytes().len() as u64;
    let small = Bounds {
        bytes_max: 2 * size,
        ..ROOMY
    };
    let mut spool = Spool::open(state.path(), small).unwrap();
    push_all(&mut spool, 7..=9);
    assert_eq!(drain(&mut spool), [8, 9]);
    let large = Envelope::seal(&result(10, &"x".repeat(10_000)), None, 100_000).unwrap();
    let error = spool.push(Seq(10), &large).unwrap_err();
    assert!(matches!(error, SpoolError::TooLarge { .. }), "{error}");
}

/// Goal: a damaged file is set aside and hurts neither its neighbours nor the sequence.
#[test]
fn a_damaged_file_is_set_aside() {
    let state = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(state.path(), ROOMY).unwrap();
    push(&mut spool, 10);
    let damaged = push(&mut spool, 20);
    let path = spool.path(damaged);
    drop(spool);
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::write(state.path().join("spool/garbage.result"), "x").unwrap();
    fs::write(state.path().join("spool/new"), "half a result").unwrap();

    let mut spool = Spool::open(state.path(), ROOMY).unwrap();
    push(&mut spool, 30);
    assert_eq!(drain(&mut spool), [10, 30]);
    assert!(path.with_extension("bad").exists());
    drop(spool);
    fs::write(state.path().join("spool/last"), "garbage").unwrap();
    let mut spool = Spool::open(state.path(), ROOMY).unwrap();
    assert_eq!(
        spool.next_seq(at(1)),
        Seq(21),
        "the .bad file still bounds it"
    );
}

/// Goal: an unusable state folder gives an error that names it.
#[test]
fn an_unusable_state_folder_is_an_error() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Spool::open(&file, ROOMY).unwrap_err().to_string();
    assert!(
        error.contains("/file") && error.contains("client.state"),
        "{error}"
    );

    let _first = Spool::open(state.path(), ROOMY).unwrap();
    let error = Spool::open(state.path(), ROOMY).unwrap_err();
    assert!(matches!(error, SpoolError::InUse { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// Over pushes, confirms and restarts nothing is lost, doubled or reordered, and sequences only grow.
    #[test]
    fn nothing_is_lost(steps in prop::collection::vec((0..3_u8, 0..50_i64), 0..12)) {
        let state = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(state.path(), ROOMY).unwrap();
        let mut model = VecDeque::new();
        let mut highest = 0;
        for (step, clock) in steps {
            match step {
                0 => {
                    let seq = push(&mut spool, clock);
                    prop_assert!(seq.0 > highest);
                    highest = seq.0;
                    model.push_back(seq);
                }
                1 => {
                    let oldest = spool.oldest().unwrap().map(|(seq, _)| seq);
                    prop_assert_eq!(oldest, model.pop_front());
                    if let Some(seq) = oldest {
                        spool.done(seq);
                    }
                }
                _ => {
                    drop(spool);
                    spool = Spool::open(state.path(), ROOMY).unwrap();
                }
            }
        }
        let left: Vec<_> = model.into_iter().map(|seq| seq.0).collect();
        prop_assert_eq!(drain(&mut spool), left);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whatever comes in whatever order, a full spool has the newest result of every plugin, and otherwise the newest ones.
    #[test]
    fn the_newest_of_every_plugin_is_kept(pushed in prop::collection::vec(0..3_usize, 1..20)) {
        let state = tempfile::tempdir().unwrap();
        let few = Bounds { count_max: 4, ..ROOMY };
        let mut spool = Spool::open(state.path(), few).unwrap();
        let mut expected: Vec<(usize, Seq)> = Vec::new();
        for plugin in &pushed {
            let seq = spool.next_seq(at(1));
            let mut result = result(seq.0, "text");
            result.plugin = Some(format!("p{plugin}").parse().unwrap());
            spool.push(seq, &Envelope::seal(&result, None, 10_000).unwrap()).unwrap();
            expected.push((*plugin, seq));
            if expected.len() > few.count_max {
                let superseded = expected.iter().enumerate().find(|(index, (plugin, _))| {
                    expected[index + 1..].iter().any(|(later, _)| later == plugin)
                });
                let at = superseded.map_or(0, |(index, _)| index);
                expected.remove(at);
            }
        }
        drop(spool);
        // The next life knows the plugins just as well, from the files.
        let mut spool = Spool::open(state.path(), Bounds { count_max: 3, ..few }).unwrap();
        if expected.len() > 3 {
            let superseded = expected.iter().position(|(plugin, seq)| {
                expected.iter().any(|(other, later)| other == plugin && later > seq)
            });
            expected.remove(superseded.unwrap());
        }
        let expected: Vec<_> = expected.iter().map(|(_, seq)| seq.0).collect();
        prop_assert_eq!(drain(&mut spool), expected);
    }
}

/// Goal: a result that cannot be read now stays, and the one behind it goes first; a deleted one is counted.
#[test]
fn what_cannot_be_read_stays() {
    let state = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(state.path(), ROOMY).unwrap();
    push_all(&mut spool, 1..=3);
    let (hidden, path) = (state.path().join("hidden"), spool.path(Seq(1)));
    // Reading a folder is an error, but not damage.
    fs::rename(&path, &hidden).unwrap();
    fs::create_dir(&path).unwrap();
    for expected in [2, 3] {
        let (seq, _) = spool.oldest().unwrap().unwrap();
        assert_eq!(seq, Seq(expected));
        spool.done(seq);
    }
    assert!(matches!(spool.oldest(), Err(SpoolError::Unreadable { .. })));
    fs::remove_dir(&path).unwrap();
    fs::rename(&hidden, &path).unwrap();
    assert_eq!(drain(&mut spool), [1]);
    assert_eq!(spool.dropped(), 0);
    push(&mut spool, 4);
    fs::remove_file(spool.path(Seq(4))).unwrap();
    assert_eq!((drain(&mut spool), spool.dropped()), (vec![], 1));
}

/// Goal: on a full disk only superseded results go, and only if that frees enough.
#[test]
fn on_a_full_disk_nothing_goes_in_vain() {
    let state = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(state.path(), ROOMY).unwrap();
    for seq in [3, 7] {
        spool.push(Seq(seq), &envelope(Seq(seq))).unwrap();
    }
    let plugin = envelope(Seq(3)).plugin().cloned().unwrap();
    // With a quota, the free space of the disk does not count.
    let full = io::Error::from(io::ErrorKind::QuotaExceeded);
    let going = |spool: &Spool, bytes, seq| {
        let seqs = spool.room_for(bytes, &full, Some((&plugin, Seq(seq))));
        seqs.into_iter().map(|seq| seq.0).collect::<Vec<_>>()
    };
    assert_eq!(going(&spool, 100, 9), [3, 7]);
    // A result held meanwhile is older than the last one pushed.
    assert_eq!(going(&spool, 100, 5), [3]);
    assert_eq!(going(&spool, 100_000, 9), [0; 0]);
    assert!(spool.make_room() && !spool.make_room());
    assert_eq!((drain(&mut spool), spool.dropped()), (vec![7], 1));
}

/// Goal: a result that the broker never takes no longer waits, and is counted if nothing went in its place.
#[test]
fn what_is_set_aside_is_counted_if_nothing_replaces_it() {
    let state = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(state.path(), ROOMY).unwrap();
    push_all(&mut spool, 1..=3);
    spool.set_aside(Seq(1), false);
    assert_eq!((spool.len(), spool.dropped()), (2, 0));
    for _ in 0..2 {
        spool.set_aside(Seq(2), true);
    }
    assert_eq!((drain(&mut spool), spool.dropped()), (vec![3], 1));
    assert!(spool.path(Seq(2)).with_extension("large").exists());
}
