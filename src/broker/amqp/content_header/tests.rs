//! Tests against lapin's own parser: it reads what we call readable, and whatever we rewrite.

use lapin::protocol::basic::{AMQPProperties, parse_properties};
use lapin::types::{AMQPValue, ShortString};
use proptest::prelude::*;

use super::*;

/// What lapin makes of a payload; none if it would give up the connection.
fn lapin_reads(payload: &[u8]) -> Option<AMQPProperties> {
    let (rest, properties) = parse_properties(payload.get(FIXED_BYTES..)?).ok()?;
    rest.is_empty().then_some(properties)
}

fn note(properties: &AMQPProperties) -> String {
    let table = properties.headers().as_ref().unwrap().inner();
    match &table[left_out::HEADER] {
        AMQPValue::LongString(note) => String::from_utf8(note.as_bytes().to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn sized(kind: u8, size: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), size).prop_map(move |bytes| [&[kind][..], &bytes].concat())
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [
        &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..],
        bytes,
    ]
    .concat()
}

fn short(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => "[a-z-]{0,12}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..12),
    ]
}

/// Values of every type, tables in tables, and now and then rubbish.
fn values() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        prop::sample::select(&b"tbB"[..]).prop_flat_map(|kind| sized(kind, 1)),
        prop::sample::select(&b"sUu"[..]).prop_flat_map(|kind| sized(kind, 2)),
        prop::sample::select(&b"Iif"[..]).prop_flat_map(|kind| sized(kind, 4)),
        prop::sample::select(&b"lLdT"[..]).prop_flat_map(|kind| sized(kind, 8)),
        sized(b'D', 5),
        Just(b"V".to_vec()),
        prop::collection::vec(any::<u8>(), 0..300)
            .prop_map(|bytes| [&b"S"[..], &long(&bytes)].concat()),
        prop::collection::vec(any::<u8>(), 0..9)
            .prop_map(|bytes| [&b"x"[..], &long(&bytes)].concat()),
        prop::collection::vec(any::<u8>(), 1..9),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let array = prop::collection::vec(inner.clone(), 0..4);
        let table = prop::collection::vec((name(), inner), 0..4);
        prop_oneof![
            array.prop_map(|values| [&b"A"[..], &long(&values.concat())].concat()),
            table.prop_map(|entries| [&b"F"[..], &long(&entries_of(&entries))].concat()),
        ]
    })
}

fn entries_of(entries: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let entry = |(name, value): &(Vec<u8>, Vec<u8>)| [&short(name)[..], value].concat();
    entries.iter().flat_map(entry).collect()
}

/// Payloads of header frames as a stranger might make them.
fn payloads() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        6 => "\\PC{0,40}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..256),
    ];
    let texts = prop::collection::vec(text, PROPERTIES.len());
    let entries = prop::collection::vec((name(), values()), 0..6);
    (any::<u16>(), texts, entries, any::<[u8; FIXED_BYTES]>()).prop_map(
        |(flags, texts, entries, fixed)| {
            let mut payload = fixed.to_vec();
            payload.extend(flags.to_be_bytes());
            for (place, (_, kind)) in PROPERTIES.into_iter().enumerate() {
                if flags & flag(place) != 0 {
                    payload.extend(match kind {
                        Kind::Short => short(&texts[place]),
                        Kind::Table => long(&entries_of(&entries)),
                        Kind::Octet => vec![1],
                        Kind::Timestamp => vec![9; 8],
                    });
                }
            }
            payload
        },
    )
}

