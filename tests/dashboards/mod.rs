//! Boards, rules and runbook: made by a program, linted, typed, unit-tested, and asked of a real Prometheus.

mod boards;
mod drift;
mod expressions;
mod lint;
mod live;
mod promql;
mod rules;
mod types;
