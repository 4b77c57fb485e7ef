//! `facts`: the facts read from a document that anybody may have written, and the queries on them.

use serde_json::Value;

use super::depth;
use crate::hash::Pointer;
use crate::store::Query;
use crate::store::facts::{Facts, ITEM_UNITS_MAX, items};
use crate::wire::{NodeName, PluginName};

/// Levels that serde_json reads into a tree.
const TREE_DEPTH_MAX: usize = 120;

/// Queries find everything that a summary says.
pub fn facts(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Some(facts) = Facts::read(text) else {
        return;
    };
    let node: NodeName = "web01".parse().expect("a node name");
    let summary = facts.summary(node);
    let document: Value = match serde_json::from_str(text) {
        Ok(document) => document,
        Err(_) => return assert!(depth(text) > TREE_DEPTH_MAX || text.contains(['e', 'E', 'u'])),
    };
    for plugin in &summary.plugins {
        assert!(facts.matches(&Query::Has {
            plugin: plugin.clone()
        }));
        let value = &document[plugin.as_str()];
        contains(&facts, plugin, value);
        scalar(&facts, plugin, value);
    }
}

fn contains(facts: &Facts<'_>, plugin: &PluginName, value: &Value) {
    for item in items(value) {
        assert!(item.encode_utf16().count() <= ITEM_UNITS_MAX && !item.contains('\n'));
        let query = Query::Contains {
            plugin: plugin.clone(),
            text: item,
        };
        assert!(facts.matches(&query), "{query:?}");
    }
}

fn scalar(facts: &Facts<'_>, plugin: &PluginName, value: &Value) {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Null | Value::Number(_) => value.to_string(),
        _ => return,
    };
    let pointer = format!("/{}", plugin.as_str().replace('~', "~0").replace('/', "~1"));
    let pointer = Pointer::parse(&pointer).expect("a pointer");
    let query = Query::Where {
        pointer,
        value: text,
    };
    assert!(facts.matches(&query), "{query:?}");
}
