//! The contract of [`Store`](vogeler::store::Store): every rule holds on every store.
//!
//! Each rule is a function of a [`Place`]; the macro below makes a test of it in memory, on SQLite, on pouchdb-server
//! over HTTP, and on a real CouchDB where `VOGELER_TEST_COUCH` names one.

mod couch;
mod hostile;
pub(crate) mod place;
mod queries;
mod sqlite;

use futures::FutureExt;
use futures::future::join_all;
use serde_json::json;
use vogeler::store::{Designs, Revision, Verdict, Verdicts};

use place::{Place, designs, node, stored, write};

/// Runs `rule` in `place` and cleans up, also when the rule panics.
async fn hold(place: Option<Place>, rule: impl AsyncFnOnce(&Place)) {
    let Some(place) = place else { return };
    let outcome = std::panic::AssertUnwindSafe(rule(&place))
        .catch_unwind()
        .await;
    place.tear_down().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Makes a test of each rule in each place.
macro_rules! on_stores {
    ([$($place:ident)*] $rules:tt) => { $( $crate::store::on_stores!(@one $place $rules); )* };
    (@one $place:ident { $($rule:path as $name:ident;)* }) => {
        mod $place {
            $(
                #[tokio::test]
                async fn $name() {
                    let place = $crate::store::place::Place::$place().await;
                    $crate::store::hold(place, $rule).await;
                }
            )*
        }
    };
}
use on_stores;

mod contract {
    super::on_stores! { [memory sqlite pouchdb couchdb] {
        super::super::create_and_read as create_and_read;
        super::super::right_revision_updates as right_revision_updates;
        super::super::wrong_revision_conflicts as wrong_revision_conflicts;
        super::super::missing_revision_conflicts as missing_revision_conflicts;
        super::super::rows_are_settled_one_by_one as rows_are_settled_one_by_one;
        super::super::repeated_id_conflicts as repeated_id_conflicts;
        super::super::oversize_among_good_ones as oversize_among_good_ones;
        super::super::many_are_loaded as many_are_loaded;
        super::super::many_are_written as many_are_written;
        super::super::deletion_by_somebody_else as deletion_by_somebody_else;
        super::super::edit_by_somebody_else as edit_by_somebody_else;
        super::super::foreign_content_survives as foreign_content_survives;
        super::super::odd_ids as odd_ids;
        super::super::of_racing_writes_one_wins as of_racing_writes_one_wins;
        super::super::hostile::every_value_has_a_verdict as every_value_has_a_verdict;
        super::super::nothing_is_no_error as nothing_is_no_error;
        super::super::setup_is_idempotent as setup_is_idempotent;
        super::super::queries::stores_agree as queries_agree;
        super::super::queries::nodes_are_listed as nodes_are_listed;
        super::super::queries::every_node_is_listed_once as every_node_is_listed_once;
        super::super::queries::recent_changes_are_counted as recent_changes_are_counted;
        super::super::queries::changes_are_found_at_once as changes_are_found_at_once;
    } }
}

/// Goal: a new document is stored and read back whole, with the revision that the verdict named.
async fn create_and_read(place: &Place) {
    assert!(place.get("a").await.is_none());
    let revision = place.put("a", None, r#"{"v":{"n":[1,null,"é😀"]}}"#).await;
    assert!(revision.0.starts_with("1-"), "{revision:?}");
    let (read, members) = place.get("a").await.unwrap();
    assert_eq!(read, revision);
    assert_eq!(members["v"], json!({"n": [1, null, "é😀"]}));
}

/// Goal: naming the revision that is there replaces the whole document and gives a new revision.
async fn right_revision_updates(place: &Place) {
    let first = place.put("a", None, r#"{"v":1,"gone":1}"#).await;
    let second = place.put("a", Some(&first), r#"{"v":2}"#).await;
    assert!(second.0.starts_with("2-"), "{second:?}");
    let (read, members) = place.get("a").await.unwrap();
    assert_eq!((read, json!(members)), (second, json!({"v": 2})));
}

/// Goal: naming a revision that was overtaken, or never was, conflicts and changes nothing.
async fn wrong_revision_conflicts(place: &Place) {
    let first = place.put("a", None, r#"{"v":1}"#).await;
    let second = place.put("a", Some(&first), r#"{"v":2}"#).await;
    let never = Revision("2-00000000000000000000000000000000".into());
    for wrong in [&first, &never] {
        assert_eq!(
            place.write("a", Some(wrong), r#"{"v":3}"#).await,
            Verdict::Conflict
        );
    }
    assert_eq!(place.get("a").await.unwrap().0, second);
}

/// Goal: creating what is there conflicts and changes nothing.
async fn missing_revision_conflicts(place: &Place) {
    let first = place.put("a", None, r#"{"v":1}"#).await;
    assert_eq!(
        place.write("a", None, r#"{"v":3}"#).await,
        Verdict::Conflict
    );
    assert_eq!(place.get("a").await.unwrap().0, first);
}

/// Goal: in one call every document has its own verdict: good ones are stored beside conflicts and refusals.
async fn rows_are_settled_one_by_one(place: &Place) {
    let first = place.put("a", None, r#"{"v":1}"#).await;
    let verdicts = place
        .store
        .write(vec![
            write("a", None, r#"{"v":2}"#),
            write("b", None, r#"{"v":1}"#),
            write("c", None, "[1]"),
            write("d", None, r#"{"v":1}"#),
        ])
        .await
        .unwrap();
    assert_eq!(verdicts.len(), 4);
    assert_eq!(verdicts["a"], Verdict::Conflict);
    assert!(matches!(verdicts["c"], Verdict::Refused { .. }));
    assert_eq!(place.get("a").await.unwrap().0, first);
    for id in ["b", "d"] {
        assert_eq!(
            Verdict::Stored(place.get(id).await.unwrap().0),
            verdicts[id]
        );
    }
}

/// Goal: an id that comes twice in one call conflicts, and the second document is never what is stored.
async fn repeated_id_conflicts(place: &Place) {
    let twice = vec![
        write("a", None, r#"{"v":1}"#),
        write("b", None, r#"{"v":1}"#),
        write("a", None, r#"{"v":2}"#),
    ];
    let verdicts = place.store.write(twice).await.unwrap();
    assert_eq!(verdicts.len(), 2);
    assert_eq!(verdicts["a"], Verdict::Conflict);
    assert!(matches!(verdicts["b"], Verdict::Stored(_)));
    let there = place.get("a").await;
    assert!(there.is_none_or(|(_, members)| members["v"] == 1));
}

/// Goal: a document that is too large is refused by name, and its neighbours are stored.
async fn oversize_among_good_ones(place: &Place) {
    let Some(max) = place.document_bytes_max else {
        return;
    };
    let large = json!({"v": "x".repeat(max + 1000)}).to_string();
    let verdicts = place
        .store
        .write(vec![
            write("before", None, "{}"),
            write("too-big", None, &large),
            write("after", None, "{}"),
        ])
        .await
        .unwrap();
    let refused = &verdicts["too-big"];
    let is_named = |error: &str| error == "document_too_large";
    assert!(
        matches!(refused, Verdict::Refused { error, .. } if is_named(error)),
        "{refused:?}"
    );
    for id in ["before", "after"] {
        assert!(matches!(verdicts[id], Verdict::Stored(_)));
        assert!(place.get(id).await.is_some());
    }
    assert!(place.get("too-big").await.is_none());
}

fn names(count: usize) -> Vec<String> {
    (0..count)
        .map(|n| format!("node{n:04}.example.com"))
        .collect()
}

async fn write_all(place: &Place, names: &[String]) -> Verdicts {
    let document = |name: &String| write(name, None, &json!({"v": name}).to_string());
    let writes = names.iter().map(document).collect();
    place.store.write(writes).await.unwrap()
}

/// Goal: more documents than go into one request are loaded, and what is missing is just not there.
async fn many_are_loaded(place: &Place) {
    let names = names(450);
    let verdicts = write_all(place, &names).await;
    let mut ids: Vec<_> = names.iter().map(|name| node(name)).collect();
    ids.extend((0..50).map(|n| node(&format!("missing{n}"))));
    let found = place.store.load(&ids).await.unwrap();
    assert_eq!(found.len(), names.len());
    for name in &names {
        let document = &found[name.as_str()];
        assert_eq!(
            Verdict::Stored(document.revision.clone()),
            verdicts[name.as_str()]
        );
        assert!(document.json.get().contains(name.as_str()));
    }
}

/// Goal: verdicts are matched by id: pouchdb-server answers updates in another order than they came.
async fn many_are_written(place: &Place) {
    let names = names(300);
    let first = write_all(place, &names).await;
    let update = |name: &String| {
        let revision = stored(first[name.as_str()].clone());
        write(
            name,
            Some(&revision),
            &json!({"v": 2, "is": name}).to_string(),
        )
    };
    let updates = names.iter().rev().map(update).collect();
    let second = place.store.write(updates).await.unwrap();
    let ids: Vec<_> = names.iter().map(|name| node(name)).collect();
    let found = place.store.load(&ids).await.unwrap();
    for name in &names {
        let document = &found[name.as_str()];
        assert_eq!(
            Verdict::Stored(document.revision.clone()),
            second[name.as_str()]
        );
        assert!(document.json.get().contains(name.as_str()));
    }
}

/// Goal: what somebody else deleted is gone, a write on top of it conflicts, and it can be made again.
async fn deletion_by_somebody_else(place: &Place) {
    let first = place.put("a", None, r#"{"v":1}"#).await;
    place.put("b", None, r#"{"v":1}"#).await;
    place.other.delete("a").await;
    assert!(place.get("a").await.is_none());
    assert_eq!(
        place.write("a", Some(&first), r#"{"v":2}"#).await,
        Verdict::Conflict
    );
    assert!(place.get("a").await.is_none());
    let again = place.put("a", None, r#"{"v":3}"#).await;
    let (read, members) = place.get("a").await.unwrap();
    assert_eq!((read, &members["v"]), (again, &json!(3)));
}

/// Goal: somebody else's edit makes our revision an old one; read again, we write on top of it.
async fn edit_by_somebody_else(place: &Place) {
    let first = place.put("a", None, r#"{"v":1}"#).await;
    place.other.put("a", r#"{"v":1,"note":"theirs"}"#).await;
    assert_eq!(
        place.write("a", Some(&first), r#"{"v":2}"#).await,
        Verdict::Conflict
    );
    let (theirs, members) = place.get("a").await.unwrap();
    assert_eq!(members["note"], "theirs");
    place
        .put("a", Some(&theirs), r#"{"v":2,"note":"theirs"}"#)
        .await;
    assert_eq!(place.get("a").await.unwrap().1["v"], 2);
}

/// Goal: values that we do not understand mean the same after we read and wrote them.
async fn foreign_content_survives(place: &Place) {
    let theirs = json!({"Größe": {"a/b": [1, -2, 1.5, true, null, ""], "\u{1}": "\"\\\u{2028}"},
        "i64": 9_007_199_254_740_991_u64, "empty": [{}, []]});
    place.other.put("a", &theirs.to_string()).await;
    let (revision, members) = place.get("a").await.unwrap();
    assert_eq!(json!(members), theirs);
    let mut ours = members;
    ours.insert("rpms".to_owned(), json!(["bash-5.1.8-6.el9"]));
    place
        .put("a", Some(&revision), &json!(ours).to_string())
        .await;
    let members = place.get("a").await.unwrap().1;
    assert_eq!(members, ours);
}

/// Goal: every allowed node name is an id that works, whatever it means in an address or in JSON.
async fn odd_ids(place: &Place) {
    let ids = [
        "名前.example",
        "a/b/c",
        "a+b%2Fc",
        "q\"uote",
        "back\\slash",
        "ä?&=;:@!",
        "..",
        "{}",
        "😀",
        "A",
        "a",
        "'--",
    ];
    for (index, id) in ids.iter().enumerate() {
        let first = place.put(id, None, &json!({"v": index}).to_string()).await;
        place
            .put(id, Some(&first), &json!({"v": index + 100}).to_string())
            .await;
    }
    for (index, id) in ids.iter().enumerate() {
        let (_, members) = place
            .get(id)
            .await
            .unwrap_or_else(|| panic!("{id:?} is not there"));
        assert_eq!(members["v"], index + 100, "{id:?}");
    }
}

/// Goal: of writes that name the same revision at the same time exactly one is stored.
async fn of_racing_writes_one_wins(place: &Place) {
    let mut revision = place.put("a", None, r#"{"v":0}"#).await;
    for round in 0..5 {
        let bodies: Vec<_> = (0..8)
            .map(|n| json!({"v": [round, n]}).to_string())
            .collect();
        let writes = bodies
            .iter()
            .map(|body| place.write("a", Some(&revision), body));
        let verdicts = join_all(writes).await;
        let mut won = verdicts
            .into_iter()
            .enumerate()
            .filter(|(_, verdict)| *verdict != Verdict::Conflict);
        let (winner, verdict) = won.next().unwrap();
        assert!(won.next().is_none());
        revision = stored(verdict);
        let (read, members) = place.get("a").await.unwrap();
        assert_eq!((&read, &members["v"]), (&revision, &json!([round, winner])));
    }
}

/// Goal: asking for nothing and writing nothing are answered with nothing.
async fn nothing_is_no_error(place: &Place) {
    assert!(place.store.load(&[]).await.unwrap().is_empty());
    assert!(place.store.write(Vec::new()).await.unwrap().is_empty());
}

/// Goal: a second set-up changes nothing and says so; documents stay.
async fn setup_is_idempotent(place: &Place) {
    let revision = place.put("a", None, "{}").await;
    let did = place
        .store
        .setup(Designs::Folder(&designs()))
        .await
        .unwrap();
    assert!(!did.is_empty());
    for line in &did {
        let is_done =
            !line.contains("created") && !line.contains("loaded") && !line.contains("updated _");
        assert!(is_done, "{line}");
    }
    assert_eq!(place.get("a").await.unwrap().0, revision);
}
