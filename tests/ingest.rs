//! The ingest server on the memory broker and store: outcomes, faults of the store, bad messages, stopping.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use vogeler::broker::Broker;
use vogeler::broker::topology::DEAD_QUEUE;
use vogeler::store::Verdict;
use vogeler::store::memory::{Call, Failure, Fault, MemoryStore};
use vogeler::wire::{Outcome, RunId};

use crate::harness::pipeline::{
    Pipeline, edit, eventually, in_system, message, name, next_receipts, of_2010, quick_config,
    value,
};

const AWAY: Failure = Failure::Away { retry_after: None };

/// Goal: an older result of 2010 that goes back to the broker alone, after a newer one came, does not overwrite it.
#[test]
fn results_of_2010_keep_the_order_they_came_in() {
    in_system(async {
        let mut config = quick_config();
        config.server.conflict_retries_max = 3;
        let store = MemoryStore::new();
        for _ in 0..=config.server.conflict_retries_max {
            let conflict = HashMap::from([(name("web01"), Verdict::Conflict)]);
            store.script(Call::Write, Fault::Rows(conflict));
        }
        let pipeline = Pipeline::start_with(config, store).await;
        let publish = async |content: &str| {
            let body = of_2010("web01", "rpms", &json!(content));
            pipeline.broker.publish(message("", body)).await.unwrap();
        };
        publish("older").await;
        eventually("the older one is being written", async || {
            (pipeline.store.writes() > 0).then_some(())
        })
        .await;
        publish("newer").await;
        eventually("both are judged", async || {
            let of = |outcome| pipeline.ended(outcome);
            let ended = of(Outcome::Stored) + of(Outcome::Stale) + of(Outcome::Superseded);
            (ended == 2 && pipeline.ledger.counts().in_flight() == 0).then_some(())
        })
        .await;
        assert_eq!(pipeline.document("web01")["rpms"], "newer");
        let requeued = pipeline.ended(Outcome::Requeued);
        assert_eq!(requeued, 3, "two forwarded, and the older one came again");
    });
}

/// Goal: a result becomes the node document, its delivery is acknowledged, and the runner hears of it.
#[test]
fn a_result_is_stored_acknowledged_and_receipted() {
    in_system(async {
        let mut pipeline = Pipeline::start().await;
        let run = RunId::generate();
        let mut receipts = pipeline.receipts(run).await;
        let mut result = value("web01", "rpms", 7, &json!(["bash-5.1.8"]));
        result.run = Some(run);
        pipeline.publish(&result).await;
        let batch = next_receipts(&mut receipts).await;
        assert_eq!(batch.run, run);
        assert_eq!(batch.receipts[0].node, name("web01"));
        assert_eq!(batch.receipts[0].outcome, Outcome::Stored);
        assert_eq!(pipeline.document("web01")["rpms"], json!(["bash-5.1.8"]));
        assert_eq!(
            pipeline.document("web01")["vogeler"]["plugins"]["rpms"]["run"],
            run.to_string()
        );
        let drained = pipeline.stop().await;
        assert_eq!((drained.counts.received, drained.given_back), (1, 0));
        for partition in 0..4 {
            let queue = format!("vogeler.results.{partition}");
            assert_eq!(
                pipeline.broker.depth(&[&queue]).await.unwrap()[0]
                    .unwrap()
                    .ready,
                0
            );
        }
    });
}

/// Goal: while a write is in flight, ten results of the node become one further write, and none is lost.
#[test]
fn results_of_a_node_coalesce() {
    in_system(async {
        let store = MemoryStore::new();
        store.script(Call::Write, Fault::Delay(Duration::from_millis(300)));
        let pipeline = Pipeline::start_with(quick_config(), store).await;
        pipeline
            .publish(&value("web01", "rpms", 1, &json!(1)))
            .await;
        eventually("the first write began", async || {
            (pipeline.store.writes() == 1).then_some(())
        })
        .await;
        for seq in 2..=11 {
            pipeline
                .publish(&value("web01", "rpms", seq, &json!(seq)))
                .await;
        }
        pipeline.settled(11).await;
        assert_eq!(pipeline.store.writes(), 2);
        assert_eq!(pipeline.ended(Outcome::Stored), 2);
        assert_eq!(pipeline.ended(Outcome::Superseded), 9);
        assert_eq!(pipeline.document("web01")["rpms"], json!(11));
    });
}

