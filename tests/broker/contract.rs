//! The contract of `broker/mod.rs`, a function a rule; each runs on memory and on RabbitMQ.

use std::collections::BTreeSet;
use std::slice;

use futures::future::{join_all, try_join_all};
use vogeler::broker::topology::{self, BROADCAST_BINDING};
use vogeler::broker::{BrokerError, Link};
use vogeler::wire::{Group, NodeName};

use super::*;

macro_rules! contract {
    ($($rule:ident),* $(,)?) => {
        mod on_memory {
            $(#[tokio::test] async fn $rule() { super::$rule(super::Bench::memory()).await; })*
        }
        mod on_rabbitmq {
            $(#[tokio::test] async fn $rule() { super::$rule(super::Bench::rabbit()).await; })*
        }
    };
}

contract!(
    declaring_again_changes_nothing,
    declaring_otherwise_is_a_mismatch,
    published_is_delivered_with_all_it_carries,
    an_unroutable_message_is_an_error_if_it_is_mandatory,
    unroutable_ones_are_told_apart_among_many,
    commands_reach_all_one_and_groups,
    order_is_kept,
    prefetch_bounds_the_unsettled,
    acked_is_gone,
    requeued_comes_again,
    a_dropped_settler_gives_back,
    settling_out_of_order_settles_each,
    cancel_gives_back_what_was_not_taken,
    close_says_whether_all_was_settled,
    a_dropped_consumer_gives_back_what_was_not_taken,
    expired_messages_are_not_delivered,
    an_exclusive_queue_goes_with_its_consumer,
    a_single_active_consumer_hands_over,
    a_hand_over_keeps_the_order,
    an_exclusive_consumer_is_the_only_one,
    unbinding_is_idempotent,
    depth_counts_ready_and_consumers,
    large_bodies_travel,
    the_empty_key_goes_to_partition_0,
    the_link_is_up_and_the_broker_names_itself,
    a_closed_broker_says_so,
);

/// Goal: declaring is idempotent, and keeps what the queue holds.
async fn declaring_again_changes_nothing(bench: Bench) {
    let queue = bench.queue();
    bench.broker.declare(slice::from_ref(&queue)).await.unwrap();
    bench.publish(&["one"]).await;
    bench.broker.declare(slice::from_ref(&queue)).await.unwrap();
    bench.other.declare(slice::from_ref(&queue)).await.unwrap();
    bench.until_ready(&queue, Some(1)).await;
    bench.close().await;
}

/// Goal: a queue that exists with other arguments is named, and the others of the call are not made.
async fn declaring_otherwise_is_a_mismatch(bench: Bench) {
    let queue = bench.queue();
    bench.broker.declare(slice::from_ref(&queue)).await.unwrap();
    let otherwise = Queue {
        consumers: Consumers::SingleActive,
        ..queue.clone()
    };
    let new = Queue {
        name: format!("{}.new", queue.name),
        ..queue.clone()
    };
    let error = bench
        .broker
        .declare(&[new.clone(), otherwise.clone()])
        .await;
    let error = error.unwrap_err();
    assert!(
        matches!(&error, BrokerError::Mismatch { name, .. } if *name == queue.name),
        "{error}"
    );
    assert!(!error.is_retryable());
    assert_eq!(bench.ready(&new).await, None);
    let error = bench.broker.consume(&otherwise, 1).await.unwrap_err();
    assert!(matches!(error, BrokerError::Mismatch { .. }), "{error}");
    bench.close().await;
}

/// Goal: body, key, exchange, properties and headers arrive as they were sent.
async fn published_is_delivered_with_all_it_carries(bench: Bench) {
    let mut consumer = bench.broker.consume(&bench.queue(), 10).await.unwrap();
    let mut message = bench.message("{\"ü\":1}");
    message.properties = Properties {
        content_type: Some("application/json".to_owned()),
        content_encoding: Some("zstd".to_owned()),
        message_id: Some("id-1".to_owned()),
        expiration: Some(Duration::from_mins(10)),
        headers: headers(&[("reason", "because"), ("attempts", "3")]),
    };
    bench.other.publish(message.clone()).await.unwrap();
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.body, message.body);
    assert_eq!(delivery.properties, message.properties);
    assert_eq!(delivery.exchange, Exchange::Results.name());
    assert_eq!(delivery.routing_key, message.routing_key);
    assert!(!delivery.redelivered);
    delivery.settler.ack();
    assert!(consumer.close(SOON).await);
    bench.close().await;
}

/// Goal: a message that no queue takes is an error that names exchange and key, unless nobody asked.
async fn an_unroutable_message_is_an_error_if_it_is_mandatory(bench: Bench) {
    bench.broker.declare(&[]).await.unwrap();
    let mut message = bench.message("lost");
    let error = bench.broker.publish(message.clone()).await.unwrap_err();
    assert!(
        matches!(&error, BrokerError::Unroutable { exchange: "vogeler.master.in", routing_key } if *routing_key == bench.name),
        "{error}"
    );
    assert!(error.is_retryable());
    message.mandatory = false;
    bench.broker.publish(message).await.unwrap();
    bench.close().await;
}

/// Goal: among many publishes under way at once, exactly those that no queue takes are called unroutable.
async fn unroutable_ones_are_told_apart_among_many(bench: Bench) {
    let queue = bench.queue();
    bench.broker.declare(slice::from_ref(&queue)).await.unwrap();
    let publishes = (0..600).map(|number| {
        let mut message = bench.message(&number.to_string());
        if number % 3 == 0 {
            message.routing_key.push_str(".nowhere");
        }
        bench.broker.publish(message)
    });
    for (number, result) in join_all(publishes).await.into_iter().enumerate() {
        match result {
            Ok(()) => assert!(number % 3 != 0, "{number} was lost and called safe"),
            Err(BrokerError::Unroutable { .. }) => assert!(number % 3 == 0, "{number}"),
            Err(error) => panic!("{number}: {error}"),
        }
    }
    bench.until_ready(&queue, Some(400)).await;
    bench.close().await;
}

/// Goal: a command reaches all nodes, one node, or a group's, and no other.
async fn commands_reach_all_one_and_groups(bench: Bench) {
    let node = |part: &str| {
        format!("{part}.{}.example.com", bench.name)
            .parse::<NodeName>()
            .unwrap()
    };
    let group = |part: &str| {
        format!("{part}-{}", bench.name.replace('.', "-"))
            .parse::<Group>()
            .unwrap()
    };
    let (web, db) = (node("web01"), node("db01"));
    let mut web_consumer = consume(
        &bench,
        &topology::node_queue(&web, &[group("web"), group("all")]),
    )
    .await;
    let mut db_consumer = consume(&bench, &topology::node_queue(&db, &[group("all")])).await;
    assert_eq!(BROADCAST_BINDING, "broadcasts.*");
    let command = |key: String, body: &str| {
        bench
            .broker
            .publish(message(Exchange::Commands, &key, body))
    };
    command(topology::broadcast_key(), "everyone")
        .await
        .unwrap();
    command(web.to_string(), "one").await.unwrap();
    command(topology::group_key(&group("web")), "group")
        .await
        .unwrap();
    command(topology::group_key(&group("all")), "both")
        .await
        .unwrap();
    let error = command(topology::group_key(&group("none")), "nobody").await;
    assert!(matches!(error, Err(BrokerError::Unroutable { .. })));
    let got = take(&mut web_consumer, 4).await;
    assert_eq!(texts(&got), ["everyone", "one", "group", "both"]);
    let got = take(&mut db_consumer, 2).await;
    assert_eq!(texts(&got), ["everyone", "both"]);
    quiet(&mut db_consumer).await;
    bench.close().await;
}

async fn consume(bench: &Bench, queue: &Queue) -> Consumer {
    bench.broker.consume(queue, 10).await.unwrap()
}

/// Goal: one publisher's messages arrive in the order they were handed over, also when many are under way.
async fn order_is_kept(bench: Bench) {
    let mut consumer = bench.broker.consume(&bench.queue(), 500).await.unwrap();
    let numbers: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    let publishes = numbers
        .iter()
        .map(|number| bench.broker.publish(bench.message(number)));
    try_join_all(publishes).await.unwrap();
    let got = take(&mut consumer, 300).await;
    assert_eq!(texts(&got), numbers);
    bench.close().await;
}

/// Goal: no more than the prefetch is unsettled, and each settlement makes room for one.
async fn prefetch_bounds_the_unsettled(bench: Bench) {
    let queue = bench.queue();
    let mut consumer = bench.broker.consume(&queue, 3).await.unwrap();
    bench.publish(&["1", "2", "3", "4", "5"]).await;
    let mut held = take(&mut consumer, 3).await;
    quiet(&mut consumer).await;
    assert_eq!(bench.ready(&queue).await, Some(2));
    held.remove(0).settler.ack();
    assert_eq!(text(&next(&mut consumer).await), "4");
    bench.close().await;
}

/// Goal: what was acked is gone for good.
async fn acked_is_gone(bench: Bench) {
    let queue = bench.queue();
    let mut consumer = bench.broker.consume(&queue, 10).await.unwrap();
    bench.publish(&["1", "2"]).await;
    for delivery in take(&mut consumer, 2).await {
        delivery.settler.ack();
    }
    assert!(consumer.close(SOON).await);
    bench.until_ready(&queue, Some(0)).await;
    let mut again = bench.other.consume(&queue, 10).await.unwrap();
    quiet(&mut again).await;
    bench.close().await;
}

/// Goal: what was requeued comes again, marked, and nothing else does.
async fn requeued_comes_again(bench: Bench) {
    let mut consumer = bench.broker.consume(&bench.queue(), 10).await.unwrap();
    bench.publish(&["1", "2", "3"]).await;
    let mut held = take(&mut consumer, 3).await;
    held.remove(1).settler.requeue();
    let again = next(&mut consumer).await;
    assert_eq!((text(&again).as_str(), again.redelivered), ("2", true));
    quiet(&mut consumer).await;
    bench.close().await;
}

/// Goal: dropping a delivery unsettled is giving it back.
async fn a_dropped_settler_gives_back(bench: Bench) {
    let mut consumer = bench.broker.consume(&bench.queue(), 10).await.unwrap();
    bench.publish(&["1"]).await;
    drop(next(&mut consumer).await);
    let again = next(&mut consumer).await;
    assert!(again.redelivered);
    again.settler.ack();
    assert!(consumer.close(SOON).await);
    bench.until_ready(&bench.queue(), Some(0)).await;
    bench.close().await;
}

/// Goal: settled in any order, acks and requeues mixed, exactly the requeued ones are left.
async fn settling_out_of_order_settles_each(bench: Bench) {
    let queue = bench.queue();
    let mut consumer = bench.broker.consume(&queue, 100).await.unwrap();
    let bodies: Vec<String> = (0..60).map(|number| number.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    bench.publish(&bodies).await;
    let mut held: Vec<_> = take(&mut consumer, 60)
        .await
        .into_iter()
        .map(Some)
        .collect();
    consumer.cancel();
    // 7 and 60 have no common divisor: every number once, none in order.
    for step in 0..60 {
        let number = step * 7 % 60;
        let settler = held[number].take().unwrap().settler;
        if number % 5 == 0 {
            settler.requeue();
        } else {
            settler.ack();
        }
    }
    assert!(consumer.close(SOON).await);
    let mut again = bench.other.consume(&queue, 100).await.unwrap();
    let left = take_texts(&mut again, 12).await;
    let mut left: Vec<usize> = left.iter().map(|body| body.parse().unwrap()).collect();
    left.sort_unstable();
    assert_eq!(left, (0..60).step_by(5).collect::<Vec<_>>());
    quiet(&mut again).await;
    bench.close().await;
}

/// Goal: after a cancel nothing is delivered, what waited goes back, what was taken can be settled.
async fn cancel_gives_back_what_was_not_taken(bench: Bench) {
    let queue = bench.queue();
    let mut consumer = bench.broker.consume(&queue, 100).await.unwrap();
    let bodies: Vec<String> = (0..80).map(|number| number.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    bench.publish(&bodies).await;
    let held = take(&mut consumer, 5).await;
    consumer.cancel();
    assert!(consumer.next().await.is_none());
    bench.until_ready(&queue, Some(75)).await;
    ack_all(held);
    assert!(consumer.close(SOON).await);
    bench.until_ready(&queue, Some(75)).await;
    let mut again = bench.other.consume(&queue, 100).await.unwrap();
    let got = take(&mut again, 75).await;
    // As a set: RabbitMQ 3.10 holds back what is given back past 32 of a channel, and puts that into the queue in no order.
    let got: BTreeSet<String> = texts(&got).into_iter().collect();
    assert_eq!(got, bodies[5..].iter().map(ToString::to_string).collect());
    bench.close().await;
}

/// Goal: a close under its deadline waits for settlements; past it, the unsettled go back and it says so.
async fn close_says_whether_all_was_settled(bench: Bench) {
    let queue = bench.queue();
    let mut consumer = bench.broker.consume(&queue, 10).await.unwrap();
    bench.publish(&["1", "2"]).await;
    let mut held = take(&mut consumer, 2).await;
    held.remove(0).settler.ack();
    assert!(!consumer.close(QUIET).await);
    bench.until_ready(&queue, Some(1)).await;
    held.remove(0).settler.ack();
    assert_eq!(bench.ready(&queue).await, Some(1));
    bench.close().await;
}

/// Goal: a consumer that is dropped gives back what nobody took, and what was taken can still be settled.
async fn a_dropped_consumer_gives_back_what_was_not_taken(bench: Bench) {
    let queue = bench.queue();
    let mut consumer = bench.broker.consume(&queue, 10).await.unwrap();
    bench.publish(&["1", "2", "3"]).await;
    let held = next(&mut consumer).await;
    drop(consumer);
    bench.until_ready(&queue, Some(2)).await;
    held.settler.ack();
    let mut again = bench.other.consume(&queue, 10).await.unwrap();
    assert_eq!(take_texts(&mut again, 2).await, ["2", "3"]);
    quiet(&mut again).await;
    bench.close().await;
}

/// Goal: a message that waited longer than it may is not delivered; others are.
async fn expired_messages_are_not_delivered(bench: Bench) {
    let queue = bench.queue();
    bench.broker.declare(slice::from_ref(&queue)).await.unwrap();
    let mut brief = bench.message("late");
    brief.properties.expiration = Some(Duration::from_millis(50));
    bench.broker.publish(brief).await.unwrap();
    bench.until_ready(&queue, Some(0)).await;
    bench.publish(&["in time"]).await;
    let mut consumer = bench.broker.consume(&queue, 10).await.unwrap();
    assert_eq!(take_texts(&mut consumer, 1).await, ["in time"]);
    quiet(&mut consumer).await;
    bench.close().await;
}

/// Goal: a runner's queue is there while it listens, and leaves nothing behind.
async fn an_exclusive_queue_goes_with_its_consumer(bench: Bench) {
    let queue = Queue {
        lifetime: Lifetime::Exclusive,
        queue_type: QueueType::Classic,
        ..bench.queue()
    };
    let mut consumer = bench.broker.consume(&queue, 10).await.unwrap();
    bench.publish(&["receipt"]).await;
    next(&mut consumer).await.settler.ack();
    assert!(consumer.close(SOON).await);
    bench.until_ready(&queue, None).await;
    bench.close().await;
}

/// Goal: with a single active consumer one gets all, and the next takes over when it leaves, in order.
async fn a_single_active_consumer_hands_over(bench: Bench) {
    let queue = Queue {
        consumers: Consumers::SingleActive,
        ..bench.queue()
    };
    let mut first = bench.broker.consume(&queue, 2).await.unwrap();
    let mut second = bench.other.consume(&queue, 2).await.unwrap();
    bench.publish(&["1", "2", "3"]).await;
    let held = take(&mut first, 2).await;
    quiet(&mut second).await;
    first.cancel();
    ack_all(held);
    assert!(first.close(SOON).await);
    assert_eq!(text(&next(&mut second).await), "3");
    bench.close().await;
}

/// Goal: a second exclusive consumer is refused with what to do, gets nothing and binds nothing; when the first one is
/// gone it may have the queue.
async fn an_exclusive_consumer_is_the_only_one(bench: Bench) {
    let queue = Queue {
        lifetime: Lifetime::Expires(Duration::from_hours(1)),
        queue_type: QueueType::Classic,
        consumers: Consumers::Exclusive,
        ..bench.queue()
    };
    let mut more = queue.clone();
    more.bindings[0].key += ".more";
    let mut first = bench.broker.consume(&queue, 10).await.unwrap();
    let error = bench.other.consume(&more, 10).await.unwrap_err();
    assert!(
        matches!(&error, BrokerError::InUse { name, .. } if *name == queue.name),
        "{error}"
    );
    assert!(error.to_string().contains("client.node"), "{error}");
    assert!(error.is_retryable());
    bench.publish(&["1", "2"]).await;
    let mut unbound = bench.message("3");
    unbound.routing_key = more.bindings[0].key.clone();
    let error = bench.broker.publish(unbound).await.unwrap_err();
    assert!(matches!(error, BrokerError::Unroutable { .. }), "{error}");
    assert_eq!(take_texts(&mut first, 2).await, ["1", "2"]);
    assert!(first.close(SOON).await);
    let mut second = bench.other.consume(&queue, 10).await.unwrap();
    bench.publish(&["4"]).await;
    assert_eq!(take_texts(&mut second, 1).await, ["4"]);
    assert!(second.close(SOON).await);
    bench.close().await;
}

/// Goal: depth counts what is ready and who consumes, and says which queues do not exist, in the order asked.
async fn depth_counts_ready_and_consumers(bench: Bench) {
    let queue = bench.queue();
    let held = bench.broker.consume(&queue, 1).await.unwrap();
    bench.publish(&["1", "2", "3"]).await;
    bench.until_ready(&queue, Some(2)).await;
    let names = ["test.no-such-queue", &queue.name, "test.none-either"];
    let depth = bench.other.depth(&names).await.unwrap();
    assert_eq!(
        depth[1].map(|depth| (depth.ready, depth.consumers)),
        Some((2, 1))
    );
    assert_eq!((depth[0], depth[2]), (None, None));
    drop(held);
    bench.close().await;
}

/// Goal: a result of 5 MB, many frames long, arrives byte by byte.
async fn large_bodies_travel(bench: Bench) {
    let mut consumer = bench.broker.consume(&bench.queue(), 10).await.unwrap();
    let words: Vec<String> = (0..500_000)
        .map(|number| format!("{:09}", number % 997))
        .collect();
    let body = words.join(" ");
    bench.publish(&[&body]).await;
    assert!(text(&next(&mut consumer).await) == body, "the body changed");
    bench.close().await;
}

/// Goal: every key of the wire finds one partition, and the empty key of 2010 finds partition 0.
async fn the_empty_key_goes_to_partition_0(bench: Bench) {
    let queues = topology::server_queues(4, QueueType::Classic);
    bench.broker.declare(&queues).await.unwrap();
    let node: NodeName = "web01.example.com".parse().unwrap();
    let publish = |key: &str| {
        bench
            .broker
            .publish(message(Exchange::Results, key, "2010"))
    };
    publish("").await.unwrap();
    publish(&topology::result_key(&node)).await.unwrap();
    publish("255").await.unwrap();
    bench.until_ready(&queues[0], Some(1)).await;
    bench.until_ready(&queues[3], Some(2)).await;
    assert!(matches!(
        publish("256").await,
        Err(BrokerError::Unroutable { .. })
    ));
    bench
        .broker
        .publish(message(Exchange::Dead, "", "dead"))
        .await
        .unwrap();
    bench.until_ready(&queues[4], Some(1)).await;
    bench.close().await;
}

/// Goal: once used, the link is up, and the broker tells its name and version.
async fn the_link_is_up_and_the_broker_names_itself(bench: Bench) {
    let mut link = bench.broker.link();
    bench.broker.declare(&[]).await.unwrap();
    let up = tokio::time::timeout(SOON, link.wait_for(|link| *link == Link::Up));
    assert!(up.await.unwrap().is_ok());
    let about = bench.broker.about().await.unwrap();
    let is_versioned = about.chars().any(|letter| letter.is_ascii_digit());
    assert!(is_versioned && about.len() < 80, "{about}");
    bench.close().await;
}

/// Goal: after a close every call fails at once, finally, and the other connection lives on.
async fn a_closed_broker_says_so(bench: Bench) {
    let queue = bench.queue();
    bench.broker.declare(slice::from_ref(&queue)).await.unwrap();
    bench.publish(&["1"]).await;
    bench.broker.close().await;
    let errors = [
        bench.broker.publish(bench.message("2")).await.unwrap_err(),
        bench
            .broker
            .declare(slice::from_ref(&queue))
            .await
            .unwrap_err(),
        bench.broker.consume(&queue, 1).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, BrokerError::Closed), "{error}");
    }
    assert_eq!(bench.ready(&queue).await, Some(1));
    bench.other.close().await;
}

/// Goal: when all that was taken is settled, what was not taken goes to the next consumer before what came later.
async fn a_hand_over_keeps_the_order(bench: Bench) {
    let queue = Queue {
        consumers: Consumers::SingleActive,
        ..bench.queue()
    };
    let bodies: Vec<_> = (0..300).map(|number| number.to_string()).collect();
    let mut first = bench.broker.consume(&queue, 200).await.unwrap();
    let mut second = bench.other.consume(&queue, 200).await.unwrap();
    try_join_all(
        bodies
            .iter()
            .map(|body| bench.broker.publish(bench.message(body))),
    )
    .await
    .unwrap();
    let mut expected = bodies.iter();
    for delivery in take(&mut first, 20).await {
        assert_eq!(Some(&text(&delivery)), expected.next());
        delivery.settler.ack();
    }
    assert!(first.close(SOON).await);
    for body in expected {
        let delivery = next(&mut second).await;
        assert_eq!(text(&delivery), *body);
        delivery.settler.ack();
    }
    assert!(second.close(SOON).await);
    bench.close().await;
}

/// Goal: an unbound queue takes nothing any more, and unbinding what is not bound changes nothing.
async fn unbinding_is_idempotent(bench: Bench) {
    let queue = bench.queue();
    bench.broker.declare(slice::from_ref(&queue)).await.unwrap();
    bench.publish(&["one"]).await;
    for _ in 0..2 {
        let unbound = bench.other.unbind(&queue.name, &queue.bindings).await;
        unbound.unwrap();
    }
    let error = bench
        .broker
        .publish(bench.message("two"))
        .await
        .unwrap_err();
    assert!(matches!(error, BrokerError::Unroutable { .. }), "{error}");
    bench.until_ready(&queue, Some(1)).await;
    bench.close().await;
}
