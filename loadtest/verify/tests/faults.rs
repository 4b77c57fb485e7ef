//! Losses planted into runs with faults: a fault excuses what it can have caused, and nothing else.

use super::*;

/// Goal: a server that dies excuses the receipts of what it held, and of nothing that was sent before or after. A
/// broker that was away also excuses the receipts of the time until it is heard again. A store's fault excuses none.
#[tokio::test]
async fn a_fault_excuses_the_receipts_of_its_time_only() {
    for (kind, sent, is_excused) in [
        ("kill_server", 9, true),
        ("kill_server", 12, true),
        ("kill_server", 5, false),
        ("kill_server", 14, false),
        ("kill_broker", 9, true),
        ("cut_broker", 25, true),
        ("restart_broker", 5, false),
        ("restart_broker", 27, false),
        ("stop_store", 10, false),
    ] {
        let mut world = World::new().await;
        world.fault(kind, 10, 11);
        world.send(NODES[0], "a", sent, None);
        world.count(Outcome::Superseded);
        world.send(NODES[0], "a", 30, Some(Outcome::Stored));
        world.store_a(30);
        let verdict = world.verdict().await;
        assert_eq!(
            verdict.receipts_lost_to_faults,
            u64::from(is_excused),
            "{kind} {sent}"
        );
        assert_eq!(
            verdict.missing_receipt.len(),
            usize::from(!is_excused),
            "{kind} {sent}"
        );
        assert_eq!(verdict.is_good(), is_excused, "{verdict:?}");
    }
}

/// Goal: receipts that the server says it gave up are excused after an outage, one more is not; and without faults none is.
#[tokio::test]
async fn what_the_server_gave_up_is_excused_after_a_fault() {
    for (has_fault, failed, expected) in [
        (true, 2, &[][..]),
        (true, 1, &[("missing receipt", 2)]),
        (false, 2, &[("missing receipt", 2)]),
    ] {
        let mut world = World::new().await;
        if has_fault {
            world.fault("cut_broker", 10, 11);
        }
        for seq in [40, 41] {
            world.send(NODES[0], "a", seq, None);
            world.count(Outcome::Superseded);
        }
        world.send(NODES[0], "a", 42, Some(Outcome::Stored));
        world.store_a(42);
        world.counts.receipts_failed = failed;
        assert_eq!(world.found().await, expected, "{has_fault} {failed}");
    }
}

/// Goal: receipts that were lost with the listener's queue are excused, even long after the fault; without a fault they
/// are not.
#[tokio::test]
async fn a_deaf_listener_is_excused() {
    for (has_fault, sent, expected) in [
        (true, 40, &[][..]),
        (true, 45, &[("missing receipt", 1)]),
        (false, 40, &[("missing receipt", 1)]),
    ] {
        let mut world = World::new().await;
        if has_fault {
            world.fault("cut_broker", 10, 11);
        }
        world.ledger.listener_gap(39 * SECOND, 42 * SECOND);
        world.send(NODES[0], "a", sent, None);
        world.count(Outcome::Superseded);
        world.send(NODES[0], "a", 50, Some(Outcome::Stored));
        world.store_a(50);
        assert_eq!(world.found().await, expected, "{has_fault} {sent}");
    }
}

/// Goal: a result that had waited long when the server died is excused, too: the receipts of others like it tell how
/// long.
#[tokio::test]
async fn a_backlog_is_excused() {
    let mut world = World::new().await;
    world.fault("kill_server", 20, 21);
    world.send(NODES[0], "a", 8, None);
    world.send(NODES[0], "a", 30, Some(Outcome::Stored));
    world.store_a(30);
    assert_eq!(world.found().await, [("missing receipt", 1)]);
    world.send(NODES[0], "a", 7, None);
    world.receipt_at(19 * SECOND, NODES[0], "a", 7, Outcome::Superseded);
    assert_eq!(
        world.found().await,
        [],
        "7 waited until 19 s, so 8 may have"
    );
}

/// Goal: the server that is started after a kill has to send receipts. If the newest result is lost and has the content
/// of the stored one, only the missing receipt shows it.
#[tokio::test]
async fn the_next_server_has_no_excuse() {
    for (sent, expected) in [(11, &[][..]), (14, &[("missing receipt", 1)])] {
        let mut world = World::new().await;
        world.fault("kill_server", 10, 11);
        let id = world.ledger.sending(&Sent {
            node: name(NODES[0]),
            plugin: "a".parse().unwrap(),
            run: Some(world.runs[usize::try_from(sent).unwrap()]),
            seq: sent,
            hash: Hash::of(text(NODES[0], "a", 3).as_bytes()),
            version: Some(3),
            due: sent * SECOND,
            is_late: false,
        });
        world.ledger.attempt(id, sent * SECOND);
        world.ledger.confirm(id, sent * SECOND);
        assert_eq!(world.found().await, expected, "{sent}");
    }
}

