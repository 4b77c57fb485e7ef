//! The operator's questions: every store gives the same answers to the same fleet.

use serde_json::{Value, json};
use vogeler::hash::Pointer;
use vogeler::store::Query;

use super::place::{Place, write};

/// A node document as the server writes it.
fn document(name: &str, plugins: &Value) -> Value {
    let mut document = json!({
        "doc_type": "SystemRecord", "system_name": name, "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-02-03T04:05:06Z", "note": "not a plugin: nobody booked it",
        "vogeler": {"plugins": {"failed": {"seq": 1, "last_error": "never had a value"}}},
    });
    for (plugin, value) in plugins.as_object().unwrap() {
        document[plugin] = value.clone();
        document["vogeler"]["plugins"][plugin] =
            json!({"seq": 1, "hash": "b3:0", "collected_at": "2026-02-03T04:05:06Z"});
    }
    document
}

/// The fleet: every kind of value, a document of 2010, and documents that are not nodes.
fn fleet() -> Vec<(&'static str, Value)> {
    let long = format!("{}😀tail", "x".repeat(255));
    vec![
        (
            "web01",
            document(
                "web01",
                &json!({
                    "client": {"groups": ["web", "eu"], "version": "0.1.0"},
                    "facter": {"os": {"family": "Debian", "release.full": "12.0", "names": ["a", {"b": 7}]}, "up": true, "load": 1.5,
                        "big": 1e21, "whole": 1000.0, "nothing": null},
                    "dpkg": ["bash 5.2.15-2", "libssl3:amd64 3.0.11-1", "openssl 3.0.11-1"],
                    "pip": ["zope.interface==5.0", "-e git+https://x"],
                }),
            ),
        ),
        (
            "web02",
            document(
                "web02",
                &json!({
                    "client": {"groups": ["web"]},
                    "facter": {"os": {"family": "RedHat"}, "up": "true", "load": "1.5"},
                    "rpms": ["bash-5.1.8-6.el9.x86_64", "openssl-libs-3.0.7-1.el9.x86_64", "bash"],
                    "npm": {"dependencies": {"@types/node": {"version": "1"}, "left-pad": {}}},
                    "text": "one line\r\nanother OpenSSL line\n\n",
                }),
            ),
        ),
        (
            "db01",
            document(
                "db01",
                &json!({"gem": ["rake (13.0.6, 12.3)"], "long": [long], "client": {"groups": "broken"}}),
            ),
        ),
        (
            "größe/1",
            json!({"doc_type": "SystemRecord", "system_name": "größe/1", "rpms": "bash-5.1.8\nzsh-5.9"}),
        ),
        (
            "web01x",
            json!({"doc_type": "Other", "rpms": ["bash-5.1.8-6.el9.x86_64"]}),
        ),
        (
            "plain",
            json!({"rpms": ["bash-5.1.8-6.el9.x86_64"], "facter": {"os": {"family": "Debian"}}}),
        ),
    ]
}

async fn fill(place: &Place) {
    let writes = fleet()
        .iter()
        .map(|(name, document)| write(name, None, &document.to_string()))
        .collect();
    let verdicts = place.store.write(writes).await.unwrap();
    assert_eq!(verdicts.len(), fleet().len());
}

fn contains(plugin: &str, text: &str) -> Query {
    Query::Contains {
        plugin: plugin.parse().unwrap(),
        text: text.to_owned(),
    }
}

fn has(plugin: &str) -> Query {
    Query::Has {
        plugin: plugin.parse().unwrap(),
    }
}

fn at(pointer: &str, value: &str) -> Query {
    Query::Where {
        pointer: Pointer::parse(pointer).unwrap(),
        value: value.to_owned(),
    }
}

fn package(name: &str) -> Query {
    Query::Package {
        name: name.to_owned(),
    }
}

/// What is asked, and which nodes are the answer.
fn questions() -> Vec<(Query, &'static [&'static str])> {
    vec![
        (contains("rpms", "openssl"), &["web02"]),
        (contains("rpms", "bash"), &["größe/1", "web02"]),
        (contains("dpkg", "ssl"), &["web01"]),
        (contains("text", "OpenSSL"), &["web02"]),
        (contains("text", "openssl"), &[]),
        (contains("text", "line\r"), &[]),
        (contains("facter", "family"), &["web01", "web02"]),
        (contains("facter", "Deb"), &["web01"]),
        (contains("facter", "1e+21"), &["web01"]),
        (contains("facter", "1000"), &["web01"]),
        (contains("facter", "1000.0"), &[]),
        (contains("facter", "null"), &["web01"]),
        (contains("facter", "true"), &["web01", "web02"]),
        (contains("long", "xx"), &["db01"]),
        (contains("long", "😀"), &[]),
        (contains("note", "plugin"), &[]),
        (has("facter"), &["web01", "web02"]),
        (has("rpms"), &["größe/1", "web02"]),
        (has("failed"), &[]),
        (has("note"), &[]),
        (at("/facter/os/family", "Debian"), &["web01"]),
        (at("/facter/os/release.full", "12.0"), &["web01"]),
        (at("/facter/os/names/1/b", "7"), &["web01"]),
        (at("/facter/os/names/0", "a"), &["web01"]),
        (at("/facter/up", "true"), &["web01", "web02"]),
        (at("/facter/load", "1.5"), &["web01", "web02"]),
        (at("/facter/load", "1.50"), &["web01"]),
        (at("/facter/nothing", "null"), &["web01"]),
        (at("/facter/os", "Debian"), &[]),
        (at("/facter/absent/deep", "x"), &[]),
        (at("", "x"), &[]),
        (package("bash"), &["größe/1", "web01", "web02"]),
        (package("openssl"), &["web01"]),
        (package("openssl-libs"), &["web02"]),
        (package("libssl3"), &["web01"]),
        (package("zope.interface"), &["web01"]),
        (package("rake"), &["db01"]),
        (package("@types/node"), &["web02"]),
        (package("zsh"), &["größe/1"]),
        (package("x"), &[]),
    ]
}

