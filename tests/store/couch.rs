//! What only a store behind HTTP can do: refuse, be away, be full, be somewhere else.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tokio::net::TcpListener;
use vogeler::config::{self, StoreDsn};
use vogeler::store::{self, Designs, Query, StoreError, Verdict};

use super::place::{Http, Other, Place, node, settings, write};

mod http {
    super::super::on_stores! { [pouchdb couchdb] {
    super::super::validation_refuses as validation_refuses;
    super::super::bad_document_is_found as bad_document_is_found;
    super::super::packed_requests_are_understood as packed_requests_are_understood;
    super::super::small_requests_are_kept as small_requests_are_kept;
    super::super::bad_password_is_unauthorized as bad_password_is_unauthorized;
    super::super::missing_database_is_told as missing_database_is_told;
    super::super::missing_database_is_created as missing_database_is_created;
    super::super::missing_view_is_no_index as missing_view_is_no_index;
    super::super::setup_says_what_it_did as setup_says_what_it_did;
    } }
}

mod http_with_users {
    super::super::on_stores! { [couchdb] {
    super::super::a_member_is_enough as a_member_is_enough;
    } }
}

/// Who asks CouchDB's own databases, and what it answered.
async fn on_server(
    http: &Http,
    method: Method,
    path: &str,
    body: serde_json::Value,
) -> serde_json::Value {
    let mut url = http.database.clone();
    url.set_path(path);
    let request = http.client.request(method, url).json(&body);
    request.send().await.unwrap().json().await.unwrap()
}

/// Goal: as docs/INSTALL.md has it: an administrator of the database alone sets up views and makes indexes, a member does all
/// that server and operators do, and says what it may not.
async fn a_member_is_enough(place: &Place) {
    let Other::Couch(http) = &place.other else {
        return;
    };
    let database = http.database.path().trim_start_matches('/').to_owned();
    let roles = [format!("{database}-setup"), database.clone()];
    let security = json!({
        "admins": {"names": [], "roles": [roles[0]]}, "members": {"names": [], "roles": [roles[1]]},
    });
    let secured = on_server(
        http,
        Method::PUT,
        &format!("{database}/_security"),
        security,
    )
    .await;
    assert_eq!(secured["ok"], true, "{secured}");
    let mut users = Vec::new();
    for (name, roles) in [("member", &roles[1..]), ("setup", &roles[..])] {
        let name = format!("{database}-{name}");
        let path = format!("_users/org.couchdb.user:{name}");
        let user = json!({"name": name, "password": "pw", "roles": roles, "type": "user"});
        let made = on_server(http, Method::PUT, &path, user).await;
        assert_eq!(made["ok"], true, "{made}");
        users.push((path + "?rev=" + made["rev"].as_str().unwrap(), name));
    }
    let as_user = |name: &str| {
        let credentials = Some((name.to_owned(), "pw".to_owned()));
        store::open(&with_dsn(place, |url| url.credentials = credentials)).unwrap()
    };
    let (member, setup) = (as_user(&users[0].1), as_user(&users[1].1));
    place.other.delete("_design/items").await;
    let error = member.setup(Designs::Shipped).await.unwrap_err();
    assert!(matches!(error, StoreError::Unauthorized { .. }), "{error}");
    let did = setup.setup(Designs::Shipped).await.unwrap();
    assert!(did[0].ends_with("is there"), "{did:?}");
    assert_eq!(did[1], "loaded _design/items (1 view)");

    let document = r#"{"doc_type":"node","facts":{"os":"x"}}"#;
    let verdicts = member.write(vec![write("a", None, document)]).await;
    assert!(matches!(verdicts.unwrap()["a"], Verdict::Stored(_)));
    assert_eq!(member.load(&[node("a")]).await.unwrap().len(), 1);
    assert!(member.about().await.is_ok() && member.nodes().await.is_ok());
    let packages = Query::Package {
        name: "bash".to_owned(),
    };
    assert!(member.find(&packages).await.is_ok());
    let query = Query::Where {
        pointer: vogeler::hash::Pointer::parse("/facts/os").unwrap(),
        value: "x".to_owned(),
    };
    let error = member.find(&query).await.unwrap_err().to_string();
    assert!(error.contains("administrator of the database"), "{error}");
    setup.find(&query).await.unwrap();
    member.find(&query).await.unwrap();
    for (path, _) in users {
        let (path, query) = path.split_once('?').unwrap();
        let mut url = http.database.clone();
        url.set_path(path);
        url.set_query(Some(query));
        let gone = http.client.delete(url).send().await.unwrap();
        assert!(gone.status().is_success());
    }
}

