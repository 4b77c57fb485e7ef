//! Which broker this is, as it tells everyone who connects: the greeting (`connection.start`), before any login.
//!
//! lapin keeps the greeting to itself, so it is read here, on a connection of its own.

use futures::{AsyncReadExt, AsyncWriteExt};
use lapin::tcp::{AMQPUriTcpExt, OwnedTLSConfig};

use super::connection::Target;
use super::trouble::Trouble;

const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// Type, channel and size in front of a frame's payload.
const FRAME_HEADER_BYTES: usize = 7;
/// Longest greeting read; RabbitMQ's is about 500 bytes.
const GREETING_BYTES_MAX: usize = 16_384;

/// Product and version, such as `RabbitMQ 3.10.8`.
pub(super) async fn about(target: &Target) -> Result<String, Trouble> {
    crate::tls::install_crypto_provider();
    let greeting = target
        .within("reading the greeting", Box::pin(greeting(target)))
        .await?;
    let field = |name| text_field(&greeting, name);
    Ok(match (field("product"), field("version")) {
        (Some(product), Some(version)) => format!("{product} {version}"),
        (product, _) => product.unwrap_or_else(|| "an AMQP 0-9-1 broker".to_owned()),
    })
}

async fn greeting(target: &Target) -> Result<Vec<u8>, Trouble> {
    let (uri, runtime) = (target.uri()?, lapin::runtime::default_runtime()?);
    let tls = OwnedTLSConfig::default();
    let talk = async {
        let mut stream =
            AMQPUriTcpExt::connect_with_config_async(&uri, tls.as_ref(), &runtime).await?;
        stream.write_all(PROTOCOL_HEADER).await?;
        let mut header = [0; FRAME_HEADER_BYTES];
        stream.read_exact(&mut header).await?;
        let [_, _, _, size @ ..] = header;
        let size = usize::try_from(u32::from_be_bytes(size)).unwrap_or(usize::MAX);
        let mut greeting = vec![0; size.min(GREETING_BYTES_MAX)];
        stream.read_exact(&mut greeting).await?;
        Ok::<_, std::io::Error>(greeting)
    };
    talk.await.map_err(|error| Trouble::Away(error.to_string()))
}

/// The text of a field of the greeting's table: length and name, `S`, length and text.
pub(crate) fn text_field(greeting: &[u8], name: &str) -> Option<String> {
    let mut mark = vec![u8::try_from(name.len()).ok()?];
    mark.extend(name.as_bytes());
    mark.push(b'S');
    let start = greeting
        .windows(mark.len())
        .position(|window| window == mark)?
        + mark.len();
    let (length, rest) = greeting.get(start..)?.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    String::from_utf8(rest.get(..length)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: fields are found by name, and a greeting cut short or made up gives none rather than a panic.
    #[test]
    fn fields_are_read_from_the_table() {
        let greeting =
            b"\x00\x09\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x063.10.8";
        assert_eq!(text_field(greeting, "product").as_deref(), Some("RabbitMQ"));
        assert_eq!(text_field(greeting, "version").as_deref(), Some("3.10.8"));
        assert_eq!(text_field(greeting, "cluster"), None);
        let cut = greeting.get(..greeting.len() - 1).unwrap();
        assert_eq!(text_field(cut, "version"), None);
    }
}
