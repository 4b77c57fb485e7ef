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
            "vogeler": {"v": 1, "plugins": {"rpms": {
                "seq": 7, "collected_at": "2027-01-15T08:00:00Z", "checked_at": "2027-01-15T08:00:00Z",
                "run": null, "hash": hash, "duration_ms": 3, "format": "json", "last_error": null,
            }}},
        })
    );
}

/// Goal: members of other programs are written back unchanged: in their place, each number spelled as it was.
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

fn parse(json: &str) -> NodeDocument {
    let raw = RawValue::from_string(json.to_owned()).unwrap();
    NodeDocument::parse(&node(), &raw).unwrap()
}

/// A sequence `second` seconds after the tests' beginning.
fn seq(second: i64) -> u64 {
    Seq::after(Seq(0), at(second)).0
}

/// Goal: broken bookkeeping stays in the document and lets in only results collected after the document's last write, before
/// and after it is mended. Nobody can tell whether an earlier result is older than the stored one.
#[test]
fn broken_bookkeeping_lets_only_newer_results_in() {
    for broken in ["5", "[]", r#"{"plugins":[1]}"#, r#"{"a":1,"plugins":"x"}"#] {
        let json = format!(
            r#"{{"vogeler":{broken},"owner":"me","rpms":["new"],"updated_at":"{}"}}"#,
            at(100)
        );
        let mut document = parse(&json);
        assert!(document.unreadable().is_all);
        let apply = |document: &mut NodeDocument, plugin: &str, second, content| {
            document.apply(
                &value(plugin, seq(second), &json!([content])),
                at(300),
                FRESHNESS,
            )
        };
        assert_eq!(apply(&mut document, "rpms", 99, "old"), Applied::Unordered);
        assert_eq!(apply(&mut document, "rpms", 101, "newer"), Applied::Changed);
        let written = stored(&mut document);
        assert_eq!(written["vogeler"]["unreadable"].to_string(), broken);
        assert_eq!(
            (&written["owner"], &written["rpms"]),
            (&json!("me"), &json!(["newer"]))
        );
        // The last write is later now, but the floor is the same.
        let mut document = parse(&written.to_string());
        assert!(!document.unreadable().is_all);
        assert_eq!(apply(&mut document, "dpkg", 99, "old"), Applied::Unordered);
        assert_eq!(apply(&mut document, "dpkg", 102, "new"), Applied::Changed);
        assert_eq!(apply(&mut document, "rpms", 100, "old"), Applied::Stale);
    }
    for none in [r#"{"vogeler":null}"#, "{}", r#"{"vogeler":5}"#] {
        let applied = parse(none).apply(&value("rpms", 7, &json!([])), at(0), FRESHNESS);
        assert_eq!(applied, Applied::Changed, "{none}");
    }
    let not_an_object = RawValue::from_string("[]".to_owned()).unwrap();
    assert!(NodeDocument::parse(&node(), &not_an_object).is_err());
}

/// Goal: a plugin without a state is new, although the state of another plugin cannot be read. A result of that other
/// plugin must be newer than anything known of the node, by either clock.
#[test]
fn an_unreadable_state_is_the_floor_of_its_plugin_alone() {
    let state = |seq: u64| {
        json!({"seq": seq, "collected_at": at(0), "checked_at": at(0), "run": null, "hash": null,
            "duration_ms": null, "format": "json", "last_error": null})
    };
    let json = json!({
        "updated_at": at(100),
        // A node whose clock is ahead, and a sequence of a broken clock.
        "vogeler": {"plugins": {"rpms": 5, "dpkg": state(seq(150)), "odd": state(u64::MAX)}},
    });
    let mut document = parse(&json.to_string());
    let mut apply = |plugin: &str, second| {
        document.apply(
            &value(plugin, seq(second), &json!(second)),
            at(200),
            FRESHNESS,
        )
    };
    assert_eq!(apply("new", 50), Applied::Changed);
    assert_eq!(apply("rpms", 120), Applied::Unordered);
    assert_eq!(apply("rpms", 151), Applied::Changed);
}

