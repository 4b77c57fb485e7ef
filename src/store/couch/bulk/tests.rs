//! The plan against a fake server: whichever documents are bad, the good ones are written once and the bad ones named.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::*;
use crate::store::Revision;

fn write(id: &str, bytes: usize) -> Write {
    let json = format!("{{\"v\":\"{}\"}}", "x".repeat(bytes));
    Write {
        id: id.parse().unwrap(),
        revision: None,
        json: RawValue::from_string(json).unwrap(),
    }
}

fn writes(count: usize) -> Vec<Write> {
    (0..count).map(|n| write(&format!("n{n}"), 10)).collect()
}

fn stored(group: &[&Write]) -> Answer {
    let verdict = |write: &&Write| (write.id.clone(), Verdict::Stored(Revision("1-a".into())));
    Answer::Rows(group.iter().map(verdict).collect())
}

fn away() -> Answer {
    Answer::Away {
        reason: "gone".to_owned(),
        retry_after: Some(Duration::from_secs(1)),
        is_answer: false,
    }
}

/// Runs the plan against `server` until every document has a verdict. Returns the number of requests.
fn run(plan: &mut Plan<'_>, server: impl Fn(&[&Write]) -> Answer) -> usize {
    let mut requests = 0;
    while let Some(group) = plan.next() {
        requests += 1;
        let answer = server(group);
        plan.learn(answer).unwrap();
    }
    requests
}

/// Goal: documents go in groups of the allowed size, in order; a larger document goes alone.
#[test]
fn groups_keep_the_bound() {
    let writes = [
        write("a", 100),
        write("b", 100),
        write("c", 900),
        write("d", 10),
    ];
    let mut plan = Plan::new(&writes, 400);
    let mut groups = Vec::new();
    while let Some(group) = plan.next().cloned() {
        groups.push(
            group
                .iter()
                .map(|write| write.id.as_str())
                .collect::<Vec<_>>(),
        );
        plan.learn(stored(&group)).unwrap();
    }
    assert_eq!(groups, [vec!["a", "b"], vec!["c"], vec!["d"]]);
}

/// Goal: a named culprit is taken out, and the others go in one more request.
#[test]
fn a_named_culprit_costs_one_request() {
    let writes = writes(5);
    let mut plan = Plan::new(&writes, 10_000);
    let verdict = rules::refused("document_too_large", "n2");
    let requests = run(&mut plan, |group| {
        let culprit = group.iter().find(|write| write.id.as_str() == "n2");
        culprit.map_or_else(
            || stored(group),
            |culprit| Answer::Culprit {
                id: culprit.id.clone(),
                verdict: verdict.clone(),
            },
        )
    });
    assert_eq!((requests, plan.verdicts.len()), (2, 5));
    assert_eq!(plan.verdicts["n2"], verdict);
}

/// Goal: "too large" lowers the bound for what is still to be sent.
#[test]
fn too_large_lowers_the_bound() {
    let writes = writes(8);
    let whole = size(&writes.iter().collect::<Vec<_>>());
    let mut plan = Plan::new(&writes, whole * 2);
    run(&mut plan, |group| {
        if size(group) > whole / 3 {
            let verdict = rules::refused("too_large", "x");
            Answer::TooLarge { verdict }
        } else {
            stored(group)
        }
    });
    assert!(
        plan.verdicts
            .values()
            .all(|verdict| matches!(verdict, Verdict::Stored(_)))
    );
    assert!(plan.bytes_max <= whole / 2);
}

/// Goal: if no verdict is known, the whole call fails; if some are known, they are kept and the other documents fail.
#[test]
fn known_verdicts_survive_trouble() {
    let writes = writes(2);
    let mut plan = Plan::new(&writes, 10_000);
    let stop = plan.learn(away()).unwrap_err();
    assert!(matches!(
        stop,
        Stop::Away {
            retry_after: Some(_),
            ..
        }
    ));
    let mut plan = Plan::new(&writes, 1);
    let first = plan.next().unwrap().clone();
    plan.learn(stored(&first)).unwrap();
    plan.learn(away()).unwrap();
    assert!(plan.next().is_none());
    assert!(matches!(plan.verdicts["n0"], Verdict::Stored(_)));
    assert!(matches!(&plan.verdicts["n1"], Verdict::Failed { error, .. } if error == "away"));
}

/// Goal: the body has the form that CouchDB reads: each document whole, with id and revision.
#[test]
fn bodies_are_json() {
    let mut with_revision = write("b\"", 1);
    with_revision.revision = Some(Revision("3-c".into()));
    let plain = write("a", 1);
    let text = body(&[&plain, &with_revision]);
    assert_eq!(
        text,
        r#"{"docs":[{"_id":"a","v":"x"},{"_id":"b\"","_rev":"3-c","v":"x"}]}"#
    );
}

proptest! {
    /// Exactly the documents that make a server refuse a request are refused. All others are stored, each in exactly
    /// one successful request. The search takes no more requests than halving does.
    #[test]
    fn bisection_finds_exactly_the_culprits(
        count in 1_usize..60,
        bad in proptest::collection::btree_set(0_usize..60, 0..4),
    ) {
        let writes = writes(count);
        let bad: BTreeSet<String> = bad.iter().filter(|n| **n < count).map(|n| format!("n{n}")).collect();
        let mut plan = Plan::new(&writes, 1_000_000);
        let requests = run(&mut plan, |group| {
            if group.iter().any(|write| bad.contains(write.id.as_str())) {
                let verdict = rules::refused("bad_request", "one of them");
                Answer::Bisect { verdict }
            } else {
                stored(group)
            }
        });
        prop_assert_eq!(plan.verdicts.len(), count);
        for (id, verdict) in &plan.verdicts {
            prop_assert_eq!(matches!(verdict, Verdict::Refused { .. }), bad.contains(id.as_str()));
        }
        prop_assert!(requests <= 1 + bad.len() * 2 * 7, "{} requests", requests);
    }
}
