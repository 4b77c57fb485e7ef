//! What a lapin error means for the caller: wait and try again, or fix a setting. Nothing here holds credentials:
//! lapin's errors carry what the broker said, and the broker never repeats a password.

use lapin::ErrorKind;

use crate::broker::BrokerError;

/// The AMQP reply codes that we tell apart.
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const RESOURCE_LOCKED: u16 = 405;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;
/// What RabbitMQ says, with the code of refused access, where another consumer is exclusive.
const EXCLUSIVE_USE: &str = "in exclusive use";

/// Why an operation at the broker failed, without the name of what it was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Not reachable, or the connection or channel broke: the same may work later.
    Away(String),
    /// Credentials, virtual host or permissions.
    Refused(String),
    /// It exists with other arguments.
    Mismatch(String),
    /// One message is larger than the broker takes; the channel that carried it is closed.
    TooLarge {
        /// The most that the broker takes, in bytes.
        bytes_max: u64,
        reason: String,
    },
    /// It does not exist.
    Missing(String),
    /// It belongs to another connection.
    Locked(String),
    /// Another consumer has it for itself.
    InUse(String),
    /// Closed by us.
    Closed,
}

impl Trouble {
    /// The operation took longer than `limit`.
    pub(super) fn timeout(what: &str, limit: std::time::Duration) -> Self {
        Self::Away(format!("{what} took longer than {limit:?}"))
    }

    /// What went wrong, in the broker's or the connection's words.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Away(reason)
            | Self::Refused(reason)
            | Self::Mismatch(reason)
            | Self::Missing(reason)
            | Self::Locked(reason)
            | Self::InUse(reason)
            | Self::TooLarge { reason, .. } => reason,
            Self::Closed => "closed",
        }
    }

    /// As the caller's error: `broker` is the address, `name` what the operation was about.
    pub(super) fn into_error(self, broker: &str, name: &str) -> BrokerError {
        let (broker, name) = (broker.to_owned(), name.to_owned());
        match self {
            // Only the publisher of a message knows whether that one was too large: see `of_message`.
            Self::Away(reason) | Self::Missing(reason) | Self::TooLarge { reason, .. } => {
                BrokerError::Away { broker, reason }
            }
            Self::Refused(reason) => BrokerError::Refused { broker, reason },
            Self::Mismatch(reason) => BrokerError::Mismatch { name, reason },
            Self::Locked(reason) => BrokerError::Locked { name, reason },
            Self::InUse(reason) => BrokerError::InUse { name, reason },
            Self::Closed => BrokerError::Closed,
        }
    }

    /// As the error of one message of `bytes` bytes: the broker closes the channel for a message that is too large, and
    /// all others on it fail alike. They are only unlucky, and may be sent again.
    pub(super) fn of_message(self, broker: &str, exchange: &str, bytes: usize) -> BrokerError {
        let bytes = bytes as u64;
        match self {
            Self::TooLarge { bytes_max, reason } if bytes > bytes_max => BrokerError::TooLarge {
                bytes,
                bytes_max,
                reason,
            },
            other => other.into_error(broker, exchange),
        }
    }
}

/// Reads `message size 2048 is larger than configured max size 1024`, as RabbitMQ says it since 3.8.
fn message_bytes_max(reason: &str) -> Option<u64> {
    let (_, rest) = reason.split_once("message size ")?;
    let (_, bytes_max) = rest.split_once("max size ")?;
    let digits = bytes_max.find(|character: char| !character.is_ascii_digit());
    bytes_max[..digits.unwrap_or(bytes_max.len())].parse().ok()
}

impl From<lapin::Error> for Trouble {
    fn from(error: lapin::Error) -> Self {
        let reason = error.to_string();
        let ErrorKind::ProtocolError(protocol) = error.kind() else {
            return Self::Away(reason);
        };
        let reason = protocol.get_message().to_string();
        match protocol.get_id() {
            ACCESS_REFUSED if reason.contains(EXCLUSIVE_USE) => Self::InUse(reason),
            ACCESS_REFUSED | NOT_ALLOWED => Self::Refused(reason),
            PRECONDITION_FAILED => match message_bytes_max(&reason) {
                Some(bytes_max) => Self::TooLarge { bytes_max, reason },
                None => Self::Mismatch(reason),
            },
            NOT_FOUND => Self::Missing(reason),
            RESOURCE_LOCKED => Self::Locked(reason),
            _ => Self::Away(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPHardError, AMQPSoftError};

    use super::*;

    /// Goal: each reply code that RabbitMQ gives leads to the error that tells the operator what to do.
    #[test]
    fn reply_codes_become_errors() {
        let soft = |kind: AMQPSoftError| AMQPError::new(kind.into(), "said".into());
        let of = |error| Trouble::from(lapin::Error::from(ErrorKind::ProtocolError(error)));
        let said = || "said".to_owned();
        assert_eq!(
            of(soft(AMQPSoftError::ACCESSREFUSED)),
            Trouble::Refused(said())
        );
        assert_eq!(
            of(soft(AMQPSoftError::PRECONDITIONFAILED)),
            Trouble::Mismatch(said())
        );
        assert_eq!(of(soft(AMQPSoftError::NOTFOUND)), Trouble::Missing(said()));
        assert_eq!(
            of(soft(AMQPSoftError::RESOURCELOCKED)),
            Trouble::Locked(said())
        );
        let told = |kind: AMQPSoftError, text: &str| of(AMQPError::new(kind.into(), text.into()));
        let text = "ACCESS_REFUSED - queue 'q' in vhost 'v' in exclusive use";
        let in_use = told(AMQPSoftError::ACCESSREFUSED, text);
        assert_eq!(in_use, Trouble::InUse(text.to_owned()));
        assert!(matches!(
            in_use.into_error("h", "q"),
            BrokerError::InUse { .. }
        ));
        let vhost = AMQPError::new(AMQPHardError::NOTALLOWED.into(), "said".into());
        assert_eq!(of(vhost), Trouble::Refused(said()));
        let io = lapin::Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        let error = Trouble::from(io).into_error("10.0.0.1:5672", "");
        assert!(
            error.is_retryable() && error.to_string().contains("10.0.0.1:5672"),
            "{error}"
        );
    }

    /// Goal: a message that the broker finds too large is told apart from a queue's other arguments, and from the
    /// messages that only shared its channel.
    #[test]
    fn a_message_too_large_is_the_only_one_to_blame() {
        for configured in ["configured ", ""] {
            let text = format!(
                "PRECONDITION_FAILED - message size 2048 is larger than {configured}max size 1024"
            );
            let error = AMQPError::new(AMQPSoftError::PRECONDITIONFAILED.into(), text.into());
            let trouble = Trouble::from(lapin::Error::from(ErrorKind::ProtocolError(error)));
            let of = |bytes| trouble.clone().of_message("h", "x", bytes);
            assert!(
                matches!(
                    of(2048),
                    BrokerError::TooLarge {
                        bytes: 2048,
                        bytes_max: 1024,
                        ..
                    }
                ),
                "{}",
                of(2048)
            );
            assert!(!of(2048).is_retryable());
            assert!(matches!(of(1024), BrokerError::Away { .. }), "{}", of(1024));
        }
    }
}
