//! The labels with a closed set of values, as enums and as lists of known words.

use metrics::SharedString;

use super::label::{Label, OTHER, Values};
use super::metric::Role;
use crate::store::StoreError;
use crate::wire::{Content, DecodeError, ErrorKind};

/// Which values are exported before anything happens: all, unless `$start` is given.
macro_rules! at_start {
    () => {
        |_| Self::ALL.to_vec()
    };
    ($start:expr) => {
        $start
    };
}

/// An enum that is a label: each variant with its value.
macro_rules! label_enum {
    (
        $(#[$doc:meta])* $label:literal $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)+ }
        $(at start $start:expr)?
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// All values.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The label's value.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $value,)+ }
            }
        }

        impl Label for $name {
            const NAME: &'static str = $label;
            const COUNT: usize = Self::ALL.len();

            fn values() -> Values {
                Values::Closed(Self::ALL.iter().map(|value| value.as_str()).collect())
            }

            fn index(&self) -> usize {
                *self as usize
            }

            fn text(&self) -> SharedString {
                self.as_str().into()
            }

            fn at_start(role: Role) -> Vec<Self> {
                let start: fn(Role) -> Vec<Self> = at_start!($($start)?);
                start(role)
            }
        }
    };
}

/// A label whose values are words that arrive as text. A word that is not in the list becomes the list's last word.
macro_rules! label_words {
    ($(#[$doc:meta])* $label:literal $name:ident = $words:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name(usize);

        impl $name {
            const WORDS: &[&'static str] = $words;

            /// The label of this word.
            pub fn of_word(word: &str) -> Self {
                let known = Self::WORDS.iter().position(|known| *known == word);
                Self(known.unwrap_or(Self::WORDS.len() - 1))
            }
        }

        impl Label for $name {
            const NAME: &'static str = $label;
            const COUNT: usize = Self::WORDS.len();

            fn values() -> Values {
                Values::Closed(Self::WORDS.to_vec())
            }

            fn index(&self) -> usize {
                self.0
            }

            fn text(&self) -> SharedString {
                Self::WORDS.get(self.0).copied().unwrap_or(OTHER).into()
            }

            fn at_start(_: Role) -> Vec<Self> {
                (0..Self::WORDS.len()).map(Self).collect()
            }
        }
    };
}

label_enum! {
    /// Why a batch was cut.
    "reason" FlushReason {
        /// It has as many documents as a write may have.
        Count = "count",
        /// It has as many bytes as a write may have.
        Bytes = "bytes",
        /// It waited long enough for more.
        Linger = "linger",
        /// The server is stopping.
        Drain = "drain",
    }
}

label_enum! {
    /// A kind of store request.
    "kind" StoreRequest {
        /// Documents are read.
        Load = "load",
        /// Documents are written.
        Write = "write",
    }
}

label_enum! {
    /// Why a result was put into another queue.
    "reason" ForwardReason {
        /// It is of 2010, and got its sequence.
        Ordered = "ordered",
        /// Its node belongs to another partition.
        Moved = "moved",
    }
}

label_enum! {
    /// Why a request of several documents was taken apart.
    "reason" SplitReason {
        /// One document was named as the reason.
        Named = "named",
        /// One document is the reason, and is searched by halves.
        Bisect = "bisect",
        /// The request is too large.
        TooLarge = "too_large",
        /// It failed again and again while the store answers reads: one document may be the reason.
        Failed = "failed",
    }
}

label_enum! {
    /// What a server or client depends on; a client has no store.
    "part" Part {
        /// RabbitMQ.
        Broker = "broker",
        /// CouchDB.
        Store = "store",
    }
    at start |role| match role {
        Role::Client => vec![Self::Broker],
        Role::Server | Role::Both => Self::ALL.to_vec(),
    }
}

label_enum! {
    /// What a result says.
    "status" ResultStatus {
        /// A value.
        Ok = "ok",
        /// The plugin failed.
        Error = "error",
    }
}

impl From<&Content> for ResultStatus {
    fn from(content: &Content) -> Self {
        match content {
            Content::Value { .. } => Self::Ok,
            Content::Error(_) => Self::Error,
        }
    }
}

label_enum! {
    /// Whether a node was heard of lately.
    "state" NodeState {
        /// It was, within `server.stale_after`.
        Reporting = "reporting",
        /// It was not.
        Stale = "stale",
    }
    at start |_| Vec::new()
}

label_enum! {
    /// What a client did about a command.
    "outcome" CommandOutcome {
        /// It ran the plugin, or reported itself.
        Ran = "ran",
        /// It has no such plugin.
        UnknownPlugin = "unknown_plugin",
        /// The command may run only on nodes that it describes in a way this client does not know.
        Refused = "refused",
        /// The command came after its deadline.
        Expired = "expired",
        /// The command is for a group that this node is not in: an old binding brought it.
        NotMeant = "not_meant",
        /// The client was ended while the plugin ran for it: it is not run again.
        Interrupted = "interrupted",
        /// It was answered before the client was ended, and came again: its answer is safe.
        Repeated = "repeated",
        /// The message is no command.
        Invalid = "invalid",
        /// The client stopped, or could not keep the result: the command went back to the broker.
        Requeued = "requeued",
    }
}

label_enum! {
    /// How one execution of a plugin ended.
    "outcome" PluginOutcome {
        /// With a value.
        Ok = "ok",
        /// It could not be started.
        NotStarted = "not_started",
        /// With an exit status other than 0, or by a signal.
        ExitStatus = "exit_status",
        /// It was killed at its timeout.
        Timeout = "timeout",
        /// It printed too much.
        OutputTooLarge = "output_too_large",
        /// Its output is not what `result_format` says.
        BadOutput = "bad_output",
        /// In another failure.
        Failed = "failed",
    }
}

impl From<&Content> for PluginOutcome {
    fn from(content: &Content) -> Self {
        match content {
            Content::Value { .. } => Self::Ok,
            Content::Error(error) => match error.kind {
                ErrorKind::NotStarted => Self::NotStarted,
                ErrorKind::ExitStatus => Self::ExitStatus,
                ErrorKind::Timeout => Self::Timeout,
                ErrorKind::OutputTooLarge => Self::OutputTooLarge,
                ErrorKind::BadOutput => Self::BadOutput,
                ErrorKind::Refused
                | ErrorKind::Expired
                | ErrorKind::Interrupted
                | ErrorKind::Failed => Self::Failed,
            },
        }
    }
}

label_enum! {
    /// Why a client lost a result.
    "reason" SpoolLoss {
        /// The spool had no room.
        Full = "full",
        /// The disk took neither it nor, before, the mark that its plugin runs.
        Unwritable = "unwritable",
        /// Its file was damaged, and is set aside.
        Damaged = "damaged",
        /// Somebody deleted its file.
        Missing = "missing",
        /// The broker finds it too large, and no error could be put in its place.
        TooLarge = "too_large",
    }
}

label_enum! {
    /// How one try to publish a result ended.
    "outcome" PublishOutcome {
        /// The broker has it safe.
        Confirmed = "confirmed",
        /// No queue took it.
        Returned = "returned",
        /// It is larger than the broker takes: an error was put in its place.
        TooLarge = "too_large",
        /// It is unknown whether the broker has it, or it was refused.
        Failed = "failed",
    }
}

label_enum! {
    /// Why an HTTP request was not answered.
    "reason" HttpRefusal {
        /// It asked for another host.
        Host = "host",
        /// Its head did not come whole in time.
        Slow = "slow",
        /// Its connection was the oldest of too many.
        Crowded = "crowded",
    }
}

label_words! {
    /// Why a message is no result.
    "reason" DecodeReason = &DecodeError::REASONS
}

impl From<&DecodeError> for DecodeReason {
    fn from(error: &DecodeError) -> Self {
        Self::of_word(error.reason())
    }
}

label_words! {
    /// How a store request ended: `ok`, or the error of the request as a whole.
    "status" StoreStatus = &["ok", "away", "unauthorized", "no_database", "no_index", "protocol", "file", OTHER]
}

impl StoreStatus {
    /// The status of an answer.
    pub fn of<T>(answer: &Result<T, StoreError>) -> Self {
        Self::of_word(answer.as_ref().err().map_or("ok", StoreError::as_str))
    }
}

label_words! {
    /// Why a delivery became a dead letter: a reason of the decoder, or the store's word for a document.
    "reason" DeadLetterReason = &[
        "too_large", "amplification", "nesting", "bad_encoding", "bad_compression", "not_json", "bad_shape", "bad_version",
        "bad_node_name", "bad_plugin_name", "bad_value", "slot", "not_a_document", "bad_bookkeeping", "store_error", "forbidden", "unauthorized", "document_too_large",
        "bad_request", "doc_validation", "unknown_error", OTHER,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each of our words has its own value, and an unknown word of a store makes no new series.
    #[test]
    fn words_are_known_or_other() {
        for reason in DecodeError::REASONS {
            assert_eq!(DeadLetterReason::of_word(reason).text().as_ref(), reason);
            assert_eq!(DecodeReason::of_word(reason).text().as_ref(), reason);
        }
        assert_eq!(DeadLetterReason::of_word("surprise").text().as_ref(), OTHER);
        let away = StoreError::Away {
            store: String::new(),
            reason: String::new(),
            retry_after: None,
            is_answer: false,
        };
        assert_eq!(StoreStatus::of::<()>(&Err(away)).text().as_ref(), "away");
        assert_eq!(StoreStatus::of(&Ok(())).text().as_ref(), "ok");
    }
}
