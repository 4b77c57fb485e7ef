//! `receipts`: what a runner reads of its run, and how it counts.
//!
//! The input's first line names the nodes that the run waits for; each further line is a batch of receipts. A batch that
//! reports lost receipts makes the runner doubt.

use std::collections::BTreeSet;

use crate::runner::{Expected, Run};
use crate::wire::{NodeName, PluginName, ReceiptBatch, RunId};

const BATCHES_MAX: usize = 64;

/// Whatever comes, and however often, every node is in one category, and in the end the run waits for none.
pub fn receipts(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.lines();
    let names = lines.next().unwrap_or_default().split(' ');
    let nodes: BTreeSet<NodeName> = names.filter_map(|name| name.parse().ok()).collect();
    let expected = if nodes.is_empty() {
        Expected::Unknown
    } else {
        Expected::Nodes(nodes.clone())
    };
    let plugin: PluginName = "rpms".parse().expect("a plugin name");
    let mut run = Run::new(RunId::of_trace(1), plugin, expected);
    let mut is_doubtful = false;
    for line in lines.take(BATCHES_MAX) {
        let Ok(batch) = serde_json::from_str::<ReceiptBatch>(line) else {
            continue;
        };
        let written = serde_json::to_vec(&batch).expect("a batch is JSON");
        let again: ReceiptBatch = serde_json::from_slice(&written).expect("we wrote it");
        assert_eq!(batch, again);
        if batch.lost > 0 {
            run.doubt(format!("{} receipts are lost", batch.lost));
            is_doubtful = true;
        }
        for receipt in batch.receipts {
            run.on_receipt(receipt.clone());
            assert_counts(&run);
            assert!(!run.on_receipt(receipt), "a copy changed something");
        }
    }
    run.end();
    assert_counts(&run);
    assert!(
        !is_doubtful || run.counts().silent == 0,
        "somebody is silent whose receipt may be lost"
    );
    let answered: BTreeSet<&NodeName> = run.answers().map(|(node, _)| node).collect();
    assert!(
        nodes.iter().all(|node| answered.contains(node)),
        "a node is in no category"
    );
    assert_eq!(run.is_settled(), !nodes.is_empty());
}

fn assert_counts(run: &Run) {
    let counts = run.counts();
    let all = counts.heard() + counts.silent + counts.unknown;
    assert_eq!(all, run.answers().count());
    assert!(counts.new <= all);
}
