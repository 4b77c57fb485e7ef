//! What only a file can do: be missing, be opened twice, be somebody else's.

use std::path::Path;

use futures::future::join_all;
use serde_json::json;
use vogeler::config::{self, StoreDsn};
use vogeler::store::{self, Designs, StoreError, Verdict};

use super::place::{node, settings, stored, write};

fn at(path: &Path, create: bool) -> config::Store {
    let mut config = settings(StoreDsn::Sqlite(path.to_owned()));
    config.create = create;
    config
}

/// Goal: like a missing CouchDB database, a missing file is told by every call until set-up makes it.
#[tokio::test]
async fn missing_file_is_no_database_until_setup() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/vogeler.db");
    let store = store::open(&at(&path, false)).unwrap();
    let error = store.load(&[node("a")]).await.unwrap_err();
    assert!(matches!(error, StoreError::NoDatabase { .. }), "{error}");
    let error = store.write(vec![write("a", None, "{}")]).await.unwrap_err();
    assert!(matches!(error, StoreError::NoDatabase { .. }), "{error}");
    let did = store.setup(Designs::None).await.unwrap();
    assert_eq!(did, [format!("created sqlite:{}", path.display())]);
    let verdicts = store.write(vec![write("a", None, "{}")]).await.unwrap();
    assert!(matches!(verdicts["a"], Verdict::Stored(_)));
}

/// Goal: a file that was deleted under us is a missing database, not one that is written and lost.
#[tokio::test]
async fn vanished_file_is_no_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vogeler.db");
    let store = store::open(&at(&path, true)).unwrap();
    store.write(vec![write("a", None, "{}")]).await.unwrap();
    for end in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{end}", path.display())).ok();
    }
    let again = store::open(&at(&path, false)).unwrap();
    let error = again.write(vec![write("a", None, "{}")]).await.unwrap_err();
    assert!(matches!(error, StoreError::NoDatabase { .. }), "{error}");
}

/// Goal: two stores on one file, like two processes, lose no write of each other's: every increment counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_openers_lose_no_write() {
    const EACH: u64 = 40;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vogeler.db");
    let stores = [(); 2].map(|()| store::open(&at(&path, true)).unwrap());
    let first = stores[0].write(vec![write("a", None, r#"{"n":0}"#)]).await;
    stored(first.unwrap().remove("a").unwrap());
    let increments = stores.iter().map(async |store| {
        let mut done = 0;
        while done < EACH {
            let there = store.load(&[node("a")]).await.unwrap().remove("a").unwrap();
            let n =
                serde_json::from_str::<serde_json::Value>(there.json.get()).unwrap()["n"].clone();
            let next = json!({"n": n.as_u64().unwrap() + 1}).to_string();
            let verdicts = store
                .write(vec![write("a", Some(&there.revision), &next)])
                .await;
            match verdicts.unwrap()["a"] {
                Verdict::Stored(_) => done += 1,
                Verdict::Conflict => {}
                ref other => panic!("{other:?}"),
            }
        }
    });
    join_all(increments).await;
    let last = stores[0].load(&[node("a")]).await.unwrap();
    assert!(
        last["a"]
            .json
            .get()
            .contains(&format!("\"n\":{}", 2 * EACH))
    );
}

/// Goal: what was stored is there after closing, and a closed store says so.
#[tokio::test]
async fn stored_is_kept_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vogeler.db");
    let store = store::open(&at(&path, true)).unwrap();
    let verdicts = store
        .write(vec![write("a", None, r#"{"v":1}"#)])
        .await
        .unwrap();
    store.close().await;
    let error = store.load(&[node("a")]).await.unwrap_err();
    assert!(error.to_string().contains("closed"), "{error}");
    let again = store::open(&at(&path, false)).unwrap();
    let found = again.load(&[node("a")]).await.unwrap();
    assert_eq!(Verdict::Stored(found["a"].revision.clone()), verdicts["a"]);
}

/// Goal: a file that is no database of ours is never written, and the error names it.
#[tokio::test]
async fn foreign_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(
        &path,
        "not a database, but a text of some length".repeat(100),
    )
    .unwrap();
    let error = store::open(&at(&path, true)).unwrap_err().to_string();
    assert!(error.contains("notes.txt"), "{error}");
    let store = store::open(&at(&path, false)).unwrap();
    let error = store.write(vec![write("a", None, "{}")]).await.unwrap_err();
    assert!(error.to_string().contains("notes.txt"), "{error}");
}

/// What another program does to the file.
fn sql(path: &Path, statements: &str) {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.execute_batch(statements).unwrap();
}

/// Goal: a trigger that refuses one document is that document's verdict, like a `validate_doc_update`; one that refuses all,
/// or a table that went, is the store's trouble and no verdict.
#[tokio::test]
async fn a_row_that_is_refused_is_told_from_a_store_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vogeler.db");
    let store = store::open(&at(&path, true)).unwrap();
    let trigger = |name: &str, when: &str| {
        format!(
            "CREATE TRIGGER {name} BEFORE INSERT ON documents WHEN {when} BEGIN SELECT RAISE(ABORT, 'no bad documents'); END;"
        )
    };
    sql(&path, &trigger("guard", "new.json LIKE '%forbidden%'"));
    let documents = || {
        vec![
            write("a", None, "{}"),
            write("b", None, r#"{"forbidden":1}"#),
            write("c", None, "{}"),
        ]
    };
    let verdicts = store.write(documents()).await.unwrap();
    assert!(
        matches!(&verdicts["b"], Verdict::Refused { error, reason } if error == "forbidden" && reason.contains("no bad documents")),
        "{verdicts:?}"
    );
    for id in ["a", "c"] {
        assert!(matches!(verdicts[id], Verdict::Stored(_)), "{verdicts:?}");
    }
    sql(&path, "DROP TRIGGER guard; DELETE FROM documents;");
    sql(&path, &trigger("closed", "1"));
    let error = store.write(documents()).await.unwrap_err();
    assert!(matches!(error, StoreError::Away { .. }), "{error}");
    sql(&path, "DROP TABLE documents;");
    let error = store.write(documents()).await.unwrap_err();
    assert!(matches!(error, StoreError::Away { .. }), "{error}");
}

/// Goal: a row that somebody else made, and that is no document, fails nothing but itself: reading it gives no object, writing
/// it is refused, and its neighbours are read, written and listed.
#[tokio::test]
async fn rows_that_are_no_documents_fail_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vogeler.db");
    let store = store::open(&at(&path, true)).unwrap();
    let good = r#"{"doc_type":"SystemRecord"}"#;
    store.write(vec![write("good", None, good)]).await.unwrap();
    sql(
        &path,
        r#"INSERT INTO documents (id, revision, json) VALUES
            ('binary', '1-x', jsonb('{"doc_type":"SystemRecord"}')), ('revision', X'ff', '{}'),
            (X'ff', '1-x', '{"doc_type":"SystemRecord"}');"#,
    );
    let ids = ["good", "binary", "revision"].map(node);
    let read = store.load(&ids).await.unwrap();
    assert!(read["good"].json.get().contains("SystemRecord"));
    for id in ["binary", "revision"] {
        assert_eq!(read[id].json.get(), "null", "{id}");
    }
    assert_eq!(store.nodes().await.unwrap().len(), 1);
    let writes = vec![write("revision", None, "{}"), write("new", None, good)];
    let verdicts = store.write(writes).await.unwrap();
    assert!(
        matches!(verdicts["revision"], Verdict::Refused { .. }),
        "{verdicts:?}"
    );
    assert!(matches!(verdicts["new"], Verdict::Stored(_)));
}
