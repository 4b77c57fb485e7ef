//! Rules that all stores share: what may be written, and how our own stores (memory, sqlite) count revisions. Pure.

use std::collections::HashSet;

use serde_json::value::RawValue;

use super::{Revision, Verdict, Verdicts, Write};

/// Largest document that our own stores take, in bytes: CouchDB's default `max_document_size`.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 8_000_000;
/// CouchDB's word, and ours, for a document that is too large.
pub(crate) const DOCUMENT_TOO_LARGE: &str = "document_too_large";
/// CouchDB's word for a request that is too large, even if it holds one document.
pub(crate) const REQUEST_TOO_LARGE: &str = "too_large";
/// Room that [`splice`] needs beyond the document's own text, in bytes: id, revision, keys.
pub(crate) const ENVELOPE_BYTES: usize = 320;
const REVISION_HEX_DIGITS: usize = 32;

/// The writes that may be sent, and the verdicts on those that may not: [`Verdict::Refused`] for a write that is no
/// JSON object. The second of two writes with one id is not sent; its id is in the last list.
pub(crate) fn admit(documents: Vec<Write>) -> Admitted {
    let mut admitted = Admitted::default();
    let mut seen = HashSet::with_capacity(documents.len());
    for document in documents {
        if !seen.insert(document.id.clone()) {
            admitted.repeated.push(document.id);
        } else if members(&document.json).is_some() {
            admitted.writes.push(document);
        } else {
            let verdict = refused("bad_request", "Document must be a JSON object");
            admitted.verdicts.insert(document.id, verdict);
        }
    }
    admitted
}

/// What [`admit`] found.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    /// One write per id.
    pub(crate) writes: Vec<Write>,
    /// Verdicts that need no store.
    pub(crate) verdicts: Verdicts,
    /// Ids that came twice.
    pub(crate) repeated: Vec<crate::wire::NodeName>,
}

impl Admitted {
    /// The verdicts of the whole call: the store's, ours, and a conflict for every id that came twice.
    pub(crate) fn conclude(mut self, from_store: Verdicts) -> Verdicts {
        self.verdicts.extend(from_store);
        let conflicts = self.repeated.into_iter().map(|id| (id, Verdict::Conflict));
        self.verdicts.extend(conflicts);
        self.verdicts
    }
}

/// A refusal in CouchDB's words.
pub(crate) fn refused(error: &str, reason: &str) -> Verdict {
    Verdict::Refused {
        error: error.to_owned(),
        reason: reason.to_owned(),
    }
}

/// The text between an object's braces, trimmed; none if it is no object.
pub(crate) fn members(json: &RawValue) -> Option<&str> {
    let text = json.get().trim();
    Some(text.strip_prefix('{')?.strip_suffix('}')?.trim())
}

/// Appends the document as a store keeps it: `_id`, `_rev` and the members, spliced without parsing a value.
pub(crate) fn splice(body: &mut String, id: &str, revision: Option<&str>, json: &RawValue) {
    body.push_str("{\"_id\":");
    push_string(body, id);
    if let Some(revision) = revision {
        body.push_str(",\"_rev\":");
        push_string(body, revision);
    }
    let members = members(json).unwrap_or_default();
    if !members.is_empty() {
        body.push(',');
        body.push_str(members);
    }
    body.push('}');
}

fn push_string(body: &mut String, text: &str) {
    body.push_str(&serde_json::Value::from(text).to_string());
}

/// The revision after `previous` with this content: the next generation, and a hash as in CouchDB, so that the same
/// edit of the same revision gives the same revision everywhere.
pub(crate) fn next_revision(previous: Option<&Revision>, json: &RawValue) -> Revision {
    let previous = previous.map_or("0-", |revision| &revision.0);
    let generation = previous
        .split_once('-')
        .and_then(|(generation, _)| generation.parse::<u64>().ok())
        .unwrap_or(0);
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous.as_bytes());
    hasher.update(b"\n");
    hasher.update(json.get().as_bytes());
    let hex = hasher.finalize().to_hex();
    let hash = &hex[..REVISION_HEX_DIGITS];
    Revision(format!("{}-{hash}", generation.saturating_add(1)).into())
}

/// The verdict of our own stores on a write before they do anything; none to go on. A revision without a document
/// (deleted by somebody else) is a conflict: the caller then reads that it is gone.
pub(crate) fn judge(
    write: &Write,
    current: Option<&Revision>,
    bytes_max: usize,
) -> Option<Verdict> {
    if write.json.get().len() > bytes_max {
        return Some(refused(DOCUMENT_TOO_LARGE, write.id.as_str()));
    }
    (write.revision.as_ref() != current).then_some(Verdict::Conflict)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    fn spliced(id: &str, revision: Option<&str>, json: &str) -> String {
        let mut body = String::new();
        splice(&mut body, id, revision, &raw(json));
        body
    }

    /// Goal: splicing makes one valid object and does not change the values' bytes.
    #[test]
    fn splicing_keeps_the_bytes_of_values() {
        assert_eq!(spliced("a", None, "{}"), r#"{"_id":"a"}"#);
        assert_eq!(
            spliced("q\"/é", Some("1-x"), r#" { "n": 1.10 , "b":[ ]} "#),
            r#"{"_id":"q\"/é","_rev":"1-x","n": 1.10 , "b":[ ]}"#
        );
    }

    /// Goal: a revision counts generations, and depends on the revision it replaces and on the content.
    #[test]
    fn revisions_count_and_differ() {
        let first = next_revision(None, &raw("{}"));
        let second = next_revision(Some(&first), &raw("{}"));
        assert!(
            first.0.starts_with("1-") && first.0.len() == 34,
            "{first:?}"
        );
        assert!(second.0.starts_with("2-"), "{second:?}");
        assert_ne!(next_revision(None, &raw(r#"{"a":1}"#)), first);
        assert_eq!(next_revision(None, &raw("{}")), first);
    }

    /// Goal: of two writes with one id, one is sent and the id conflicts; a write that is no object is refused alone.
    #[test]
    fn repeated_ids_conflict_and_non_objects_are_refused() {
        let write = |id: &str, json: &str| Write {
            id: id.parse().unwrap(),
            revision: None,
            json: raw(json),
        };
        let admitted = admit(vec![write("a", "{}"), write("b", "7"), write("a", "{}")]);
        assert_eq!(admitted.writes.len(), 1);
        let verdicts = admitted.conclude(Verdicts::new());
        assert_eq!(verdicts["a"], Verdict::Conflict);
        assert!(matches!(&verdicts["b"], Verdict::Refused { error, .. } if error == "bad_request"));
    }
}
