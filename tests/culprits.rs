//! What one bad result, document or message costs: itself, and none of its neighbours. On the memory broker and store.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use vogeler::broker::memory::too_large;
use vogeler::broker::topology::Exchange;
use vogeler::broker::{Broker, BrokerError, Link, Message};
use vogeler::config::Config;
use vogeler::store::Verdict;
use vogeler::store::memory::{Call, Failure, Fault, MemoryStore};
use vogeler::wire::{Content, ErrorKind, Outcome, PluginError};

use crate::harness::pipeline::{
    Pipeline, eventually, in_system, message, name, of_2010, quick_config, result, value,
};

/// Results that are published together are written together.
fn slow_config() -> Config {
    let mut config = quick_config();
    config.server.linger = Duration::from_millis(300);
    config
}

async fn publish(pipeline: &Pipeline, node: &str, values: &[(&str, &str)]) {
    for (plugin, content) in values {
        pipeline
            .publish(&value(node, plugin, 10, &json!(content)))
            .await;
    }
}

async fn until(pipeline: &Pipeline, outcome: Outcome, count: u64) {
    let what = format!("{count} {}", outcome.as_str());
    eventually(&what, async || {
        (pipeline.ended(outcome) >= count).then_some(())
    })
    .await;
}

/// Goal: a value that the store does not take costs no other result of its node, whether the store refuses the document or
/// fails at it.
#[test]
fn a_bad_value_costs_no_other_result() {
    in_system(async {
        let poisoned = MemoryStore::new();
        poisoned.poison("rotten");
        let refusing = MemoryStore::new();
        refusing.refuse("rotten");
        for (store, reason) in [(refusing, "bad_request"), (poisoned, "store_error")] {
            let pipeline = Pipeline::start_with(slow_config(), store).await;
            let values = [
                ("a", "1"),
                ("b", "a longer one"),
                ("c", "rotten"),
                ("d", "2"),
                ("e", "rotten, and long"),
                ("f", "3"),
            ];
            publish(&pipeline, "web01", &values).await;
            publish(&pipeline, "web02", &[("a", "4")]).await;
            pipeline.settled(7).await;
            assert_eq!(pipeline.ended(Outcome::Stored), 5, "{reason}");
            assert_eq!(pipeline.ended(Outcome::DeadLettered), 2, "{reason}");
            let letter = pipeline.dead_letter().await;
            assert_eq!(letter.properties.headers["x-vogeler-reason"], reason);
            let document = pipeline.document("web01");
            for (plugin, content) in values {
                let is_bad = content.starts_with("rotten");
                let expected = if is_bad { Value::Null } else { json!(content) };
                assert_eq!(document[plugin], expected, "{document}");
            }
        }
    });
}

/// Goal: a line that is too slow for a document makes no dead letter of it, however long that takes.
#[test]
fn a_slow_line_makes_no_dead_letter() {
    in_system(async {
        let store = MemoryStore::new();
        store.poison_as("large", Failure::Away { retry_after: None });
        let pipeline = Pipeline::start_with(slow_config(), store).await;
        publish(&pipeline, "web01", &[("a", "large")]).await;
        eventually("many failures", async || {
            (pipeline.store.writes() > 40).then_some(())
        })
        .await;
        assert_eq!(pipeline.ended(Outcome::DeadLettered), 0);
        pipeline.store.poison("nothing");
        until(&pipeline, Outcome::Stored, 1).await;
    });
}

/// Goal: of results that are too large together, those are stored that fit, though others are larger than they look; and
/// what needs no room is settled whatever the rest does.
#[test]
fn what_fits_is_stored_whatever_was_expected() {
    in_system(async {
        let store = MemoryStore::new().with_document_bytes_max(3_000);
        let mut pipeline = Pipeline::start_with(slow_config(), store).await;
        publish(&pipeline, "web01", &[("a", "1")]).await;
        pipeline.settled(1).await;
        // Another server, which knows nothing of the document.
        pipeline.stop().await;
        pipeline.start_server().await;
        let error = Content::Error(PluginError {
            kind: ErrorKind::Failed,
            message: "\u{1}".repeat(500),
            exit: Some(1),
            stderr: Some("\u{1}".repeat(500)),
        });
        pipeline.publish(&result("web01", "b", 10, error)).await;
        let text = "x".repeat(1_400);
        publish(&pipeline, "web01", &[("c", &text)]).await;
        pipeline.publish(&value("web01", "a", 5, &json!("0"))).await;
        pipeline.settled(3).await;
        let ended = [Outcome::Stored, Outcome::Stale, Outcome::DeadLettered];
        assert_eq!(ended.map(|outcome| pipeline.ended(outcome)), [1, 1, 1]);
        let document = pipeline.document("web01");
        assert_eq!(
            (&document["a"], &document["c"]),
            (&json!("1"), &json!(text))
        );
    });
}

