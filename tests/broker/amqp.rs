//! What only RabbitMQ can show: credentials, outages, and queues that go away.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use vogeler::broker::{BrokerError, Link};

use super::*;
use crate::harness::proxy::Proxy;
use crate::harness::rabbit::{PASSWORD, USER};

/// All calls of a broker that cannot be used.
async fn errors(broker: &AmqpBroker) -> Vec<BrokerError> {
    let bench = Bench::memory();
    vec![
        broker.consume(&bench.queue(), 1).await.unwrap_err(),
        broker.publish(bench.message("1")).await.unwrap_err(),
        broker.declare(&[bench.queue()]).await.unwrap_err(),
        broker.depth(&[&bench.name]).await.unwrap_err(),
    ]
}

/// Goal: wrong credentials fail at once, finally, with the setting to look at and without the password.
#[tokio::test]
async fn a_wrong_password_is_refused_and_not_repeated() {
    let broker = amqp(&Rabbit::shared().dsn(USER, "hunter2", "t0"));
    for error in errors(&broker).await {
        assert!(matches!(error, BrokerError::Refused { .. }), "{error}");
        assert!(!error.is_retryable());
        let texts = format!("{error} {error:?} {broker:?} {:?}", broker.link());
        assert!(error.to_string().contains("broker.dsn"), "{error}");
        assert!(
            !texts.contains("hunter2") && !texts.contains(PASSWORD),
            "{texts}"
        );
    }
    assert!(matches!(&*broker.link().borrow(), Link::Down { .. }));
    broker.close().await;
}

/// Goal: a virtual host that does not exist is refused by name.
#[tokio::test]
async fn a_missing_vhost_is_refused() {
    let broker = amqp(&Rabbit::shared().dsn(USER, "pa55%2Fw%40rd%3A%C3%BC%3F", "no-such-vhost"));
    for error in errors(&broker).await {
        assert!(matches!(error, BrokerError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("no-such-vhost"), "{error}");
    }
    broker.close().await;
}

/// Goal: nobody there is an error that may pass, named with the address; a consumer keeps trying.
#[tokio::test]
async fn nobody_there_is_away() {
    let port = crate::harness::process::free_port();
    let broker = amqp(
        &format!("amqp://u:hunter2@127.0.0.1:{port}/v")
            .parse()
            .unwrap(),
    );
    let bench = Bench::memory();
    let consumer = broker.consume(&bench.queue(), 1).await.unwrap();
    let errors = [
        broker.publish(bench.message("1")).await.unwrap_err(),
        broker.declare(&[bench.queue()]).await.unwrap_err(),
        broker.depth(&[&bench.name]).await.unwrap_err(),
        broker.about().await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, BrokerError::Away { .. }), "{error}");
        assert!(
            error.is_retryable() && error.to_string().contains(&port.to_string()),
            "{error}"
        );
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    assert!(matches!(&*broker.link().borrow(), Link::Down { .. }));
    assert!(consumer.close(SOON).await);
    broker.close().await;
}

/// Goal: a queue deleted under its consumer is declared again, and serves on.
#[tokio::test]
async fn a_deleted_queue_is_declared_again() {
    let bench = Bench::rabbit();
    let queue = bench.queue();
    let mut consumer = bench.broker.consume(&queue, 10).await.unwrap();
    bench.publish(&["1"]).await;
    let held = next(&mut consumer).await;
    delete(&queue.name).await;
    publish_surely(&*bench.broker, &bench.message("2")).await;
    held.settler.ack();
    assert_eq!(take_texts(&mut consumer, 1).await, ["2"]);
    assert!(consumer.close(SOON).await);
    assert_eq!(bench.ready(&queue).await, Some(0));
    bench.close().await;
}

/// Goal: a queue whose sessions broke twice has a connection of its own; once it holds there, the broker counts as up again,
/// though nobody else uses the connection that broke.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_aside_does_not_leave_the_link_down() {
    let dsn = Rabbit::shared().fresh_vhost();
    let proxy = Proxy::tcp(dsn.port().unwrap());
    let mut through = dsn.clone();
    through.set_port(Some(proxy.port())).unwrap();
    let bench = Bench::new(Arc::new(amqp(&through)), Arc::new(amqp(&dsn)));
    let queue = bench.queue();
    let mut consumer = bench.broker.consume(&queue, 10).await.unwrap();
    publish_surely(&*bench.other, &bench.message("1")).await;
    for _ in 0..2 {
        let held = next(&mut consumer).await;
        proxy.cut();
        drop(held);
    }
    next(&mut consumer).await.settler.ack();
    let mut link = bench.broker.link();
    let is_up = link.wait_for(|link| *link == Link::Up);
    tokio::time::timeout(SOON, is_up).await.unwrap().unwrap();
    // It does not go down again over what broke before.
    tokio::time::sleep(QUIET * 5).await;
    assert_eq!(*bench.broker.link().borrow(), Link::Up);
    assert!(consumer.close(SOON).await);
    bench.close().await;
}

