//! Tests of what the runner reads out of node documents. The whole run is tested in tests/, on real services.

use super::*;
use crate::store::Revision;
use crate::wire::Outcome;

fn document(json: &str) -> StoredDocument {
    StoredDocument {
        revision: Revision("1-x".into()),
        json: RawValue::from_string(json.to_owned()).unwrap(),
    }
}

fn answer(run: &str, last_error: &str) -> Option<Answer> {
    let json = format!(
        r#"{{"_id":"a","rpms":[],"vogeler":{{"plugins":{{"rpms":{{"run":"{run}","last_error":{last_error}}}}}}}}}"#
    );
    let id = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
    answer_in(&document(&json), &"rpms".parse().unwrap(), id)
}

/// Goal: the run's id in a node document is an answer, with the error if there was one; another run's is not.
#[test]
fn documents_tell_of_lost_receipts() {
    let run = "01890a5d-ac96-774b-bcce-b302099a8057";
    assert_eq!(answer(run, "null"), Some(Answer::Answered(Outcome::Stored)));
    assert_eq!(answer("01890a5d-ac96-774b-bcce-000000000000", "null"), None);
    let error = r#"{"kind":"refused","message":"no plugin rpms"}"#;
    assert!(
        matches!(answer(run, error), Some(Answer::Refused(f)) if f.message == "no plugin rpms")
    );
    let error = r#"{"timestamp":"…","message":"broken"}"#;
    assert!(matches!(answer(run, error), Some(Answer::Failed(f)) if f.message == "broken"));
}

/// Goal: documents of other programs are no answer and no crash.
#[test]
fn foreign_documents_are_no_answer() {
    let id = RunId::generate();
    for json in [
        "{}",
        r#"{"vogeler":1}"#,
        r#"{"vogeler":{"plugins":[]}}"#,
        r#"{"vogeler":{"plugins":{"rpms":{}}}}"#,
    ] {
        assert_eq!(
            answer_in(&document(json), &"rpms".parse().unwrap(), id),
            None
        );
    }
}
