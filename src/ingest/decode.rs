//! Decoding: bytes of a delivery in, a result out. Pure.
//!
//! Unpacks zstd within the size bound, then reads either wire version. Every failure has a named reason and ends
//! as a dead letter; nothing here panics on any bytes.

use std::borrow::Cow;
use std::io::Read;

use jiff::Timestamp;

use super::ticket::Origin;
use crate::wire::{DecodeError, PluginResult};

/// Reads the result in `origin`, whose body unpacked may have `bytes_max` bytes.
pub(super) fn decode(
    origin: &Origin,
    bytes_max: usize,
    now: Timestamp,
) -> Result<PluginResult, DecodeError> {
    let body = unpack(origin, bytes_max)?;
    PluginResult::decode(&body, now)
}

fn unpack(origin: &Origin, bytes_max: usize) -> Result<Cow<'_, [u8]>, DecodeError> {
    if origin.body.len() > bytes_max {
        return Err(DecodeError::TooLarge {
            bytes: origin.body.len(),
            max: bytes_max,
        });
    }
    match origin.properties.content_encoding.as_deref() {
        None | Some("" | "identity" | "utf-8") => Ok(Cow::Borrowed(&origin.body)),
        Some("zstd") => unpack_zstd(&origin.body, bytes_max).map(Cow::Owned),
        Some(encoding) => Err(DecodeError::Encoding {
            encoding: encoding.to_owned(),
        }),
    }
}

/// Reads one byte past the bound at most, so that a small bomb stays small.
fn unpack_zstd(body: &[u8], bytes_max: usize) -> Result<Vec<u8>, DecodeError> {
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
    if unpacked.len() > bytes_max {
        return Err(DecodeError::TooLarge {
            bytes: unpacked.len(),
            max: bytes_max,
        });
    }
    Ok(unpacked)
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
        decode(&origin(body, None), 1_000_000, Timestamp::UNIX_EPOCH)
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
        let result = decode(&origin(V1_OUTPUT.as_bytes(), None), 1_000_000, now).unwrap();
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
        let cases: [(&[u8], &str); 15] = [
            (b"", "not_json"),
            (b"\xff\xfe", "not_json"),
            (br#"{"v":2,"node":"web01","#, "not_json"),
            (b"[2]", "bad_shape"),
            (br#"{"v":3,"node":"a"}"#, "bad_version"),
            (br#"{"v":"x"}"#, "bad_shape"),
            (br#"{"v":2,"node":"a"}"#, "bad_shape"),
            (br#"{"v":2,"node":"a","plugin":"p","seq":1,"collected_at":"2026-11-22T12:00:00Z","format":"json"}"#, "bad_shape"),
            (br#"{"v":2,"node":"a","plugin":"p","seq":1,"collected_at":"2026-11-22T12:00:00Z","format":"json","value":1}"#, "bad_shape"),
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

    /// Goal: a value that is JSON null is a value; no value is an error.
    #[test]
    fn null_is_a_value() {
        let body = br#"{"v":2,"node":"a","plugin":"p","seq":1,"collected_at":"2026-11-22T12:00:00Z","format":"json","hash":"x","value":null}"#;
        assert!(matches!(read(body).unwrap().content, Content::Value { .. }));
    }

    /// Goal: packed bodies are read, and neither a bomb nor rubbish costs more than the bound.
    #[test]
    fn packed_bodies_are_bounded() {
        let packed = zstd::encode_all(V2.as_bytes(), 3).unwrap();
        assert!(
            decode(
                &origin(&packed, Some("zstd")),
                1_000_000,
                Timestamp::UNIX_EPOCH
            )
            .is_ok()
        );
        let bomb = zstd::encode_all(std::io::repeat(b' ').take(50_000_000), 3).unwrap();
        let error =
            decode(&origin(&bomb, Some("zstd")), 100_000, Timestamp::UNIX_EPOCH).unwrap_err();
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
        let error = decode(
            &origin(b"rubbish", Some("zstd")),
            100_000,
            Timestamp::UNIX_EPOCH,
        )
        .unwrap_err();
        assert_eq!(error.reason(), "bad_compression");
        let error = decode(&origin(b"{}", Some("br")), 100_000, Timestamp::UNIX_EPOCH).unwrap_err();
        assert_eq!(error.reason(), "bad_encoding");
        let error = decode(&origin(b"0123456789", None), 9, Timestamp::UNIX_EPOCH).unwrap_err();
        assert_eq!(error.reason(), "too_large");
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