proptest! {
    /// We call readable what lapin reads, and nothing else. (Deeper tables than ours are not in these payloads.)
    #[test]
    fn readable_is_what_lapin_reads(payload in payloads(), cut in 0..3_usize, bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let payload = &payload[..payload.len().saturating_sub(cut)];
        prop_assert_eq!(is_readable(payload), lapin_reads(payload).is_some());
        prop_assert_eq!(is_readable(&bytes), lapin_reads(&bytes).is_some());
    }

    /// What we rewrite is readable, fits, keeps the body's size, and tells what is missing.
    #[test]
    fn rewritten_headers_are_read(
        payload in payloads(),
        kept in 0..2_000_usize,
        beyond in 0..100_000_usize,
        bytes_max in 4_088..20_000_usize,
    ) {
        let kept = &payload[..payload.len().min(kept)];
        let whole = (payload.len() + beyond).max(FIXED_BYTES);
        let rewritten = rewrite(kept, whole, bytes_max);
        prop_assert!(rewritten.len() <= bytes_max, "{} of {bytes_max}", rewritten.len());
        prop_assert!(is_readable(&rewritten));
        let properties = lapin_reads(&rewritten).unwrap();
        let fixed = kept.len().min(FIXED_BYTES);
        prop_assert_eq!(&rewritten[..fixed], &kept[..fixed]);
        prop_assert!(!note(&properties).is_empty() || lapin_reads(&payload).is_some());
    }
}

/// Goal: what can be read of a header is kept, ours before others and the small before the large, and the note tells
/// the rest.
#[test]
fn the_small_ones_are_kept() {
    let entries = [
        (
            b"big".to_vec(),
            [&b"S"[..], &long(&vec![b'x'; 60_000])].concat(),
        ),
        (b"caf\xe9".to_vec(), b"V".to_vec()),
        (b"deep".to_vec(), nested(DEPTH_MAX + 1)),
        (
            b"x-vogeler-published-ms".to_vec(),
            [&b"S"[..], &long(b"17")].concat(),
        ),
        (b"small".to_vec(), b"t\x01".to_vec()),
    ];
    let mut payload = vec![0; FIXED_BYTES];
    payload.extend((flag(1) | flag(2) | flag(8)).to_be_bytes());
    payload.extend(short(b"zstd"));
    payload.extend(long(&entries_of(&entries)));
    payload.extend(short(b"caf\xe9"));
    assert!(!is_readable(&payload));
    let properties = lapin_reads(&rewrite(&payload, payload.len(), 8_000)).unwrap();
    let table = properties.headers().as_ref().unwrap().inner();
    let names: Vec<_> = table.keys().map(ShortString::as_str).collect();
    assert_eq!(names, ["small", left_out::HEADER, "x-vogeler-published-ms"]);
    assert_eq!(
        properties.content_encoding().as_ref().unwrap().as_str(),
        "zstd"
    );
    assert_eq!(
        properties.message_id().as_ref().unwrap().as_str(),
        "caf\u{fffd}"
    );
    let note = note(&properties);
    for told in [
        "big (60009 bytes)",
        "caf\u{fffd} (6 bytes)",
        "deep (",
        "message-id (not UTF-8)",
    ] {
        assert!(note.contains(told), "{note}");
    }
}

/// Tables in tables.
fn nested(levels: usize) -> Vec<u8> {
    let mut value = vec![b'F', 0, 0, 0, 0];
    for _ in 1..levels {
        value = [&b"F"[..], &long(&[&short(b"")[..], &value].concat())].concat();
    }
    value
}

/// Goal: tables are followed to the maximum depth and no deeper, however deep they are.
#[test]
fn depth_is_bounded() {
    let with = |levels| {
        let mut payload = vec![0; FIXED_BYTES];
        payload.extend(HEADERS_FLAG.to_be_bytes());
        payload.extend(long(&entries_of(&[(b"deep".to_vec(), nested(levels))])));
        payload
    };
    assert!(is_readable(&with(DEPTH_MAX - 1)));
    assert!(!is_readable(&with(DEPTH_MAX + 1)));
    let deepest = with(18_000);
    assert!(deepest.len() < 131_072 && !is_readable(&deepest));
    assert!(is_readable(&rewrite(&deepest, deepest.len(), 8_000)));
}
