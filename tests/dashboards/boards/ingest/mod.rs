//! The ingest board: is anything lost or late, and which stage is to blame. A row a stage, in the order of the flow.

mod batches;
mod intake;
mod overview;
mod settlement;
mod store;

use super::{Board, Choice, INSTANCE, JOB, Row, SERVERS, services};

/// What `@` stands for where something is kept for each partition.
const PARTITIONS: &str = r#"job=~"$job",instance=~"$instance",partition=~"$partition""#;

const CHOICES: [Choice; 5] = [
    JOB,
    INSTANCE,
    Choice {
        name: "partition",
        label: "Partition",
        values: r#"label_values(vogeler_queue_consumers{job=~"$job"}, partition)"#,
    },
    services::RABBITMQ,
    services::COUCHDB,
];

pub(super) fn board() -> Board {
    Board {
        uid: "vogeler-ingest",
        title: "Vogeler: ingest",
        description: "Is anything lost, is it late, and which stage is to blame.",
        choices: &CHOICES,
        rows: vec![
            overview::headline(),
            overview::parts(),
            intake::queues(),
            services::rabbitmq(),
            intake::intake(),
            batches::actors(),
            batches::batches(),
            store::requests(),
            store::documents(),
            services::couchdb(),
            settlement::settlement(),
            settlement::dead_letters(),
            overview::process(),
        ],
    }
}

fn row(title: &'static str, filter: &'static str, panels: Vec<super::Panel>) -> Row {
    Row {
        title,
        filter,
        panels,
    }
}
