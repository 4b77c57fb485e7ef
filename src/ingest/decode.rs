//! Decoding: bytes of a delivery in, a result (or whose result it is) out. Pure.
//!
//! Unpacks zstd within the bounds, then reads either wire version. Every failure has a named reason and ends as a dead
//! letter; nothing here panics on any bytes. Invariant: a message grows, unpacked or as a value, to at most
//! [`Bounds::amplification_max`] times its size, so that a few bytes cost a few bytes.

use std::borrow::Cow;
use std::io::Read;

use jiff::Timestamp;

use super::ticket::Origin;
use crate::dead::header;
use crate::format::VALUE_BYTES_MAX;
use crate::wire::{AMPLIFIED_BYTES_FREE, Arrival, DecodeError, Decoded, PluginResult};

/// Largest message, in bytes unpacked, that is decoded where it arrives: that takes a millisecond, mostly far less.
const LIGHT_BYTES_MAX: u64 = 64 * 1024;

/// What a message may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Largest message, both packed and unpacked, in bytes.
    pub(super) bytes_max: usize,
    /// How many times its size a message may grow to, unpacked or as a value, above [`AMPLIFIED_BYTES_FREE`].
    pub(super) amplification_max: usize,
}

/// Whether decoding may take too long for this thread, which has other work. A packed message is light only if it is a
/// single frame whose first bytes tell a small unpacked size; any other may become of any size.
pub(super) fn is_heavy(origin: &Origin) -> bool {
    let body = &*origin.body;
    if body.len() as u64 > LIGHT_BYTES_MAX {
        return true;
    }
    if origin.properties.content_encoding.as_deref() != Some("zstd") {
        return false;
    }
    let frame = zstd::zstd_safe::find_frame_compressed_size(body);
    let told = zstd::zstd_safe::get_frame_content_size(body);
    let is_light = frame.is_ok_and(|bytes| bytes == body.len())
        && matches!(told, Ok(Some(bytes)) if bytes <= LIGHT_BYTES_MAX);
    !is_light
}

/// When a message arrived: its first arrival, if a server stamped that on it, otherwise `now`.
fn arrival(origin: &Origin, now: Timestamp) -> Arrival {
    let stamp = origin.properties.headers.get(header::ARRIVED);
    let stamp = stamp.and_then(|text| text.parse().ok());
    let first = stamp.and_then(|micros| Timestamp::from_microsecond(micros).ok());
    Arrival {
        at: first.unwrap_or(now),
        is_first: first.is_some(),
    }
}

/// Reads the result in `origin`.
pub(super) fn decode(
    origin: &Origin,
    bounds: Bounds,
    now: Timestamp,
) -> Result<Decoded, DecodeError> {
    let packed = origin.body.len();
    if packed > bounds.bytes_max {
        return Err(DecodeError::TooLarge {
            bytes: packed,
            max: bounds.bytes_max,
        });
    }
    let ratio = bounds.amplification_max;
    let max = packed.saturating_mul(ratio).max(AMPLIFIED_BYTES_FREE);
    let amplified = DecodeError::Amplification { packed, ratio, max };
    let body = match origin.properties.content_encoding.as_deref() {
        None | Some("" | "identity" | "utf-8") => Cow::Borrowed(&*origin.body),
        Some("zstd") => match unpack(&origin.body, bounds.bytes_max.min(max))? {
            Some(body) => Cow::Owned(body),
            None if max < bounds.bytes_max => return Err(amplified),
            None => {
                return Err(DecodeError::TooLarge {
                    bytes: bounds.bytes_max + 1,
                    max: bounds.bytes_max,
                });
            }
        },
        Some(encoding) => {
            return Err(DecodeError::Encoding {
                encoding: encoding.to_owned(),
            });
        }
    };
    match PluginResult::decode_arrived(&body, arrival(origin, now), max) {
        Err(DecodeError::Value {
            source: crate::format::FormatError::TooLarge { .. },
            ..
        }) if max < VALUE_BYTES_MAX => Err(amplified),
        decoded => decoded,
    }
}

