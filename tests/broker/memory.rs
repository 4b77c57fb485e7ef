//! What only the memory broker can show: its bounds and its faults, with the clock in our hands.

use vogeler::broker::{BrokerError, Link};

use super::*;

/// Goal: a full queue makes publishers wait, and times out rather than growing.
#[tokio::test(start_paused = true)]
async fn a_full_queue_is_unconfirmed() {
    let timeout = Duration::from_secs(30);
    let broker = MemoryBroker::with_limits(2, timeout);
    let bench = Bench::new(Arc::new(broker.clone()), Arc::new(broker));
    let mut consumer = bench.broker.consume(&bench.queue(), 1).await.unwrap();
    bench.publish(&["1", "2"]).await;
    let error = bench.broker.publish(bench.message("3")).await.unwrap_err();
    assert!(
        matches!(error, BrokerError::Unconfirmed { timeout: told } if told == timeout),
        "{error}"
    );
    let held = next(&mut consumer).await;
    let (published, ()) = tokio::join!(bench.broker.publish(bench.message("4")), async {
        held.settler.ack();
    });
    published.unwrap();
    assert_eq!(text(&next(&mut consumer).await), "2");
}

/// Goal: a session that is cut gives all it held again, in order, and its old settlers do nothing.
#[tokio::test]
async fn a_cut_session_redelivers() {
    let broker = MemoryBroker::new();
    let bench = Bench::new(Arc::new(broker.clone()), Arc::new(broker.clone()));
    let queue = bench.queue();
    let mut consumer = bench.broker.consume(&queue, 10).await.unwrap();
    bench.publish(&["1", "2", "3"]).await;
    let old = take(&mut consumer, 3).await;
    broker.cut_sessions(&queue.name);
    let new = take(&mut consumer, 3).await;
    assert_eq!(texts(&new), ["1", "2", "3"]);
    assert!(new.iter().all(|delivery| delivery.redelivered));
    ack_all(old);
    drop(new);
    let again = take(&mut consumer, 3).await;
    ack_all(again);
    assert!(consumer.close(SOON).await);
    assert_eq!(bench.ready(&queue).await, Some(0));
}

/// Goal: while paused nothing moves, and everything does afterwards.
#[tokio::test(start_paused = true)]
async fn a_pause_holds_everything() {
    let broker = MemoryBroker::new();
    let bench = Bench::new(Arc::new(broker.clone()), Arc::new(broker.clone()));
    let mut consumer = bench.broker.consume(&bench.queue(), 10).await.unwrap();
    bench.publish(&["1"]).await;
    broker.pause(true);
    quiet(&mut consumer).await;
    let error = bench.broker.publish(bench.message("2")).await.unwrap_err();
    assert!(matches!(error, BrokerError::Unconfirmed { .. }), "{error}");
    broker.pause(false);
    assert_eq!(text(&next(&mut consumer).await), "1");
}

/// Goal: while the link is down calls fail with its reason, and consumers go on when it is back.
#[tokio::test]
async fn a_link_that_is_down_fails_calls_and_recovers() {
    let broker = MemoryBroker::new();
    let bench = Bench::new(Arc::new(broker.clone()), Arc::new(broker.clone()));
    let mut consumer = bench.broker.consume(&bench.queue(), 10).await.unwrap();
    bench.publish(&["1"]).await;
    let held = next(&mut consumer).await;
    let reason = "a test".to_owned();
    broker.set_link(Link::Down { reason });
    let error = bench.broker.publish(bench.message("2")).await.unwrap_err();
    assert!(error.to_string().contains("a test"), "{error}");
    quiet(&mut consumer).await;
    broker.set_link(Link::Up);
    let again = next(&mut consumer).await;
    held.settler.ack();
    assert_eq!((text(&again).as_str(), again.redelivered), ("1", true));
}

/// Goal: a queue deleted under its consumer is declared again and serves on.
#[tokio::test]
async fn a_deleted_queue_is_declared_again() {
    let broker = MemoryBroker::new();
    let bench = Bench::new(Arc::new(broker.clone()), Arc::new(broker.clone()));
    let queue = bench.queue();
    let mut consumer = bench.broker.consume(&queue, 10).await.unwrap();
    broker.delete(&queue.name);
    bench.until_ready(&queue, Some(0)).await;
    bench.publish(&["1"]).await;
    assert_eq!(text(&next(&mut consumer).await), "1");
}

/// Goal: a client's queue goes when nobody used it for as long as it may be unused.
#[tokio::test(start_paused = true)]
async fn an_unused_queue_expires() {
    let bench = Bench::memory();
    let queue = Queue {
        lifetime: Lifetime::Expires(Duration::from_mins(1)),
        ..bench.queue()
    };
    let consumer = bench.broker.consume(&queue, 10).await.unwrap();
    tokio::time::advance(Duration::from_mins(2)).await;
    assert_eq!(bench.ready(&queue).await, Some(0));
    assert!(consumer.close(SOON).await);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(bench.ready(&queue).await, None);
}
