//! Selects dead letters. Pure.

use jiff::Timestamp;

use super::letter::Letter;

/// Shortest prefix of an id that names letters, in characters.
pub const ID_CHARACTERS_MIN: usize = 4;

/// A letter matches if all conditions set here hold. An empty filter matches every letter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Any of these: ids, prefixes of ids of at least [`ID_CHARACTERS_MIN`], or the senders' message ids.
    pub ids: Vec<String>,
    /// The whole reason.
    pub reason: Option<String>,
    /// The whole node name.
    pub node: Option<String>,
    /// The whole plugin name.
    pub plugin: Option<String>,
    /// Became a dead letter at this time or later. A letter without a time is neither since nor before any time.
    pub since: Option<Timestamp>,
    /// Became a dead letter before this time.
    pub before: Option<Timestamp>,
}

impl Filter {
    /// Whether no condition is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether `letter` matches.
    pub fn matches(&self, letter: &Letter) -> bool {
        let is = |wanted: &Option<String>, found: &Option<String>| {
            wanted.is_none() || wanted.as_deref() == found.as_deref()
        };
        (self.ids.is_empty() || self.ids.iter().any(|id| is_named(letter, id)))
            && is(&self.reason, &letter.reason)
            && is(&self.node, &letter.node)
            && is(&self.plugin, &letter.plugin)
            && self
                .since
                .is_none_or(|since| letter.time.is_some_and(|time| time >= since))
            && self
                .before
                .is_none_or(|before| letter.time.is_some_and(|time| time < before))
    }
}

/// Whether `id` names `letter`.
fn is_named(letter: &Letter, id: &str) -> bool {
    letter.message_id.as_deref() == Some(id)
        || (id.len() >= ID_CHARACTERS_MIN && letter.id.starts_with(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Properties;
    use crate::dead::header;

    fn letter(node: Option<&str>, time: Option<&str>) -> Letter {
        let mut properties = Properties {
            message_id: Some("m/1".to_owned()),
            ..Properties::default()
        };
        let mut set = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                properties.headers.insert(name.to_owned(), value.to_owned());
            }
        };
        set(header::NODE, node);
        set(header::TIME, time);
        set(header::REASON, Some("forbidden"));
        Letter::read(b"x", &properties)
    }

    /// Goal: each condition matches the letters it names, and no others.
    #[test]
    fn conditions_hold_for_what_they_name() {
        let found = letter(Some("web01"), Some("2026-11-22T12:00:00Z"));
        let none = Filter::default;
        let text = |text: &str| Some(text.to_owned());
        let at = |time: &str| time.parse().ok();
        let yes = [
            none(),
            Filter {
                ids: vec!["m/1".to_owned()],
                ..none()
            },
            Filter {
                ids: vec!["nope".to_owned(), found.id[..4].to_owned()],
                ..none()
            },
            Filter {
                node: text("web01"),
                reason: text("forbidden"),
                ..none()
            },
            Filter {
                since: at("2026-11-22T12:00:00Z"),
                before: at("2026-11-22T12:00:01Z"),
                ..none()
            },
        ];
        let no = [
            Filter {
                ids: vec![found.id[..3].to_owned()],
                ..none()
            },
            Filter {
                node: text("web0"),
                ..none()
            },
            Filter {
                plugin: text("rpms"),
                ..none()
            },
            Filter {
                reason: text("not_json"),
                node: text("web01"),
                ..none()
            },
            Filter {
                before: at("2026-11-22T12:00:00Z"),
                ..none()
            },
            Filter {
                since: at("2026-11-22T12:00:01Z"),
                ..none()
            },
        ];
        assert!(yes[0].is_empty() && !yes[1].is_empty());
        for filter in yes {
            assert!(filter.matches(&found), "{filter:?}");
        }
        for filter in no {
            assert!(!filter.matches(&found), "{filter:?}");
        }
    }

    /// Goal: a letter without a time of death matches a filter without times, and no filter with one.
    #[test]
    fn a_letter_without_a_time_is_at_no_time() {
        let timeless = letter(None, None);
        assert!(Filter::default().matches(&timeless));
        let since = Filter {
            since: "1970-01-01T00:00:00Z".parse().ok(),
            ..Filter::default()
        };
        let before = Filter {
            before: "2970-01-01T00:00:00Z".parse().ok(),
            ..Filter::default()
        };
        assert!(!since.matches(&timeless) && !before.matches(&timeless));
    }
}