/// Goal: unchanged and stale results cost no write, and each is counted as what it is, warm and after a restart.
#[test]
fn unchanged_and_stale_results_cost_no_write() {
    in_system(async {
        let mut pipeline = Pipeline::start().await;
        pipeline
            .publish(&value("web01", "rpms", 10, &json!(["bash"])))
            .await;
        pipeline.settled(1).await;
        assert_eq!(pipeline.ended(Outcome::Stored), 1);
        for is_restarted in [false, true] {
            if is_restarted {
                pipeline.stop().await;
                pipeline.start_server().await;
            }
            let received = pipeline.ledger.counts().received;
            pipeline
                .publish(&value("web01", "rpms", 11, &json!(["bash"])))
                .await;
            pipeline.settled(received + 1).await;
            pipeline
                .publish(&value("web01", "rpms", 9, &json!(["older"])))
                .await;
            pipeline.settled(received + 2).await;
            assert_eq!(pipeline.ended(Outcome::Unchanged), 1);
            assert_eq!(pipeline.ended(Outcome::Stale), 1);
            assert_eq!(pipeline.document("web01")["rpms"], json!(["bash"]));
        }
        assert_eq!(pipeline.store.writes(), 1);
    });
}

/// Goal: an answer that got lost after the write is not written again: the server reads, and finds its own write.
#[test]
fn a_lost_answer_is_read_back_not_written_twice() {
    in_system(async {
        let store = MemoryStore::new();
        store.script(Call::Write, Fault::After(AWAY));
        let pipeline = Pipeline::start_with(quick_config(), store).await;
        pipeline
            .publish(&value("web01", "rpms", 1, &json!(1)))
            .await;
        pipeline.settled(1).await;
        assert_eq!(pipeline.ended(Outcome::Stored), 1);
        assert_eq!(pipeline.store.writes(), 1);
        assert!(
            pipeline
                .store
                .document(&name("web01"))
                .unwrap()
                .revision
                .0
                .starts_with("1-")
        );
    });
}

/// Goal: a store that is away, refuses us, or has no database delays results and loses none.
#[test]
fn results_wait_while_the_store_is_away() {
    in_system(async {
        let store = MemoryStore::new();
        store.script(Call::Load, Fault::None); // the probe at start
        store.script(Call::Load, Fault::Before(AWAY));
        store.script(Call::Load, Fault::Before(Failure::NoDatabase));
        store.script(Call::Write, Fault::Before(AWAY));
        let pipeline = Pipeline::start_with(quick_config(), store).await;
        for node in ["web01", "web02", "web03"] {
            pipeline.publish(&value(node, "rpms", 1, &json!(1))).await;
        }
        pipeline.settled(3).await;
        assert_eq!(pipeline.ended(Outcome::Stored), 3);
        assert_eq!(pipeline.ended(Outcome::Requeued), 0);
    });
}

/// Goal: another program's edit between our read and our write survives, and so does our result.
#[test]
fn a_conflict_is_merged_with_the_foreign_edit() {
    in_system(async {
        let store = MemoryStore::new();
        store.script(
            Call::Write,
            Fault::Rows(HashMap::from([(name("web01"), Verdict::Conflict)])),
        );
        edit(&store, "web01", "owner", json!("storage team"));
        let pipeline = Pipeline::start_with(quick_config(), store).await;
        pipeline
            .publish(&value("web01", "rpms", 1, &json!(1)))
            .await;
        pipeline
            .publish(&value("web02", "rpms", 1, &json!(1)))
            .await;
        pipeline.settled(2).await;
        assert_eq!(pipeline.ended(Outcome::Stored), 2);
        let document = pipeline.document("web01");
        assert_eq!(
            (&document["owner"], &document["rpms"]),
            (&json!("storage team"), &json!(1))
        );
    });
}

/// Goal: a warm node is written without a read; a foreign edit since then is found by its conflict and survives, and
/// a document that somebody deleted starts anew: what was remembered of it does not come back.
#[test]
fn a_warm_node_needs_no_read_and_trusts_no_memory() {
    in_system(async {
        let pipeline = Pipeline::start().await;
        let put = async |plugin, seq| {
            let result = value("web01", plugin, seq, &json!(seq));
            pipeline.publish(&result).await;
        };
        put("rpms", 1).await;
        pipeline.settled(1).await;
        let loads = pipeline.store.loads();
        put("rpms", 2).await;
        pipeline.settled(2).await;
        assert_eq!(pipeline.store.loads(), loads, "a warm node was read");

        edit(&pipeline.store, "web01", "owner", json!("storage team"));
        put("rpms", 3).await;
        pipeline.settled(3).await;
        let document = pipeline.document("web01");
        assert_eq!(document["owner"], json!("storage team"));
        assert_eq!(document["rpms"], json!(3));
        assert_eq!(pipeline.store.loads(), loads + 1);

        assert!(pipeline.store.delete(&name("web01")));
        put("facter", 4).await;
        pipeline.settled(4).await;
        let document = pipeline.document("web01");
        assert_eq!(document["facter"], json!(4));
        assert!(document["owner"].is_null() && document["rpms"].is_null());
        assert_eq!(pipeline.ended(Outcome::Stored), 4);
    });
}