/// The place's settings with another DSN.
fn with_dsn(place: &Place, change: impl FnOnce(&mut config::CouchUrl)) -> config::Store {
    let StoreDsn::Couch(mut url) = place.config.dsn.clone() else {
        panic!("not CouchDB");
    };
    change(&mut url);
    settings(StoreDsn::Couch(url))
}

/// Goal: what a validate_doc_update refuses is refused with its reason; its neighbours are stored.
async fn validation_refuses(place: &Place) {
    let Other::Couch(http) = &place.other else {
        return;
    };
    let function = "function (doc) { if (doc.bad) { throw({forbidden: 'no bad documents'}); } \
        if (doc.who) { throw({unauthorized: 'not you'}); } }";
    let guard = json!({"validate_doc_update": function});
    let (status, _) = http
        .send(Method::PUT, &["_design", "guard"], Some(&guard))
        .await;
    assert!(status.is_success());
    let documents = vec![
        write("a", None, r#"{"v":1}"#),
        write("b", None, r#"{"bad":1}"#),
        write("c", None, r#"{"who":1}"#),
    ];
    let verdicts = place.store.write(documents).await.unwrap();
    assert!(matches!(verdicts["a"], Verdict::Stored(_)));
    for (id, word, why) in [
        ("b", "forbidden", "no bad documents"),
        ("c", "unauthorized", "not you"),
    ] {
        let expected = Verdict::Refused {
            error: word.to_owned(),
            reason: why.to_owned(),
        };
        assert_eq!(verdicts[id], expected);
    }
}

/// Goal: one document that makes the server refuse the whole request is found; all others are stored.
async fn bad_document_is_found(place: &Place) {
    let nonsense = store::Revision("nonsense".into());
    let mut documents: Vec<_> = (0..20)
        .map(|n| write(&format!("n{n}"), None, "{}"))
        .collect();
    documents[13].revision = Some(nonsense);
    let verdicts = place.store.write(documents).await.unwrap();
    assert_eq!(verdicts.len(), 20);
    for (id, verdict) in &verdicts {
        let is_stored = matches!(verdict, Verdict::Stored(_));
        assert_eq!(is_stored, id.as_str() != "n13", "{id}: {verdict:?}");
    }
    assert!(matches!(verdicts["n13"], Verdict::Refused { .. }));
}

/// Goal: requests sent with gzip arrive.
async fn packed_requests_are_understood(place: &Place) {
    let mut config = place.config.clone();
    config.gzip_bytes_min = 1;
    let store = store::open(&config).unwrap();
    let verdicts = store
        .write(vec![write("a", None, r#"{"v":1}"#)])
        .await
        .unwrap();
    assert!(matches!(verdicts["a"], Verdict::Stored(_)));
    assert_eq!(store.load(&[node("a")]).await.unwrap().len(), 1);
}

/// Goal: a batch larger than one request may be goes in several, each document with its verdict.
async fn small_requests_are_kept(place: &Place) {
    let mut config = place.config.clone();
    config.request_bytes_max = 200;
    let store = store::open(&config).unwrap();
    let documents = (0..20)
        .map(|n| write(&format!("n{n}"), None, r#"{"v":"0123456789"}"#))
        .collect();
    let verdicts = store.write(documents).await.unwrap();
    assert_eq!(verdicts.len(), 20);
    assert!(
        verdicts
            .values()
            .all(|verdict| matches!(verdict, Verdict::Stored(_)))
    );
}

/// Goal: a wrong password is told from everything else, and is in no text.
async fn bad_password_is_unauthorized(place: &Place) {
    let wrong = "wrong-passw0rd".to_owned();
    // Another name than the real one: CouchDB locks a user out after a few wrong passwords.
    let user = "nobody".to_owned();
    let config = with_dsn(place, |url| url.credentials = Some((user, wrong)));
    let store = store::open(&config).unwrap();
    for error in [
        store.write(vec![write("a", None, "{}")]).await.unwrap_err(),
        store.load(&[node("a")]).await.unwrap_err(),
        store.setup(Designs::None).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Unauthorized { .. }), "{error}");
        assert!(!error.to_string().contains("passw0rd"), "{error}");
    }
    assert!(!format!("{store:?}").contains("passw0rd"));
}

/// Goal: a missing database is told by every call, with its address and without the password.
async fn missing_database_is_told(place: &Place) {
    let config = with_dsn(place, |url| url.database.push_str("_missing"));
    let store = store::open(&config).unwrap();
    for error in [
        store.write(vec![write("a", None, "{}")]).await.unwrap_err(),
        store.load(&[node("a")]).await.unwrap_err(),
        store.nodes().await.unwrap_err(),
        store.about().await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::NoDatabase { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("_missing: run `vogeler admin setup`"),
            "{error}"
        );
        assert!(!error.to_string().contains("cret"), "{error}");
    }
}

/// Goal: with `store.create` the first call that misses the database makes it.
async fn missing_database_is_created(place: &Place) {
    let mut config = with_dsn(place, |url| url.database.push_str("_new"));
    config.create = true;
    let store = store::open(&config).unwrap();
    assert!(store.load(&[node("a")]).await.unwrap().is_empty());
    let Other::Couch(http) = &place.other else {
        return;
    };
    let mut database = http.database.clone();
    database.set_path(&format!("{}_new", database.path()));
    let response = reqwest::Client::new()
        .delete(database.clone())
        .send()
        .await
        .unwrap();
    assert!(response.status().is_success());
    let verdicts = store.write(vec![write("a", None, "{}")]).await.unwrap();
    assert!(matches!(verdicts["a"], Verdict::Stored(_)));
    reqwest::Client::new()
        .delete(database)
        .send()
        .await
        .unwrap();
}

/// Goal: a question whose view was left out says which view is missing.
async fn missing_view_is_no_index(place: &Place) {
    place.other.delete("_design/items").await;
    let query = Query::Contains {
        plugin: "rpms".parse().unwrap(),
        text: "x".to_owned(),
    };
    let error = place.store.find(&query).await.unwrap_err().to_string();
    assert!(error.contains("has no view items/by_plugin"), "{error}");
}

/// Goal: set-up says line by line what it made, and what it changed.
async fn setup_says_what_it_did(place: &Place) {
    place.other.delete("_design/items").await;
    place.other.put("_design/packages", r#"{"views":{}}"#).await;
    let did = place
        .store
        .setup(Designs::Folder(&super::designs()))
        .await
        .unwrap();
    assert!(did[0].starts_with("database http://127.0.0.1"), "{did:?}");
    assert!(
        did[0].ends_with("is there") && !did[0].contains("cret"),
        "{did:?}"
    );
    assert_eq!(
        did[1..],
        [
            "loaded _design/items (1 view)",
            "updated _design/packages (1 view)",
            "_design/plugins is up to date",
            "_design/values is up to date",
        ]
    );
    // Indexes are built when somebody asks, not after every write.
    let Other::Couch(http) = &place.other else {
        panic!("not a CouchDB")
    };
    let items = http.get("_design/items").await.unwrap();
    assert_eq!(items["autoupdate"], serde_json::json!(false));
    let fresh = with_dsn(place, |url| url.database.push_str("_fresh"));
    let store = store::open(&fresh).unwrap();
    let did = store.setup(Designs::None).await.unwrap();
    assert!(
        did[0].starts_with("created database http://127.0.0.1"),
        "{did:?}"
    );
    let mut database = http.database.clone();
    database.set_path(&format!("{}_fresh", database.path()));
    reqwest::Client::new()
        .delete(database)
        .send()
        .await
        .unwrap();
}

fn unreachable(port: u16, timeout: Duration) -> config::Store {
    let mut config = settings(StoreDsn::Couch(config::CouchUrl {
        base: format!("http://127.0.0.1:{port}").parse().unwrap(),
        database: "records".to_owned(),
        credentials: Some(("u".to_owned(), "s3cret".to_owned())),
    }));
    config.timeout = timeout;
    config
}

/// Goal: a server that refuses connections, and one that never answers, are away within the timeout.
#[tokio::test]
async fn unreachable_is_away_within_the_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let closed_port = crate::harness::process::free_port();
    for port in [silent_port, closed_port] {
        let store = store::open(&unreachable(port, Duration::from_millis(300))).unwrap();
        let start = Instant::now();
        let error = store.write(vec![write("a", None, "{}")]).await.unwrap_err();
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        assert!(matches!(error, StoreError::Away { .. }), "{error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}