/// Goal: each question has the same answer on every store, sorted by name.
pub async fn stores_agree(place: &Place) {
    fill(place).await;
    for (query, expected) in questions() {
        let found = place.store.find(&query).await;
        let found = found.unwrap_or_else(|error| panic!("{query:?}: {error}"));
        let found: Vec<_> = found.iter().map(vogeler::wire::NodeName::as_str).collect();
        assert_eq!(found, expected, "{query:?}");
    }
}

/// Goal: the list of nodes and their number leave out what is no node; groups and plugins are those of the document.
pub async fn nodes_are_listed(place: &Place) {
    assert_eq!(place.store.about().await.unwrap().documents, 0);
    assert_eq!(place.store.nodes().await.unwrap(), []);
    fill(place).await;
    let about = place.store.about().await.unwrap();
    assert_eq!(about.documents, 4, "{about:?}");
    assert!(!about.location.contains("cret"), "{about:?}");
    let nodes = serde_json::to_value(place.store.nodes().await.unwrap()).unwrap();
    let expected = json!([
        {"node": "db01", "updated_at": "2026-02-03T04:05:06Z", "plugins": ["client", "gem", "long"], "groups": []},
        {"node": "größe/1", "updated_at": null, "plugins": ["rpms"], "groups": []},
        {"node": "web01", "updated_at": "2026-02-03T04:05:06Z", "plugins": ["client", "dpkg", "facter", "pip"],
            "groups": ["web", "eu"]},
        {"node": "web02", "updated_at": "2026-02-03T04:05:06Z", "plugins": ["client", "facter", "npm", "rpms", "text"],
            "groups": ["web"]},
    ]);
    assert_eq!(nodes, expected);
}

/// Goal: a fleet larger than any page is listed and counted whole, each node once, whatever stands between them.
pub async fn every_node_is_listed_once(place: &Place) {
    let named = |number: usize| format!("{}{number:04}.example.com", ["A", "n", "é"][number % 3]);
    let documents = (0..1_201).map(|number| {
        let name = named(number);
        let doc_type = if number % 5 == 0 {
            "Other"
        } else {
            "SystemRecord"
        };
        let text = json!({"doc_type": doc_type, "system_name": name, "vogeler": {"plugins": {}}})
            .to_string();
        write(&name, None, &text)
    });
    place.store.write(documents.collect()).await.unwrap();
    let mut expected: Vec<_> = (0..1_201)
        .filter(|number| number % 5 != 0)
        .map(named)
        .collect();
    expected.sort();
    let nodes = place.store.nodes().await.unwrap();
    let listed: Vec<_> = nodes.iter().map(|summary| summary.node.as_str()).collect();
    assert_eq!(listed, expected);
    let about = place.store.about().await.unwrap();
    assert_eq!(about.documents, expected.len() as u64);
}

/// Goal: nodes are counted by when their documents changed, to the millisecond; one that does not say when, or is no
/// node's, is no recent node.
pub async fn recent_changes_are_counted(place: &Place) {
    let census = async |since: &str| {
        let census = place.store.census(since.parse().unwrap()).await.unwrap();
        (census.nodes, census.recent)
    };
    assert_eq!(census("2026-02-03T04:05:06Z").await, (0, 0));
    fill(place).await;
    let first = json!({"doc_type": "SystemRecord", "system_name": "late", "updated_at": "2026-02-03T04:05:06.5Z"});
    place.put("late", None, &first.to_string()).await;
    assert_eq!(census("2026-02-03T04:05:06Z").await, (5, 4));
    assert_eq!(census("2026-02-03T04:05:06.5Z").await, (5, 1));
    assert_eq!(census("2026-02-03T04:05:06.501Z").await, (5, 0));
}

/// Goal: an answer is never older than the last write: indexes are brought up to date first.
pub async fn changes_are_found_at_once(place: &Place) {
    let with = |value: &str| document("n", &json!({"facter": {"a": value}})).to_string();
    let first = place.put("n", None, &with("one")).await;
    assert_eq!(
        place
            .store
            .find(&at("/facter/a", "one"))
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        place
            .store
            .find(&contains("facter", "one"))
            .await
            .unwrap()
            .len(),
        1
    );
    place.put("n", Some(&first), &with("two")).await;
    for (text, count) in [("one", 0), ("two", 1)] {
        assert_eq!(
            place
                .store
                .find(&at("/facter/a", text))
                .await
                .unwrap()
                .len(),
            count
        );
        assert_eq!(
            place
                .store
                .find(&contains("facter", text))
                .await
                .unwrap()
                .len(),
            count
        );
    }
    place.other.delete("n").await;
    assert_eq!(place.store.find(&at("/facter/a", "two")).await.unwrap(), []);
    assert_eq!(place.store.nodes().await.unwrap(), []);
}