/// Goal: a document the store refuses becomes dead letters with node, plugin and reason; its neighbours are stored.
#[test]
fn a_refused_document_is_dead_lettered_alone() {
    in_system(async {
        let store = MemoryStore::new();
        let refused = Verdict::Refused {
            error: "forbidden".to_owned(),
            reason: "no bad documents".to_owned(),
        };
        // Whatever batch it is in: the second node is refused each time.
        for _ in 0..2 {
            store.script(
                Call::Write,
                Fault::Rows(HashMap::from([(name("web02"), refused.clone())])),
            );
        }
        let pipeline = Pipeline::start_with(quick_config(), store).await;
        let results = ["web01", "web02", "web03"].map(|node| value(node, "rpms", 1, &json!(1)));
        for result in &results {
            pipeline.publish(result).await;
        }
        pipeline.settled(3).await;
        assert_eq!(
            (
                pipeline.ended(Outcome::Stored),
                pipeline.ended(Outcome::DeadLettered)
            ),
            (2, 1)
        );
        let letter = pipeline.dead_letter().await;
        let header = |name: &str| {
            letter
                .properties
                .headers
                .get(name)
                .cloned()
                .unwrap_or_default()
        };
        assert_eq!(header("x-vogeler-reason"), "forbidden");
        assert_eq!(header("x-vogeler-detail"), "no bad documents");
        assert_eq!(
            (header("x-vogeler-node"), header("x-vogeler-plugin")),
            ("web02".to_owned(), "rpms".to_owned())
        );
        assert_eq!(
            letter.body,
            results[1].encode().unwrap(),
            "the original bytes are kept"
        );
    });
}

/// Goal: a document at which the store fails however often it is asked is a dead letter in the end, not a loop; one at
/// which it fails for reasons of its own comes again.
#[test]
fn a_document_that_always_fails_is_dead_lettered() {
    in_system(async {
        let mut config = quick_config();
        config.server.conflict_retries_max = 2;
        let store = MemoryStore::new();
        let failed = |error: &str| Verdict::Failed {
            error: error.to_owned(),
            reason: "boom".to_owned(),
        };
        // Three times with its neighbours; and once more without its results, which tells a bad shard from a bad result.
        for _ in 0..4 {
            let rows = HashMap::from([
                (name("web02"), failed("unknown_error")),
                (name("web03"), failed("internal_server_error")),
            ]);
            store.script(Call::Write, Fault::Rows(rows));
        }
        config.server.linger = Duration::from_millis(100);
        let pipeline = Pipeline::start_with(config, store).await;
        for node in ["web01", "web02", "web03"] {
            pipeline.publish(&value(node, "rpms", 1, &json!(1))).await;
        }
        pipeline.settled(4).await;
        assert_eq!(pipeline.ended(Outcome::Stored), 2);
        assert_eq!(pipeline.ended(Outcome::DeadLettered), 1);
        assert_eq!(pipeline.ended(Outcome::Requeued), 1);
        let letter = pipeline.dead_letter().await;
        assert_eq!(
            letter.properties.headers["x-vogeler-reason"],
            "unknown_error"
        );
        assert_eq!(pipeline.document("web03")["rpms"], json!(1));
    });
}

