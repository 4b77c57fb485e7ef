//! tmp
pub fn fresh_dsn() -> String {
    format!("sqlite:/tmp/e2e-{}.db", vogeler::wire::RunId::generate())
}