/// Goal: among messages under way at once exactly those that are too large are called so; the others are sent, or may be
/// sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_told_apart() {
    let rabbit = tokio::task::spawn_blocking(|| Rabbit::taking_at_most(10_000));
    let rabbit = rabbit.await.unwrap();
    let dsn = rabbit.fresh_vhost();
    let bench = Bench::new(Arc::new(amqp(&dsn)), Arc::new(amqp(&dsn)));
    let queue = bench.queue();
    bench
        .broker
        .declare(std::slice::from_ref(&queue))
        .await
        .unwrap();
    let body = |number: usize| if number % 20 == 7 { 10_001 } else { 10_000 };
    let publishes = (0..60).map(|number| {
        let message = bench.message(&"x".repeat(body(number)));
        bench.broker.publish(message)
    });
    let results = futures::future::join_all(publishes).await;
    for (number, result) in results.into_iter().enumerate() {
        match result {
            Err(BrokerError::TooLarge {
                bytes, bytes_max, ..
            }) => {
                assert_eq!((number % 20, bytes, bytes_max), (7, 10_001, 10_000));
            }
            Err(error) => assert!(error.is_retryable(), "{number}: {error}"),
            Ok(()) => assert_ne!(number % 20, 7),
        }
    }
    let error = bench
        .broker
        .publish(bench.message(&"x".repeat(10_001)))
        .await;
    let error = error.unwrap_err();
    assert!(
        !error.is_retryable() && error.to_string().contains("max_message_size"),
        "{error}"
    );
    publish_surely(&*bench.broker, &bench.message("behind it")).await;
    bench.close().await;
}

/// Deletes a queue in the virtual host of [`Bench::rabbit`], as an operator would.
async fn delete(queue: &str) {
    let queue = queue.to_owned();
    let list = tokio::task::spawn_blocking(move || {
        let rabbit = Rabbit::shared();
        let vhosts = rabbit.ctl(&["list_vhosts", "--silent"]);
        vhosts.lines().any(|vhost| {
            let listed = rabbit.ctl(&["list_queues", "--silent", "--vhost", vhost, "name"]);
            let is_there = listed.lines().any(|name| name == queue);
            if is_there {
                rabbit.ctl(&["delete_queue", "--vhost", vhost, &queue]);
            }
            is_there
        })
    });
    assert!(list.await.unwrap(), "no such queue to delete");
}

/// Goal: while the broker takes no messages (a memory alarm), publishing times out, and consuming and acking go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_blocks_publishing_and_nothing_else() {
    let rabbit = tokio::task::spawn_blocking(Rabbit::private).await.unwrap();
    let dsn = rabbit.fresh_vhost();
    let bench = Bench::new(Arc::new(amqp(&dsn)), Arc::new(amqp(&dsn)));
    let queue = bench.queue();
    let mut consumer = bench.broker.consume(&queue, 2).await.unwrap();
    bench.publish(&["1", "2", "3", "4"]).await;
    let watermark = |share: &'static str, rabbit: Rabbit| {
        tokio::task::spawn_blocking(move || {
            rabbit.ctl(&["set_vm_memory_high_watermark", share]);
            rabbit
        })
    };
    let rabbit = watermark("0.00001", rabbit).await.unwrap();
    let error = bench.broker.publish(bench.message("5")).await.unwrap_err();
    assert!(matches!(error, BrokerError::Unconfirmed { .. }), "{error}");
    assert_eq!(take_texts(&mut consumer, 2).await, ["1", "2"]);
    assert_eq!(take_texts(&mut consumer, 2).await, ["3", "4"]);
    let _rabbit = watermark("0.6", rabbit).await.unwrap();
    publish_surely(&*bench.broker, &bench.message("6")).await;
    // The fifth was sent, and its verdict came too late for its caller.
    let mut got = take_texts(&mut consumer, 1).await;
    if got == ["5"] {
        got = take_texts(&mut consumer, 1).await;
    }
    assert_eq!(got, ["6"]);
    assert!(consumer.close(SOON).await);
    bench.close().await;
}

