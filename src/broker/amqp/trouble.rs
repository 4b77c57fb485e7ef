//! What a lapin error means for the caller: wait and try again, or fix a setting. Nothing here holds credentials:
//! lapin's errors carry what the broker said, and the broker never repeats a password.

use lapin::ErrorKind;

use crate::broker::BrokerError;

/// AMQP's reply codes that are told apart.
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const RESOURCE_LOCKED: u16 = 405;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;

/// Why an operation at the broker failed, without the name of what it was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Not reachable, or the connection or channel broke: the same may work later.
    Away(String),
    /// Credentials, virtual host or permissions.
    Refused(String),
    /// It exists with other arguments.
    Mismatch(String),
    /// It does not exist.
    Missing(String),
    /// It belongs to another connection.
    Locked(String),
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
            | Self::Locked(reason) => reason,
            Self::Closed => "closed",
        }
    }

    /// As the caller's error: `broker` is the address, `name` what the operation was about.
    pub(super) fn into_error(self, broker: &str, name: &str) -> BrokerError {
        let (broker, name) = (broker.to_owned(), name.to_owned());
        match self {
            Self::Away(reason) | Self::Missing(reason) => BrokerError::Away { broker, reason },
            Self::Refused(reason) => BrokerError::Refused { broker, reason },
            Self::Mismatch(reason) => BrokerError::Mismatch { name, reason },
            Self::Locked(reason) => BrokerError::Locked { name, reason },
            Self::Closed => BrokerError::Closed,
        }
    }
}

impl From<lapin::Error> for Trouble {
    fn from(error: lapin::Error) -> Self {
        let reason = error.to_string();
        let ErrorKind::ProtocolError(protocol) = error.kind() else {
            return Self::Away(reason);
        };
        let reason = protocol.get_message().to_string();
        match protocol.get_id() {
            ACCESS_REFUSED | NOT_ALLOWED => Self::Refused(reason),
            PRECONDITION_FAILED => Self::Mismatch(reason),
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
        let vhost = AMQPError::new(AMQPHardError::NOTALLOWED.into(), "said".into());
        assert_eq!(of(vhost), Trouble::Refused(said()));
        let io = lapin::Error::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        let error = Trouble::from(io).into_error("10.0.0.1:5672", "");
        assert!(
            error.is_retryable() && error.to_string().contains("10.0.0.1:5672"),
            "{error}"
        );
    }
}