/// Unpacks zstd; none if it has more than `bytes_max` bytes. Reads one byte past the bound, so that a bomb stays small.
pub(super) fn unpack(body: &[u8], bytes_max: usize) -> Result<Option<Vec<u8>>, DecodeError> {
    let compression = |source| DecodeError::Compression { source };
    let mut unpacked = Vec::new();
    let limit = u64::try_from(bytes_max)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    zstd::Decoder::with_buffer(body)
        .map_err(compression)?
        .take(limit)
        .read_to_end(&mut unpacked)
        .map_err(compression)?;
    Ok((unpacked.len() <= bytes_max).then_some(unpacked))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::broker::Properties;
    use crate::wire::{Content, Format};

    const V2: &str = include_str!("../../tests/fixtures/wire/result-v2.json");
    const V2_ERROR: &str = include_str!("../../tests/fixtures/wire/result-v2-error.json");
    const V1_OUTPUT: &str = include_str!("../../tests/fixtures/wire/result-2010-output.json");
    const V1_ERROR: &str = include_str!("../../tests/fixtures/wire/result-2010-error.json");

    fn origin(body: &[u8], encoding: Option<&str>) -> Origin {
        Origin {
            body: body.to_vec().into(),
            properties: Properties {
                content_encoding: encoding.map(str::to_owned),
                ..Properties::default()
            },
            exchange: String::new(),
            routing_key: String::new(),
        }
    }

    fn read(body: &[u8]) -> Result<PluginResult, DecodeError> {
        within(1_000_000, body, None)
    }

    fn within(
        bytes_max: usize,
        body: &[u8],
        encoding: Option<&str>,
    ) -> Result<PluginResult, DecodeError> {
        let bounds = Bounds {
            bytes_max,
            amplification_max: 100,
        };
        stamped(&origin(body, encoding), bounds, Timestamp::UNIX_EPOCH)
    }

    /// Reads a message that arrived first at `now`.
    fn stamped(
        origin: &Origin,
        bounds: Bounds,
        now: Timestamp,
    ) -> Result<PluginResult, DecodeError> {
        let mut origin = origin.clone();
        let stamp = now.as_microsecond().to_string();
        let headers = &mut origin.properties.headers;
        headers.insert(header::ARRIVED.to_owned(), stamp);
        match decode(&origin, bounds, Timestamp::UNIX_EPOCH)? {
            Decoded::Result(result) => Ok(result),
            Decoded::Unordered(node) => panic!("{node} has a stamp"),
        }
    }

    fn packed(body: impl Read) -> Vec<u8> {
        zstd::encode_all(body, 3).unwrap()
    }

    /// Goal: version 2 is byte-exact: what is read is written the same, value and error alike.
    #[test]
    fn version_2_is_byte_exact() {
        for fixture in [V2.trim_end(), V2_ERROR.trim_end()] {
            let result = read(fixture.as_bytes()).unwrap();
            assert_eq!(
                String::from_utf8(result.encode().unwrap()).unwrap(),
                fixture
            );
        }
    }

    /// Goal: a result of 2010 is read as its client wrote it: text formatted, errors without a plugin.
    #[test]
    fn results_of_2010_are_understood() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let bounds = Bounds {
            bytes_max: 1_000_000,
            amplification_max: 100,
        };
        let origin = origin(V1_OUTPUT.as_bytes(), None);
        let unordered = decode(&origin, bounds, now).unwrap();
        assert!(
            matches!(unordered, Decoded::Unordered(node) if node.as_str() == "web01.example.com")
        );
        let result = stamped(&origin, bounds, now).unwrap();
        assert_eq!(result.node.as_str(), "web01.example.com");
        assert_eq!(result.plugin.unwrap().as_str(), "rpms");
        assert_eq!(
            (result.seq.0, result.collected_at),
            (1_800_000_000_000_000, now)
        );
        assert_eq!(result.format, Format::Output);
        let Content::Value { json, .. } = result.content else {
            panic!("no value")
        };
        assert_eq!(json.get(), r#"["bash-5.1.8-6.el9","openssl-3.0.7-1.el9"]"#);

        let error = read(V1_ERROR.as_bytes()).unwrap();
        assert!(error.plugin.is_none());
        let Content::Error(error) = error.content else {
            panic!("no error")
        };
        assert_eq!(
            error.message,
            "Plugin foo is not authorized for this host. Ignoring"
        );
    }

    /// Goal: every way in which a message can be wrong has its own reason.
    #[test]
    fn bad_messages_have_named_reasons() {
        let cases: [(&[u8], &str); 17] = [
            (b"", "not_json"),
            (b"\xff\xfe", "not_json"),
            (br#"{"v":2,"node":"web01","#, "not_json"),
            (b"[2]", "bad_shape"),
            (br#"{"v":3,"node":"a"}"#, "bad_version"),
            (br#"{"v":"x"}"#, "bad_shape"),
            (br#"{"v":2,"node":"a"}"#, "bad_shape"),
            (br#"{"v":2,"node":"a","plugin":"p","seq":1,"collected_at":"2026-11-22T12:00:00Z","format":"json"}"#, "bad_shape"),
            (br#"{"v":2,"node":"a","plugin":"p","seq":1,"hash":"","value":1}"#, "bad_shape"),
            (br#"{"v":2,"node":"a","plugin":"p","seq":1,"value":"\ud800"}"#, "bad_value"),
            (br#"{"v":2,"node":"a","plugin":"p","seq":1,"collected_at":"yesterday","value":1}"#, "bad_shape"),
            (br#"{"v":2,"node":"","plugin":"p","seq":1,"collected_at":"2026-11-22T12:00:00Z","format":"json","hash":"x","value":1}"#, "bad_node_name"),
            (br#"{"v":2,"node":"_a","plugin":"p","seq":1,"collected_at":"2026-11-22T12:00:00Z","format":"json","hash":"x","value":1}"#, "bad_node_name"),
            (br#"{"v":2,"node":"a","plugin":"vogeler","seq":1,"collected_at":"2026-11-22T12:00:00Z","format":"json","hash":"x","value":1}"#, "bad_plugin_name"),
            (br#"{"syskey":"a\u0000b","format":"raw","p":"x"}"#, "bad_node_name"),
            (br#"{"syskey":"a","format":"pickle","p":"x"}"#, "bad_shape"),
            (br#"{"syskey":"a","format":"json","p":"{"}"#, "bad_value"),
        ];
        for (body, reason) in cases {
            let error = read(body).unwrap_err();
            assert_eq!(
                error.reason(),
                reason,
                "{}: {error}",
                String::from_utf8_lossy(body)
            );
            assert!(DecodeError::REASONS.contains(&reason));
        }
    }

    /// Goal: an error says what is wrong without repeating a message of any size: it goes to logs, receipts and headers.
    #[test]
    fn errors_are_short_whatever_came() {
        let long = "x".repeat(500_000);
        for body in [
            format!(r#"{{"v":"{long}"}}"#),
            format!(r#"{{"v":2,"node":"a","plugin":"p","seq":"{long}","value":1}}"#),
            format!(r#"{{"syskey":"a","format":"{long}","p":1}}"#),
            format!(r#"{{"syskey":"a","format":"json","{long}":1,"q":1}}"#),
            format!(r#"{{"syskey":"a","format":"csv","p":"{long},{long}\n1,2\n"}}"#),
            format!(r#"{{"syskey":"a","format":"yaml","p":"a: *{long}\n"}}"#),
        ] {
            let error = read(body.as_bytes()).unwrap_err().to_string();
            assert!(error.len() < 2_000, "{} bytes", error.len());
        }
    }

    /// Goal: a value that is JSON null is a value; no value is an error.
    #[test]
    fn null_is_a_value() {
        let body = br#"{"v":2,"node":"a","plugin":"p","seq":1,"collected_at":"2026-11-22T12:00:00Z","format":"json","hash":"x","value":null}"#;
        assert!(matches!(read(body).unwrap().content, Content::Value { .. }));
    }

    /// Goal: packed bodies are read, and neither a bomb nor rubbish costs more than the bound.
    #[test]
    fn packed_bodies_are_bounded() {
        assert!(within(1_000_000, &packed(V2.as_bytes()), Some("zstd")).is_ok());
        let bomb = packed(std::io::repeat(b' ').take(50_000_000));
        let error = within(100_000, &bomb, Some("zstd")).unwrap_err();
        assert!(
            matches!(
                error,
                DecodeError::TooLarge {
                    bytes: 100_001,
                    max: 100_000
                }
            ),
            "{error}"
        );
        for (body, encoding, reason) in [
            (&b"rubbish"[..], Some("zstd"), "bad_compression"),
            (b"{}", Some("br"), "bad_encoding"),
        ] {
            let error = within(100_000, body, encoding).unwrap_err();
            assert_eq!(error.reason(), reason);
        }
        assert_eq!(
            within(9, b"0123456789", None).unwrap_err().reason(),
            "too_large"
        );
    }

    fn v1(format: &str, text: &str) -> Vec<u8> {
        serde_json::json!({"syskey": "a", "format": format, "p": text})
            .to_string()
            .into_bytes()
    }

    /// Goal: a message that grows a hundredfold and past a mebibyte is refused with the numbers, whether zstd, an alias
    /// or a heading makes it grow. A message that packs as well as real output does, or stays small, is taken.
    #[test]
    fn amplification_is_bounded() {
        const MAX: usize = 8_000_000;
        let zeros = "0".repeat(5_000_000);
        let alias = format!(
            "a: &a {}\nb: [{}]\n",
            "x".repeat(10_000),
            vec!["*a"; 300].join(",")
        );
        let heading = format!("{}\n{}", "h".repeat(5_000), "1\n".repeat(3_000));
        for (body, encoding) in [
            (packed(&*v1("raw", &zeros)), Some("zstd")),
            (v1("yaml", &alias), None),
            (v1("csv", &heading), None),
            (packed(&*v1("csv", &heading)), Some("zstd")),
        ] {
            let size = body.len();
            let error = within(MAX, &body, encoding).unwrap_err();
            assert_eq!(error.reason(), "amplification", "{error}");
            let (max, text) = (AMPLIFIED_BYTES_FREE.max(size * 100), error.to_string());
            assert!(text.contains(&format!("{size} bytes long")), "{text}");
            assert!(text.contains(&format!("more than {max} bytes")), "{text}");
        }
        // Below the free mebibyte any ratio is taken; real lists pack 5 to 20 fold at any size.
        let small = packed(&*v1("raw", &zeros[..1_000_000]));
        assert!(within(MAX, &small, Some("zstd")).is_ok());
        let line = |n: u64| format!("package-{}-{n}.el9.x86_64\n", n * 7919 % 100_003);
        let list: String = (0..120_000).map(line).collect();
        let body = packed(&*v1("output", &list));
        assert!(list.len() > 3_000_000 && list.len() > 4 * body.len());
        assert!(within(MAX, &body, Some("zstd")).is_ok());
    }

    /// Goal: what is large, or becomes large, is decoded elsewhere; a packed result of usual size is not.
    #[test]
    fn what_becomes_large_is_heavy() {
        let zeros = "0".repeat(1_000_000);
        let small = zstd::bulk::compress(V2.as_bytes(), 3).unwrap();
        let large = zstd::bulk::compress(zeros.as_bytes(), 3).unwrap();
        // A skippable frame of no bytes: it claims to have no content.
        let skipped = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
        for (body, encoding, expected) in [
            ([&skipped[..], &large].concat(), Some("zstd"), true),
            ([&small[..], &large].concat(), Some("zstd"), true),
            ([&small[..], &small].concat(), Some("zstd"), true),
            (V2.as_bytes().to_vec(), None, false),
            (small.clone(), Some("zstd"), false),
            (zeros.clone().into_bytes(), None, true),
            (large.clone(), Some("zstd"), true),
            (packed(zeros.as_bytes()), Some("zstd"), true),
            (b"rubbish".to_vec(), Some("zstd"), true),
        ] {
            assert_eq!(
                is_heavy(&origin(&body, encoding)),
                expected,
                "{} bytes",
                body.len()
            );
        }
    }

    /// Goal: hostile nesting, in whatever member or format, is a dead letter that counts the levels; 64 are taken.
    #[test]
    fn nesting_is_bounded_in_both_versions() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let v2 = |member: &str, depth: usize| {
            let value = if member == "value" {
                ""
            } else {
                r#""value":1,"#
            };
            let nested = nested(depth);
            format!(
                r#"{{"v":2,"node":"a","plugin":"p","seq":1,"hash":"x",{value}"{member}":{nested}}}"#
            )
        };
        let structured =
            |depth| format!(r#"{{"syskey":"a","format":"json","p":{}}}"#, nested(depth));
        let text = |format| move |depth| String::from_utf8(v1(format, &nested(depth))).unwrap();
        let cases: [&dyn Fn(usize) -> String; 5] = [
            &|depth| v2("value", depth),
            &|depth| v2("later", depth),
            &structured,
            &text("json"),
            &text("yaml"),
        ];
        for (index, case) in cases.into_iter().enumerate() {
            assert!(read(case(64).as_bytes()).is_ok(), "case {index}");
            for depth in [65, 60_000] {
                let error = read(case(depth).as_bytes()).unwrap_err();
                assert_eq!(error.reason(), "nesting", "case {index}: {error}");
                let count = if index == 4 {
                    "more".to_owned()
                } else {
                    depth.to_string()
                };
                let expected = format!("64 levels at most, this has {count}");
                assert!(
                    error.to_string().contains(&expected),
                    "case {index}: {error}"
                );
            }
        }
    }

    /// Goal: a script's result without a sequence has no place in the order until its first arrival is known, which then
    /// is its sequence.
    #[test]
    fn a_missing_sequence_is_that_of_the_arrival() {
        for seq in ["", r#""seq":null,"#] {
            let body = format!(r#"{{"v":2,"node":"a","plugin":"p",{seq}"value":1}}"#);
            let bounds = Bounds {
                bytes_max: 1_000_000,
                amplification_max: 100,
            };
            let new = decode(
                &origin(body.as_bytes(), None),
                bounds,
                Timestamp::UNIX_EPOCH,
            );
            assert!(matches!(new, Ok(Decoded::Unordered(node)) if node.as_str() == "a"));
            let now = Timestamp::from_microsecond(1_800_000_000_000_007).unwrap();
            let result = stamped(&origin(body.as_bytes(), None), bounds, now).unwrap();
            assert_eq!(
                (result.seq.0, result.collected_at),
                (1_800_000_000_000_007, now)
            );
        }
    }

    /// Goal: a script needs node, plugin and value; the hash is the one that a client would have sent.
    #[test]
    fn what_a_script_leaves_out_is_computed() {
        let short =
            read(br#"{"v":2,"node":"a","plugin":"p","seq":1,"value":{"b":[1.0],"a":null}}"#);
        let short = short.unwrap();
        assert_eq!(
            (short.format, short.collected_at),
            (Format::Json, Timestamp::UNIX_EPOCH)
        );
        let value = serde_json::value::RawValue::from_string(r#"{"a":null,"b":[1]}"#.to_owned());
        let expected = crate::hash::content_hash(&value.unwrap(), &[]).unwrap();
        assert!(matches!(short.content, Content::Value { hash, .. } if hash == expected));
    }

    proptest! {
        /// No bytes make the decoder panic; cut-off messages are errors.
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..400_usize) {
            drop(read(&bytes));
            let cut = cut.min(V2.trim_end().len() - 1);
            prop_assert!(read(&V2.as_bytes()[..cut]).is_err());
        }
    }
}
