use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::hash::content_hash;
use crate::wire::ErrorKind;

const FRESHNESS: Duration = Duration::from_mins(15);

fn node() -> NodeName {
    "web01.example.com".parse().unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn value(plugin: &str, seq: u64, value: &Value) -> PluginResult {
    let json = to_raw_value(value).unwrap();
    let hash = content_hash(&json, &[]).unwrap();
    result(plugin, seq, Content::Value { json, hash })
}

fn failure(plugin: &str, seq: u64, message: &str) -> PluginResult {
    let message = message.to_owned();
    let error = PluginError {
        kind: ErrorKind::Timeout,
        message,
        exit: None,
        stderr: None,
    };
    result(plugin, seq, Content::Error(error))
}

fn result(plugin: &str, seq: u64, content: Content) -> PluginResult {
    PluginResult {
        node: node(),
        plugin: Some(plugin.parse().unwrap()),
        seq: Seq(seq),
        collected_at: at(0),
        run: None,
        format: Format::Json,
        duration_ms: Some(3),
        content,
    }
}

fn stored(document: &mut NodeDocument) -> Value {
    serde_json::from_str(document.to_json(&node(), at(1)).unwrap().get()).unwrap()
}

/// Goal: a new document has the members of the design, and nothing else.
#[test]
fn a_first_result_makes_the_document_of_the_design() {
    let mut document = NodeDocument::new(&node(), at(0));
    assert_eq!(
        document.apply(&value("rpms", 7, &json!(["bash-5.1.8"])), at(0), FRESHNESS),
        Applied::Changed
    );
    let written = stored(&mut document);
    let hash = written["vogeler"]["plugins"]["rpms"]["hash"].clone();
    assert_eq!(
        written,
        json!({
            "doc_type": "SystemRecord", "system_name": "web01.example.com",
            "created_at": "2027-01-15T08:00:00Z", "updated_at": "2027-01-15T08:00:01Z",
            "rpms": ["bash-5.1.8"],
            "vogeler": {"plugins": {"rpms": {
                "seq": 7, "collected_at": "2027-01-15T08:00:00Z", "checked_at": "2027-01-15T08:00:00Z",
                "run": null, "hash": hash, "duration_ms": 3, "format": "json", "last_error": null,
            }}},
        })
    );
}

/// Goal: members of other programs leave exactly as they came, numbers spelled as they were, in their place.
#[test]
fn foreign_members_survive_untouched() {
    let json = r#"{"_id":"x","_rev":"1-a","owner":{"n":1.10,"big":123456789012345678901234567890},"rpms":[],"zone":"b"}"#;
    let raw = RawValue::from_string(json.to_owned()).unwrap();
    let mut document = NodeDocument::parse(&node(), &raw).unwrap();
    document.apply(&value("rpms", 7, &json!(["bash"])), at(0), FRESHNESS);
    let written = document.to_json(&node(), at(1)).unwrap();
    assert!(
        written.get().starts_with(
            r#"{"owner":{"n":1.10,"big":123456789012345678901234567890},"rpms":["bash"],"zone":"b","doc_type""#
        ),
        "{}",
        written.get()
    );
}

/// Goal: broken bookkeeping is replaced, nothing else is lost, and nothing crashes.
#[test]
fn broken_bookkeeping_counts_as_none() {
    let raw = RawValue::from_string(r#"{"vogeler":5,"owner":"me"}"#.to_owned()).unwrap();
    let mut document = NodeDocument::parse(&node(), &raw).unwrap();
    assert_eq!(
        document.apply(&value("rpms", 7, &json!([])), at(0), FRESHNESS),
        Applied::Changed
    );
    assert_eq!(stored(&mut document)["owner"], "me");
    let not_an_object = RawValue::from_string("[]".to_owned()).unwrap();
    assert!(NodeDocument::parse(&node(), &not_an_object).is_err());
}

/// Goal: a failed plugin keeps its last good value and records the error; the next good value clears it.
#[test]
fn a_failure_keeps_the_last_good_value() {
    let mut document = NodeDocument::new(&node(), at(0));
    document.apply(&value("rpms", 1, &json!(["bash"])), at(0), FRESHNESS);
    assert_eq!(
        document.apply(&failure("rpms", 2, "killed"), at(0), FRESHNESS),
        Applied::Changed
    );
    let failed = stored(&mut document);
    assert_eq!(failed["rpms"], json!(["bash"]));
    assert_eq!(failed["last_error"]["message"], "killed");
    assert_eq!(
        failed["vogeler"]["plugins"]["rpms"]["last_error"]["kind"],
        "timeout"
    );
    assert_eq!(
        document.apply(&failure("rpms", 3, "killed"), at(1), FRESHNESS),
        Applied::Unchanged
    );
    assert_eq!(
        document.apply(&value("rpms", 4, &json!(["bash"])), at(1), FRESHNESS),
        Applied::Changed
    );
    assert_eq!(
        stored(&mut document)["vogeler"]["plugins"]["rpms"]["last_error"],
        Value::Null
    );
}

/// Goal: equal content is written again only when the stored check is older than the freshness.
#[test]
fn unchanged_until_the_check_is_old() {
    let mut document = NodeDocument::new(&node(), at(0));
    let bash = json!(["bash"]);
    document.apply(&value("rpms", 1, &bash), at(0), FRESHNESS);
    assert_eq!(
        document.apply(&value("rpms", 2, &bash), at(899), FRESHNESS),
        Applied::Unchanged
    );
    assert_eq!(
        document.apply(&value("rpms", 3, &bash), at(900), FRESHNESS),
        Applied::Changed
    );
    assert_eq!(document.plugins().get("rpms").unwrap().checked_at, at(900));
}

/// Goal: a value that somebody deleted from the document is written again, although its hash is known.
#[test]
fn a_deleted_value_comes_back() {
    let mut document = NodeDocument::new(&node(), at(0));
    document.apply(&value("rpms", 1, &json!([])), at(0), FRESHNESS);
    document.members.remove("rpms");
    assert_eq!(
        document.apply(&value("rpms", 2, &json!([])), at(1), FRESHNESS),
        Applied::Changed
    );
    assert_eq!(stored(&mut document)["rpms"], json!([]));
}

/// Goal: copies are told from older results, and a sequence from a broken clock loses.
#[test]
fn stale_present_and_broken_clocks() {
    let mut document = NodeDocument::new(&node(), at(0));
    let sane = Seq::after(Seq(0), at(0)).0;
    document.apply(&value("rpms", sane, &json!([2])), at(0), FRESHNESS);
    assert_eq!(
        document.apply(&value("rpms", sane, &json!([2])), at(0), FRESHNESS),
        Applied::Present
    );
    assert_eq!(
        document.apply(&value("rpms", sane - 1, &json!([1])), at(0), FRESHNESS),
        Applied::Stale
    );
    let broken = sane + 2 * 86_400_000_000;
    assert_eq!(
        document.apply(&value("rpms", broken, &json!([3])), at(0), FRESHNESS),
        Applied::Changed
    );
    assert_eq!(
        document.apply(&value("rpms", sane + 1, &json!([4])), at(0), FRESHNESS),
        Applied::Changed
    );
    assert_eq!(stored(&mut document)["rpms"], json!([4]));
}

/// Goal: an error of 2010 names no plugin, and is the node's last error.
#[test]
fn an_error_of_2010_is_the_nodes_last_error() {
    let mut document = NodeDocument::new(&node(), at(0));
    let mut error = failure("x", 1, "Plugin foo is not authorized");
    error.plugin = None;
    assert_eq!(document.apply(&error, at(0), FRESHNESS), Applied::Changed);
    let written = stored(&mut document);
    assert_eq!(
        written["last_error"]["message"],
        "Plugin foo is not authorized"
    );
    assert_eq!(written["last_error"]["plugin"], Value::Null);
}

proptest! {
    /// In whatever order results come, and however often, the newest value of each plugin stands in the end, and
    /// merging through the stored form is the same as merging in memory.
    #[test]
    fn the_newest_result_wins_in_any_order(
        arrivals in prop::collection::vec((0..3_usize, 1..20_u64), 1..40),
    ) {
        let plugins = ["a", "b", "c"];
        let mut document = NodeDocument::new(&node(), at(0));
        for (plugin, seq) in &arrivals {
            document.apply(&value(plugins[*plugin], *seq, &json!(seq)), at(0), FRESHNESS);
            let raw = document.to_json(&node(), at(1)).unwrap();
            document = NodeDocument::parse(&node(), &raw).unwrap();
        }
        let written = stored(&mut document);
        for (index, plugin) in plugins.iter().enumerate() {
            let newest = arrivals.iter().filter(|(p, _)| *p == index).map(|(_, seq)| *seq).max();
            prop_assert_eq!(written.get(*plugin).cloned(), newest.map(Value::from));
        }
    }
}
