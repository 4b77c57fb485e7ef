use proptest::prelude::*;

use super::*;
use crate::broker::left_out;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind, 0, 1][..], &size, payload, &[FRAME_END]].concat()
}

/// A header frame with one text header of `bytes` bytes.
fn header(name: &[u8], bytes: usize) -> Vec<u8> {
    let entry = [
        &[u8::try_from(name.len()).unwrap()],
        name,
        b"S",
        &u32::try_from(bytes).unwrap().to_be_bytes(),
        &vec![b'x'; bytes],
    ]
    .concat();
    let size = u32::try_from(entry.len()).unwrap().to_be_bytes();
    frame(
        HEADER,
        &[
            &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0x20, 0][..],
            &size,
            &entry,
        ]
        .concat(),
    )
}

fn delivery(routing_key: &[u8]) -> Vec<u8> {
    let key = [&[u8::try_from(routing_key.len()).unwrap()], routing_key].concat();
    frame(
        METHOD,
        &[
            &DELIVER[..],
            b"\x01t",
            &[0, 0, 0, 0, 0, 0, 0, 7, 1],
            b"\x02ex",
            &key,
        ]
        .concat(),
    )
}

/// What comes out of `sieve` for these pieces, taken as the transport takes it.
fn sifted(sieve: &mut Sieve, pieces: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces {
        let passed = sieve.sift(piece);
        out.extend(&piece[..passed]);
        out.append(sieve.ready());
    }
    out
}

/// Goal: the broker's own bound counts where it is below ours, and what is above it is trimmed to it.
#[test]
fn headers_fit_the_smaller_bound() {
    let mut sieve = Sieve::new(32_768);
    let tune = frame(
        METHOD,
        &[&TUNE[..], &[7, 255], &8_192_u32.to_be_bytes(), &[0, 60]].concat(),
    );
    assert_eq!(sifted(&mut sieve, &[&tune]), tune);
    let small = header(b"h", 8_000);
    assert_eq!(sifted(&mut sieve, &[&small]), small);
    let trimmed = sifted(&mut sieve, &[&header(b"h", 9_000)]);
    assert!(
        trimmed.len() <= 8_192 && trimmed[7..].starts_with(&small[7..21]),
        "{}",
        trimmed.len()
    );
    assert!(String::from_utf8_lossy(&trimmed).contains(left_out::HEADER));
    assert_eq!(sieve.rewritten(), 1);
}

/// Goal: only the beginning of a header is held, whatever its size.
#[test]
fn what_is_held_is_bounded() {
    let mut sieve = Sieve::new(32_768);
    let huge = header(b"h", 4_000_000);
    for piece in huge.chunks(50_000) {
        assert_eq!(sieve.sift(piece), 0);
        assert!(sieve.held.len() <= HELD_BYTES_MAX);
    }
    let out = std::mem::take(sieve.ready());
    assert!(out.len() <= 32_768 && sieve.held.is_empty());
    let body = frame(BODY, b"the body");
    assert_eq!(
        sifted(&mut sieve, &[&body]),
        body,
        "the next frame is a frame"
    );
}

/// Goal: a greeting in another protocol is shown as it is.
#[test]
fn other_protocols_pass() {
    let mut sieve = Sieve::new(32_768);
    let pieces: [&[u8]; 3] = [b"AM", b"QP\x00\x00\x09\x01", &header(b"caf\xe9", 9)];
    let out = sifted(&mut sieve, &pieces);
    assert_eq!(out, pieces.concat());
}

proptest! {
    /// However the bytes are cut into pieces, the same frames come out; each that lapin reads comes out as it went in.
    #[test]
    fn pieces_do_not_matter(
        kinds in prop::collection::vec((0..7_usize, 0..50_usize), 1..12),
        cuts in prop::collection::vec(1..40_usize, 0..60),
    ) {
        let frames: Vec<Vec<u8>> = kinds.iter().map(|(kind, size)| match kind {
            0 => frame(BODY, &vec![b'b'; *size]),
            1 => frame(HEARTBEAT, b""),
            2 => frame(METHOD, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
            3 => header(b"good", *size),
            4 => header(b"caf\xe9", *size),
            5 => delivery(b"203"),
            _ => delivery(b"caf\xe9"),
        }).collect();
        let expected: Vec<u8> = frames.iter().flat_map(|frame| sifted(&mut Sieve::new(32_768), &[frame])).collect();
        for (frame, (kind, _)) in frames.iter().zip(&kinds) {
            let out = sifted(&mut Sieve::new(32_768), &[frame]);
            prop_assert_eq!(out == *frame, !matches!(kind, 4 | 6));
        }
        let bytes = frames.concat();
        let (mut pieces, mut rest) = (Vec::new(), &bytes[..]);
        for cut in cuts {
            let (piece, left) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = left;
        }
        pieces.push(rest);
        prop_assert_eq!(sifted(&mut Sieve::new(32_768), &pieces), expected);
    }

    /// No bytes make it panic or hold more than it may.
    #[test]
    fn any_bytes_are_sifted(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..9)) {
        let mut sieve = Sieve::new(4_096);
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        sifted(&mut sieve, &pieces);
        prop_assert!(sieve.held.len() <= HELD_BYTES_MAX);
    }
}