/// Goal: a document that cannot be read is no outage: other nodes are written, and it is, once it can be read.
#[test]
fn a_document_that_cannot_be_read_is_no_outage() {
    in_system(async {
        let mut config = quick_config();
        config.server.conflict_retries_max = 2;
        let pipeline = Pipeline::start_with(config, MemoryStore::new()).await;
        pipeline.store.fail_reads(Some(name("web01")));
        publish(&pipeline, "web01", &[("a", "1")]).await;
        until(&pipeline, Outcome::Requeued, 1).await;
        publish(&pipeline, "web02", &[("a", "1")]).await;
        until(&pipeline, Outcome::Stored, 1).await;
        assert_eq!(pipeline.document("web01"), Value::Null);
        pipeline.store.fail_reads(None);
        until(&pipeline, Outcome::Stored, 2).await;
        assert_eq!(pipeline.ended(Outcome::DeadLettered), 0);
    });
}

fn away() -> BrokerError {
    BrokerError::Away {
        broker: "test".to_owned(),
        reason: "test".to_owned(),
    }
}

/// Goal: while the broker refuses dead letters, and rubbish fills what may wait for it, other nodes are written.
#[test]
fn refused_dead_letters_hold_up_no_write() {
    in_system(async {
        let mut config = quick_config();
        config.server.writes_in_flight = 1;
        config.server.message_bytes_max = 1_000;
        let store = MemoryStore::new();
        let forbidden = Verdict::Refused {
            error: "forbidden".to_owned(),
            reason: "test".to_owned(),
        };
        let rows = HashMap::from([(name("web01"), forbidden)]);
        store.script(Call::Write, Fault::Rows(rows));
        let pipeline = Pipeline::start_with(config, store).await;
        let refusal = |message: &Message| (message.exchange == Exchange::Dead).then(away);
        pipeline.broker.refuse(Some(refusal));
        pipeline.publish_bytes(&vec![b'x'; 64 << 20]).await;
        eventually("the rubbish is taken", async || {
            (pipeline.ledger.counts().received == 1).then_some(())
        })
        .await;
        publish(&pipeline, "web01", &[("a", "1")]).await;
        eventually("a document is refused", async || {
            (pipeline.store.writes() == 1).then_some(())
        })
        .await;
        publish(&pipeline, "web02", &[("a", "1")]).await;
        until(&pipeline, Outcome::Stored, 1).await;
        assert_eq!(pipeline.ended(Outcome::DeadLettered), 0);
        pipeline.broker.refuse(None);
        until(&pipeline, Outcome::DeadLettered, 2).await;
    });
}

fn is_forwarded(message: &Message) -> bool {
    message.routing_key.starts_with("vogeler.results.")
}

/// Goal: what cannot be forwarded goes back after `hold_max`, with all that came behind it, and comes again in its order; the
/// server is not ready meanwhile.
#[test]
fn what_cannot_be_forwarded_goes_back_in_order() {
    in_system(async {
        let mut config = quick_config();
        config.server.hold_max = Duration::from_millis(600);
        let pipeline = Pipeline::start_with(config, MemoryStore::new()).await;
        pipeline
            .broker
            .refuse(Some(|message| is_forwarded(message).then(away)));
        for content in ["one", "two", "three"] {
            let body = of_2010("web01", "rpms", &json!(content));
            pipeline.broker.publish(message("", body)).await.unwrap();
        }
        eventually("not ready", async || {
            matches!(pipeline.forwards(), Link::Down { .. }).then_some(())
        })
        .await;
        until(&pipeline, Outcome::Requeued, 3).await;
        pipeline.broker.refuse(None);
        eventually("the newest is stored", async || {
            (pipeline.document("web01")["rpms"] == "three").then_some(())
        })
        .await;
        eventually("ready again", async || {
            (pipeline.forwards() == Link::Up).then_some(())
        })
        .await;
        eventually("all is settled", async || {
            (pipeline.ledger.counts().in_flight() == 0).then_some(())
        })
        .await;
        assert_eq!(pipeline.document("web01")["rpms"], "three");
    });
}

/// Goal: what the broker takes from nobody, for its size, is a dead letter, and what is behind it is forwarded.
#[test]
fn what_is_too_large_to_forward_is_a_dead_letter() {
    in_system(async {
        let pipeline = Pipeline::start().await;
        let refusal =
            |message: &Message| too_large::<1_000>(message).filter(|_| is_forwarded(message));
        pipeline.broker.refuse(Some(refusal));
        for (node, content) in [("web01", "x".repeat(2_000)), ("web02", "x".to_owned())] {
            let body = of_2010(node, "rpms", &json!(content));
            pipeline.broker.publish(message("", body)).await.unwrap();
        }
        until(&pipeline, Outcome::Stored, 1).await;
        let letter = pipeline.dead_letter().await;
        assert_eq!(letter.properties.headers["x-vogeler-reason"], "too_large");
        assert_eq!(pipeline.ended(Outcome::DeadLettered), 1);
    });
}