/// Goal: a document of many thousand plugins, in any order, is read quickly.
#[test]
fn large_documents_are_read_quickly() {
    const COUNT: usize = 60_000;
    let many = |value: &str| {
        let members = (0..COUNT).rev().map(|n| format!(r#""p{n}":{value}"#));
        members.collect::<Vec<_>>().join(",")
    };
    let json = format!(
        r#"{{{},"vogeler":{{"plugins":{{{}}}}}}}"#,
        many("1"),
        many("{}")
    );
    let started = std::time::Instant::now();
    let document = parse(&json);
    assert_eq!(document.unreadable().plugins, COUNT);
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}

/// Goal: the last of repeated keys counts, wherever it is.
#[test]
fn the_last_of_repeated_keys_counts() {
    let mut document = parse(r#"{"a":1,"b":2,"a":3,"c":4,"a":5}"#);
    let written = stored(&mut document);
    assert_eq!(
        (&written["a"], &written["b"], &written["c"]),
        (&json!(5), &json!(2), &json!(4))
    );
    let text = document.to_json(&node(), at(1)).unwrap();
    assert_eq!(text.get().matches(r#""a":"#).count(), 1);
}

/// Goal: the expected growth of an error is what it adds: its message twice, and what the program printed.
#[test]
fn the_growth_of_an_error_counts_all_of_it() {
    let mut document = NodeDocument::new(&node(), at(0));
    let before = document.to_json(&node(), at(1)).unwrap().get().len();
    let mut result = failure("rpms", 1, &"m".repeat(3_000));
    if let Content::Error(error) = &mut result.content {
        error.stderr = Some("e".repeat(4_000));
    }
    let growth = usize::try_from(document.growth(&result)).unwrap();
    document.apply(&result, at(1), FRESHNESS);
    let after = document.to_json(&node(), at(1)).unwrap().get().len();
    assert!(
        (after - before).abs_diff(growth) < 500,
        "{growth} {}",
        after - before
    );
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

/// Goal: a copy is told apart from an older result, and a sequence from a broken clock loses.
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
    /// In whatever order and however often results come, the newest value of each plugin is stored in the end. Merging
    /// through the stored form equals merging in memory.
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

/// Goal: a state that can be read only in part still refuses older results, and newer results replace it.
#[test]
fn what_can_be_read_of_a_state_counts() {
    let known = seq(100);
    let hash = value("rpms", 1, &json!([1])).content;
    let Content::Value { hash, .. } = hash else {
        panic!("no value")
    };
    let hash = serde_json::to_string(&hash).unwrap();
    let checked = at(100);
    let states = [
        format!(r#"{{"seq":{known},"hash":{hash},"checked_at":"{checked}","format":"toml"}}"#),
        format!(
            r#"{{"seq":{known},"hash":{hash},"checked_at":"{checked}","format":{{"a":1}},"run":7}}"#
        ),
        format!(
            r#"{{"seq":"many","collected_at":"{checked}","hash":{hash},"checked_at":"{checked}"}}"#
        ),
        format!(
            r#"{{"seq":{known},"collected_at":"{checked}","checked_at":"{checked}","run":null,"hash":{hash},"duration_ms":1,"format":"later","last_error":null,"more":[1.50]}}"#
        ),
    ];
    for state in states {
        let json = format!(r#"{{"rpms":[1],"vogeler":{{"v":9,"plugins":{{"rpms":{state}}}}}}}"#);
        let judge = |seq, content: &Value| {
            parse(&json).judge(&value("rpms", seq, content), at(150), FRESHNESS)
        };
        assert_eq!(judge(known - 1, &json!([2])), Applied::Stale, "{state}");
        assert_eq!(judge(known, &json!([1])), Applied::Present, "{state}");
        assert_eq!(judge(known + 1, &json!([1])), Applied::Unchanged, "{state}");
        assert_eq!(judge(known + 1, &json!([2])), Applied::Changed, "{state}");
        let mut document = parse(&json);
        document.apply(&value("rpms", known + 1, &json!([2])), at(150), FRESHNESS);
        let written = stored(&mut document);
        assert_eq!(written["vogeler"]["plugins"]["rpms"]["seq"], known + 1);
        assert_eq!(
            written["vogeler"]["v"], 9,
            "a later version keeps its number"
        );
    }
    // A state without any order: the document's last write stands in for it.
    let json = format!(
        r#"{{"updated_at":"{}","vogeler":{{"plugins":{{"rpms":5}}}}}}"#,
        at(100)
    );
    let judge = |seq| parse(&json).judge(&value("rpms", seq, &json!([2])), at(150), FRESHNESS);
    assert_eq!(
        (judge(seq(100)), judge(seq(101))),
        (Applied::Unordered, Applied::Changed)
    );
}

/// Goal: this release reads the documents of all releases, and a merge keeps all that it does not replace.
#[test]
fn documents_of_all_releases_are_read_and_kept() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/documents");
    let mut read = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let mut document = parse(text.trim_end());
        assert!(!document.unreadable().is_all, "{path:?}");
        let newest = seq(400 * 24 * 3600);
        let later = at(400 * 24 * 3600);
        let applied = document.apply(&value("other", newest, &json!(1)), later, FRESHNESS);
        assert_eq!(applied, Applied::Changed, "{path:?}");
        let written = document.to_json(&node(), later).unwrap();
        // What is not ours to change stays byte for byte.
        let before: Members = serde_json::from_str(&text).unwrap();
        let after: Members = serde_json::from_str(written.get()).unwrap();
        let ours = ["_id", "_rev", "updated_at", "vogeler"];
        for (key, value) in before
            .0
            .iter()
            .filter(|(key, _)| !ours.contains(&key.as_str()))
        {
            assert_eq!(
                after.get(key).map(RawValue::get),
                Some(value.get()),
                "{path:?} {key}"
            );
        }
        let members = |members: &Members, key: &str| {
            let raw = members.get(key).map_or("{}", RawValue::get);
            serde_json::from_str::<Members>(raw).unwrap()
        };
        let (book, book_after) = (members(&before, "vogeler"), members(&after, "vogeler"));
        for (key, value) in book.0.iter().filter(|(key, _)| key != "plugins") {
            assert_eq!(
                book_after.get(key).map(RawValue::get),
                Some(value.get()),
                "{path:?} {key}"
            );
        }
        let (states, states_after) = (members(&book, "plugins"), members(&book_after, "plugins"));
        for (key, value) in &states.0 {
            assert_eq!(
                states_after.get(key).map(RawValue::get),
                Some(value.get()),
                "{path:?} {key}"
            );
            // Whatever is there, an older result does not replace it.
            if PluginName::new(key).is_ok() {
                let old = document.judge(&value_of(key, 1), later, FRESHNESS);
                assert_eq!(old, Applied::Stale, "{path:?} {key}");
            }
        }
        assert_eq!(states_after.0.len(), states.0.len() + 1, "{path:?}");
        read += 1;
    }
    assert!(read >= 6);
}

fn value_of(plugin: &str, seq: u64) -> PluginResult {
    value(plugin, seq, &json!("x"))
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9:TZ-]{0,25}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        let names = prop_oneof![
            "seq|hash|checked_at|collected_at|format|last_error|run|duration_ms"
                .prop_map(String::from),
            "[a-z]{1,4}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(names, inner, 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Any JSON in a plugin's state and beside it survives the merge of another plugin's result byte for byte. A state never
    /// lets in a result that is not newer than the sequence it tells.
    #[test]
    fn any_state_survives_the_merge_of_another_result(state in any_json(), beside in any_json()) {
        let json = json!({
            "updated_at": at(100), "mine": 1,
            "vogeler": {"beside": beside, "plugins": {"mine": state}},
        });
        let mut document = parse(&json.to_string());
        document.apply(&value("other", seq(200), &json!(2)), at(200), FRESHNESS);
        let written = document.to_json(&node(), at(200)).unwrap();
        let raw = |json: &str| -> String {
            let members: Members = serde_json::from_str(json).unwrap();
            let book: Members = serde_json::from_str(members.get("vogeler").unwrap().get()).unwrap();
            let states: Members = serde_json::from_str(book.get("plugins").unwrap().get()).unwrap();
            let state = states.get("mine").unwrap().get();
            format!("{} {state}", book.get("beside").unwrap().get())
        };
        prop_assert_eq!(raw(written.get()), raw(&json.to_string()));
        let known = state["seq"].as_u64().unwrap_or(0);
        if known > 0 && known < seq(0) {
            let applied = document.judge(&value("mine", known - 1, &json!(3)), at(200), FRESHNESS);
            prop_assert_eq!(applied, Applied::Stale);
        }
    }
}