/// Goal: every kind of bad message of the issue is a dead letter with its reason and its own bytes, and the good
/// result behind them is stored.
#[test]
fn bad_messages_are_dead_lettered_and_disturb_nothing() {
    in_system(async {
        let pipeline = Pipeline::start().await;
        let long = format!(
            r#"{{"syskey":"{}","format":"raw","p":"x"}}"#,
            "n".repeat(10 * 1024)
        );
        let bad: [(&[u8], &str); 8] = [
            (b"not json", "not_json"),
            (br#"{"v":2,"node":"web01","plug"#, "not_json"),
            (br#"{"syskey":"","format":"raw","p":"x"}"#, "bad_node_name"),
            (
                br#"{"syskey":"_design/x","format":"raw","p":"x"}"#,
                "bad_node_name",
            ),
            (
                br#"{"syskey":"a\u0007b","format":"raw","p":"x"}"#,
                "bad_node_name",
            ),
            (long.as_bytes(), "bad_node_name"),
            (
                br#"{"syskey":"web01","format":"raw","_rev":"x"}"#,
                "bad_plugin_name",
            ),
            (
                br#"{"syskey":"web01","format":"raw","vogeler":"x"}"#,
                "bad_plugin_name",
            ),
        ];
        for (body, reason) in bad {
            pipeline.publish_bytes(body).await;
            let letter = pipeline.dead_letter().await;
            assert_eq!(letter.properties.headers["x-vogeler-reason"], reason);
            assert_eq!(letter.body, body, "the original bytes are kept");
            letter.settler.ack();
        }
        pipeline
            .publish(&value("web01", "rpms", 1, &json!(1)))
            .await;
        // The last two of 2010 are forwarded first, each a delivery more.
        pipeline.settled(11).await;
        assert_eq!(
            (
                pipeline.ended(Outcome::Stored),
                pipeline.ended(Outcome::DeadLettered)
            ),
            (1, 8)
        );
    });
}

/// Goal: a stop under load settles what it can, gives the rest back, and the next server stores it: nothing is lost.
#[test]
fn stopping_under_load_loses_nothing() {
    in_system(async {
        let mut pipeline = Pipeline::start().await;
        for number in 0..500_u64 {
            pipeline
                .publish(&value(&format!("node{number}"), "rpms", 1, &json!(number)))
                .await;
        }
        let drained = pipeline.stop().await;
        assert_eq!(drained.given_back, 0);
        pipeline.start_server().await;
        eventually("all 500 are stored", async || {
            (0..500)
                .all(|number| pipeline.document(&format!("node{number}"))["rpms"] == json!(number))
                .then_some(())
        })
        .await;
    });
}

/// Goal: a stop while the store is away ends at the drain deadline, and what was held comes again.
#[test]
fn stopping_while_the_store_is_away_gives_back() {
    in_system(async {
        let mut config = quick_config();
        config.server.drain_timeout = Duration::from_millis(200);
        let store = MemoryStore::new();
        store.script(Call::Load, Fault::None);
        for _ in 0..1_000 {
            store.script(Call::Load, Fault::Before(AWAY));
        }
        let mut pipeline = Pipeline::start_with(config, store).await;
        pipeline
            .publish(&value("web01", "rpms", 1, &json!(1)))
            .await;
        eventually("it is in flight", async || {
            (pipeline.ledger.counts().in_flight() == 1).then_some(())
        })
        .await;
        let drained = pipeline.stop().await;
        assert_eq!(drained.given_back, 1);
        pipeline.store = MemoryStore::new();
        pipeline.start_server().await;
        pipeline.settled(1).await;
        assert_eq!(pipeline.document("web01")["rpms"], json!(1));
    });
}

/// Goal: when sessions are cut, what was unsettled comes again and is absorbed; the accounting still adds up.
#[test]
fn cut_sessions_lose_nothing() {
    in_system(async {
        let pipeline = Pipeline::start().await;
        for number in 0..200_u64 {
            pipeline
                .publish(&value(
                    &format!("node{}", number % 50),
                    "rpms",
                    number + 1,
                    &json!(number),
                ))
                .await;
            if number % 40 == 0 {
                for partition in 0..4 {
                    pipeline
                        .broker
                        .cut_sessions(&format!("vogeler.results.{partition}"));
                }
            }
        }
        eventually("the newest of each node is stored", async || {
            (150..200)
                .all(|number| {
                    pipeline.document(&format!("node{}", number % 50))["rpms"] == json!(number)
                })
                .then_some(())
        })
        .await;
        pipeline.settled(200).await;
        assert_eq!(
            pipeline.broker.depth(&[DEAD_QUEUE]).await.unwrap()[0]
                .unwrap()
                .ready,
            0
        );
    });
}

/// Goal: an actor that was idle long enough goes, and leaves what it knew: what comes later is judged without a read,
/// unchanged, stale and new alike.
#[test]
fn idle_actors_go_and_leave_what_they_knew() {
    in_system(async {
        let mut config = quick_config();
        config.server.node_idle = Duration::from_millis(30);
        let pipeline = Pipeline::start_with(config, MemoryStore::new()).await;
        let steps = [
            (1_u64, 1, Outcome::Stored),
            (3, 1, Outcome::Unchanged),
            (2, 2, Outcome::Stale),
            (4, 4, Outcome::Stored),
        ];
        let mut loads = Vec::new();
        for (settled, (seq, content, outcome)) in (1..).zip(steps) {
            let before = pipeline.ended(outcome);
            pipeline
                .publish(&value("web01", "rpms", seq, &json!(content)))
                .await;
            pipeline.settled(settled).await;
            assert_eq!(pipeline.ended(outcome), before + 1, "{outcome:?}");
            eventually("the idle actor is gone", async || {
                (pipeline.active_nodes() == 0).then_some(())
            })
            .await;
            loads.push(pipeline.store.loads());
        }
        assert_eq!(pipeline.document("web01")["rpms"], json!(4));
        // The first found nothing known, and read.
        assert!(loads.iter().all(|count| *count == loads[0]), "{loads:?}");
    });
}