/// Goal: a result in the middle that was dropped as overtaken before a newer one was sent is found, with and without
/// faults. One that a newer one had overtaken by then is good, and so is a copy of a result that was settled before.
#[tokio::test]
async fn nothing_is_overtaken_by_what_comes_later() {
    for outcome in [Outcome::Superseded, Outcome::Stale] {
        for (told, kind, expected) in [
            (4 * SECOND + MOMENT, None, &[("unexplained", 1)][..]),
            (5 * SECOND + MOMENT, None, &[]),
            (
                4 * SECOND + MOMENT,
                Some("kill_server"),
                &[("unexplained", 1)],
            ),
            (
                4 * SECOND + MOMENT,
                Some("stop_store"),
                &[("unexplained", 1)],
            ),
        ] {
            let mut world = World::new().await;
            if let Some(kind) = kind {
                world.fault(kind, 20, 21);
            }
            world.send(NODES[0], "a", 4, None);
            world.receipt_at(told, NODES[0], "a", 4, outcome);
            world.count(outcome);
            world.send(NODES[0], "a", 5, Some(Outcome::Stored));
            world.store_a(5);
            assert_eq!(world.found().await, expected, "{outcome:?} {told} {kind:?}");
        }
        // It was stored; the server died, and the broker delivered it again. Its first receipt came, or was lost.
        for (seq, is_told, expected) in [
            (4, true, &[][..]),
            (4, false, &[]),
            (19, false, &[]),
            (24, true, &[]),
            (40, true, &[("unexplained", 2)]),
        ] {
            let mut world = World::new().await;
            world.fault("kill_server", 20, 21);
            world.send(NODES[0], "a", seq, None);
            if is_told {
                world.receipt(NODES[0], "a", seq, Outcome::Stored);
            }
            world.receipt_at(41 * SECOND, NODES[0], "a", seq, outcome);
            world.store_a(seq);
            assert_eq!(world.found().await, expected, "{outcome:?} {seq} {is_told}");
        }
    }
}

/// Goal: a good result that the server could not read is found, although the dead letter names no node. On a shared
/// broker the letters of others are left alone.
#[tokio::test]
async fn a_good_result_among_the_dead_letters_is_found() {
    for is_own in [true, false] {
        let mut world = World::new().await;
        world.fault("kill_server", 20, 21);
        world.own.broker = is_own;
        world.dead(&format!("{}/3", NODES[0]), &[]).await;
        assert_eq!(world.found().await, [("unexplained", 1)]);
    }
    for (is_own, expected) in [(true, &[("unexplained", 1)][..]), (false, &[])] {
        let mut world = World::new().await;
        world.own.broker = is_own;
        world.dead("web1.example.org/3", &[]).await;
        assert_eq!(world.found().await, expected);
    }
}

/// Goal: even after a kill the server must be up and hold nothing; a queue that is gone is found.
#[tokio::test]
async fn nothing_may_be_under_way_after_a_kill() {
    let mut world = World::new().await;
    world.fault("kill_server", 20, 21);
    world.counts.received += 1;
    world.counts.in_flight += 1;
    assert_eq!(world.found().await, [("counters disagree", 1)]);
    world.own.server = false;
    assert_eq!(world.found().await, [], "it may be somebody else's");

    let queues = [0, 1].map(topology::results_queue_name);
    let world = World::new().await;
    let verdict = world.case(&queues[..1]).verify(None).await.unwrap();
    assert_eq!(verdict.counters_disagree.len(), 1, "no answer: {verdict:?}");
    let verdict = world.case(&queues).verify(Some(&world.counts)).await;
    assert_eq!(verdict.unwrap().lost.len(), 1, "one of two queues is gone");
}

/// Goal: the verifier waits for what the server still holds before it judges, but not for ever.
#[tokio::test(start_paused = true)]
async fn a_busy_server_is_waited_for() {
    for (looks, is_good) in [(20, true), (10_000, false)] {
        let mut world = World::new().await;
        world.fault("kill_server", 20, 21);
        let queues = [topology::results_queue_name(0)];
        let mut left = looks;
        let counts = async || {
            left -= 1;
            let mut counts = world.counts.clone();
            counts.received += u64::from(left > 0);
            counts.in_flight += u64::from(left > 0);
            Some(counts)
        };
        let case = world.case(&queues);
        let verdict = case.verify_within(Duration::from_secs(1), counts);
        assert_eq!(verdict.await.unwrap().is_good(), is_good, "{looks}");
    }
}

/// Goal: deletions are counted if the plan has some and no fault forbids them; else there is no count, for 0 would
/// prove nothing.
#[tokio::test]
async fn deletions_are_counted() {
    let mut world = World::new().await;
    assert_eq!(world.verdict().await.deleted, Some(0));
    world.ledger.deleted(&name(NODES[0]));
    world.store.delete(&name(NODES[0]));
    assert_eq!(world.verdict().await.deleted, Some(1));
    world.own.deletes = false;
    assert_eq!(world.verdict().await.deleted, None);
    world.own.deletes = true;
    world.fault("cut_broker", 1, 2);
    assert_eq!(world.verdict().await.deleted, None);
}