/// Publishes until it succeeds, as our clients do.
async fn publish_surely(broker: &dyn Broker, message: &Message) {
    let tries = async {
        while let Err(error) = broker.publish(message.clone()).await {
            assert!(error.is_retryable(), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_mins(1), tries).await;
    assert!(done.is_ok(), "never succeeded");
}

/// How long a copy may take that the broker had in its buffers when its connection broke.
const LATE: Duration = Duration::from_secs(2);

/// How a test breaks the broker under a running publisher and consumer.
#[derive(Clone, Copy)]
enum Break {
    CloseConnections,
    Restart,
    Kill,
    Freeze,
}

/// Goal: connections closed by an operator lose nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_connections_lose_nothing() {
    survive(Break::CloseConnections).await;
}

/// Goal: a broker that restarts loses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_loses_nothing() {
    survive(Break::Restart).await;
}

/// Goal: a broker that is killed loses nothing that it confirmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_nothing() {
    survive(Break::Kill).await;
}

/// Goal: a broker that stands still makes calls fail in time and not for ever, and loses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_broker_loses_nothing() {
    survive(Break::Freeze).await;
}

/// Publishes numbers and consumes them, while the broker is broken: every number arrives, and settling what came before
/// the break does no harm after it.
async fn survive(how: Break) {
    crate::harness::show_logs();
    let rabbit = tokio::task::spawn_blocking(Rabbit::private).await.unwrap();
    let broker = Arc::new(amqp(&rabbit.fresh_vhost()));
    let bench = Bench::new(broker.clone(), broker.clone());
    // RabbitMQ 3.10 loses the Raft member of a quorum queue that was declared the moment before a kill.
    let queue_type = match how {
        Break::Kill => QueueType::Classic,
        Break::CloseConnections | Break::Restart | Break::Freeze => QueueType::Quorum,
    };
    let queue = Queue {
        queue_type,
        ..bench.queue()
    };
    let mut consumer = bench.broker.consume(&queue, 50).await.unwrap();
    let mut link = broker.link();
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = tokio::spawn(publish_until(
        broker.clone(),
        bench.message(""),
        stop.clone(),
    ));
    // Held over the break, and acked after it: an ack that reached other deliveries would lose them.
    let held = take(&mut consumer, 20).await;
    let breaking = tokio::task::spawn_blocking(move || break_it(rabbit, how));
    let mut seen = BTreeSet::new();
    let mut was_down = false;
    while !breaking.is_finished() {
        was_down |= matches!(&*link.borrow_and_update(), Link::Down { .. });
        if let Ok(Some(delivery)) = tokio::time::timeout(QUIET, consumer.next()).await {
            seen.insert(text(&delivery));
            delivery.settler.ack();
        }
    }
    let rabbit = breaking.await.unwrap();
    let up = tokio::time::timeout(SOON, link.wait_for(|link| *link == Link::Up)).await;
    assert!(matches!(up, Ok(Ok(_))), "the link stays down");
    drop(up);
    assert!(was_down || matches!(how, Break::CloseConnections | Break::Freeze));
    let held_texts: BTreeSet<String> = texts(&held).into_iter().collect();
    for delivery in held {
        delivery.settler.ack();
    }
    stop.store(true, Ordering::Relaxed);
    let confirmed = publisher.await.unwrap();
    while !confirmed.is_subset(&seen) {
        let delivery = next(&mut consumer).await;
        seen.insert(text(&delivery));
        delivery.settler.ack();
    }
    // What was published again after a doubt is there twice, and the first of the two may come last.
    while let Ok(Some(delivery)) = tokio::time::timeout(LATE, consumer.next()).await {
        delivery.settler.ack();
    }
    assert!(
        held_texts.is_subset(&seen),
        "held deliveries did not come again"
    );
    assert!(consumer.close(SOON).await);
    bench.until_ready(&queue, Some(0)).await;
    bench.close().await;
    drop(rabbit);
}

/// Publishes numbers, each until it is confirmed, and gives those that were.
async fn publish_until(
    broker: Arc<AmqpBroker>,
    template: Message,
    stop: Arc<AtomicBool>,
) -> BTreeSet<String> {
    let mut published = BTreeSet::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut message = template.clone();
        message.body = Bytes::from(number.to_string());
        publish_surely(&*broker, &message).await;
        published.insert(number.to_string());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    published
}

fn break_it(mut rabbit: Rabbit, how: Break) -> Rabbit {
    match how {
        Break::CloseConnections => rabbit.close_all_connections(),
        Break::Restart => {
            rabbit.stop();
            rabbit.start();
        }
        Break::Kill => {
            rabbit.kill();
            rabbit.start();
        }
        Break::Freeze => {
            rabbit.pause(true);
            // Longer than two heartbeats of 5 s: both sides give the connections up.
            crate::harness::process::wait_until(Duration::from_secs(13), || false);
            rabbit.pause(false);
        }
    }
    rabbit
}
