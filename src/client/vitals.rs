//! What a client reports of its own state while it runs: spool and publishing, for metrics and readiness.
//!
//! Spool and publisher write the state; the HTTP side reads it. Invariant: the gauges and [`Vitals`] say the same.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::place::Place;
use super::plugin::Registry;
use super::spool::Bounds;
use crate::broker::Link;
use crate::http::{Probe, part};
use crate::status::client::{self, WATCHED};
use crate::status::{About, Report, Seen, Watched};
use crate::telemetry::{SpoolLoss, catalogue as c};

/// Results that wait longer than this without any being confirmed make the client unready: the broker may be up, and
/// still take nothing.
const STALL_MIN: Duration = Duration::from_mins(1);

/// The state of spool and publisher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vitals {
    bounds: Bounds,
    messages: usize,
    bytes: u64,
    /// Results lost since the spool was last empty.
    dropped: u64,
    /// Why nothing can be written now, so that no plugin runs.
    unwritable: Option<String>,
    /// Results that are held in memory, and why the disk did not take the first of them.
    held: u32,
    held_reason: String,
    /// Why a waiting result cannot be read now.
    unreadable: Option<String>,
    /// Number of damaged results set aside.
    set_aside: usize,
    /// Number of plugins that may run, and the problems of the others.
    plugins: usize,
    problems: Vec<String>,
    /// When the broker last confirmed a result.
    published_at: Option<Timestamp>,
    /// Since when results have waited without any confirm.
    waiting_since: Option<Timestamp>,
}

impl Vitals {
    fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            messages: 0,
            bytes: 0,
            dropped: 0,
            unwritable: None,
            held: 0,
            held_reason: String::new(),
            unreadable: None,
            set_aside: 0,
            plugins: 0,
            problems: Vec::new(),
            published_at: None,
            waiting_since: None,
        }
    }

    fn spooled(&mut self, messages: usize, bytes: u64, now: Timestamp) {
        (self.messages, self.bytes) = (messages, bytes);
        if messages == 0 {
            self.dropped = 0;
            self.waiting_since = None;
        } else {
            self.waiting_since.get_or_insert(now);
        }
    }

    fn published(&mut self, now: Timestamp) {
        self.published_at = Some(now);
        self.waiting_since = self.waiting_since.map(|_| now);
    }

    fn spool(&self) -> Value {
        let mut reasons = Vec::new();
        if self.dropped > 0 {
            let dropped = self.dropped;
            reasons.push(format!("{dropped} results are lost (vogeler_client_spool_dropped_total says why; the log says which)"));
        }
        if let Some(error) = &self.unwritable {
            reasons.push(format!("the state folder cannot be written: {error}"));
        }
        if self.held > 0 {
            let (held, error) = (self.held, &self.held_reason);
            reasons.push(format!(
                "{held} results are held in memory, since they cannot be written: {error}"
            ));
        }
        if let Some(error) = &self.unreadable {
            reasons.push(format!(
                "a result cannot be read, and is tried again: {error}"
            ));
        }
        if self.set_aside > 0 {
            let count = self.set_aside;
            reasons.push(format!("{count} damaged results are set aside as *.bad in the spool's folder: look at them, and remove them"));
        }
        let mut spool = json!({
            "ok": reasons.is_empty(), "messages": self.messages, "bytes": self.bytes,
            "messages_max": self.bounds.count_max, "bytes_max": self.bounds.bytes_max,
        });
        if !reasons.is_empty() {
            spool["reason"] = json!(reasons.join("; "));
        }
        spool
    }

    /// If only some plugins cannot run, the client is still ready. If none can, it is of no use.
    fn plugins(&self) -> Value {
        let (registered, problems) = (self.plugins, self.problems.len());
        let is_ok = registered > 0 || problems == 0;
        let mut plugins = json!({"ok": is_ok, "registered": registered, "problems": problems});
        if !is_ok {
            plugins["reason"] = json!(format!("no plugin may run: {}", self.problems.join("; ")));
        }
        plugins
    }

    fn last_publish(&self, now: Timestamp) -> Value {
        let stalled = self.waiting_since.filter(|since| {
            let waiting = Duration::try_from(now.duration_since(*since));
            waiting.is_ok_and(|waiting| waiting > STALL_MIN)
        });
        let at = self.published_at;
        match stalled {
            Some(since) => {
                let reason = format!("results wait, and none was confirmed since {since}");
                json!({"ok": false, "at": at, "reason": reason})
            }
            None => json!({"ok": true, "at": at}),
        }
    }
}

/// The state, shared by writers and readers. The lock is held for moments only.
#[derive(Debug, Clone)]
pub(super) struct Noted(Arc<Mutex<Vitals>>);

impl Noted {
    #[allow(clippy::cast_precision_loss, reason = "a gauge takes floats")]
    pub(super) fn new(bounds: Bounds) -> Self {
        c::CLIENT_SPOOL_MESSAGES_LIMIT
            .get()
            .set(bounds.count_max as f64);
        c::CLIENT_SPOOL_BYTES_LIMIT
            .get()
            .set(bounds.bytes_max as f64);
        Self(Arc::new(Mutex::new(Vitals::new(bounds))))
    }

    /// Sets what the spool holds now.
    #[allow(clippy::cast_precision_loss, reason = "a gauge takes floats")]
    pub(super) fn spooled(&self, messages: usize, bytes: u64) {
        c::CLIENT_SPOOL_MESSAGES.get().set(messages as f64);
        c::CLIENT_SPOOL_BYTES.get().set(bytes as f64);
        self.with(|vitals| vitals.spooled(messages, bytes, Timestamp::now()));
    }

    /// Counts `count` results as lost.
    pub(super) fn lost(&self, reason: SpoolLoss, count: u64) {
        c::CLIENT_SPOOL_DROPPED.of(reason).increment(count);
        self.with(|vitals| vitals.dropped += count);
    }

    /// Sets why the disk takes no results; none if it takes them. Changes are logged.
    pub(super) fn unwritable(&self, trouble: Option<String>) {
        let before = self.with(|vitals| std::mem::replace(&mut vitals.unwritable, trouble.clone()));
        match (trouble, before) {
            (Some(error), None) => {
                tracing::error!(target: "vogeler::client", error, "the state folder cannot be written: no plugin runs until it can be");
            }
            (None, Some(_)) => {
                tracing::info!(target: "vogeler::client", "the state folder can be written again");
            }
            _ => {}
        }
    }

    /// Counts a result as held in memory, since the disk does not take it, until the returned guard is dropped. The
    /// first one and the end of the last one are logged: smaller results may be written meanwhile.
    pub(super) fn hold(&self, error: String) -> Holding {
        let is_first = self.with(|vitals| {
            vitals.held += 1;
            vitals.held == 1
        });
        if is_first {
            tracing::error!(target: "vogeler::client", error, "a result cannot be written; it is held in memory and tried again");
            self.with(|vitals| vitals.held_reason = error);
        }
        Holding(self.clone())
    }

    /// Whether the last try to write a mark failed.
    pub(super) fn is_unwritable(&self) -> bool {
        self.with(|vitals| vitals.unwritable.is_some())
    }

    /// Sets why a waiting result cannot be read; none if all can be. Changes are logged.
    pub(super) fn unreadable(&self, trouble: Option<String>) {
        let before = self.with(|vitals| std::mem::replace(&mut vitals.unreadable, trouble.clone()));
        match (trouble, before) {
            (Some(error), None) => {
                tracing::error!(target: "vogeler::client", error, "a spooled result cannot be read; it stays, and is tried again");
            }
            (None, Some(_)) => {
                tracing::info!(target: "vogeler::client", "spooled results can be read again");
            }
            _ => {}
        }
    }

    /// Sets how many damaged results are set aside.
    pub(super) fn set_aside(&self, count: usize) {
        self.with(|vitals| vitals.set_aside = count);
    }

    /// Sets which plugins may run.
    #[allow(clippy::cast_precision_loss, reason = "a gauge takes floats")]
    pub(super) fn loaded(&self, registry: &Registry) {
        let problems: Vec<_> = registry.problems.iter().map(ToString::to_string).collect();
        c::CLIENT_PLUGIN_PROBLEMS.get().set(problems.len() as f64);
        self.with(|vitals| (vitals.plugins, vitals.problems) = (registry.plugins.len(), problems));
    }

    /// Notes that the broker confirmed a result.
    pub(super) fn published(&self) {
        let now = Timestamp::now();
        let last = c::CLIENT_LAST_PUBLISH_TIMESTAMP_SECONDS.get();
        last.set(now.as_duration().as_secs_f64());
        self.with(|vitals| vitals.published(now));
    }

    fn with<T>(&self, f: impl FnOnce(&mut Vitals) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Guard of a result that is held in memory.
#[derive(Debug)]
pub(super) struct Holding(Noted);

impl Drop for Holding {
    fn drop(&mut self) {
        let left = self.0.with(|vitals| {
            vitals.held = vitals.held.saturating_sub(1);
            vitals.held
        });
        if left == 0 {
            tracing::info!(target: "vogeler::client", "no result is held in memory any more");
        }
    }
}

/// The source of a client's HTTP endpoints.
#[derive(Debug)]
pub(super) struct ClientProbe {
    pub(super) about: About,
    pub(super) noted: Noted,
    pub(super) broker: watch::Receiver<Link>,
    /// Whether the client hears commands.
    pub(super) place: watch::Receiver<Place>,
    /// Cancelled when the client begins to stop.
    pub(super) stopping: CancellationToken,
}

impl Probe for ClientProbe {
    fn readiness(&self) -> (bool, Value) {
        let now = Timestamp::now();
        let is_stopping = self.stopping.is_cancelled();
        let (broker, place) = (self.broker.borrow().clone(), self.place.borrow().clone());
        self.noted
            .with(|vitals| readiness(&broker, &place, vitals, is_stopping, now))
    }

    fn about(&self) -> &About {
        &self.about
    }

    fn watched(&self) -> Watched {
        WATCHED
    }

    fn report(&self, seen: &Seen<'_>) -> Report {
        client::report(seen)
    }
}

/// Whether a client is ready, and why not: one JSON member for each part.
fn readiness(
    broker: &Link,
    place: &Place,
    vitals: &Vitals,
    is_stopping: bool,
    now: Timestamp,
) -> (bool, Value) {
    let parts = [
        part(broker),
        commands(place),
        vitals.plugins(),
        vitals.spool(),
        vitals.last_publish(now),
    ];
    let is_ready = !is_stopping && parts.iter().all(|part| part["ok"] == true);
    let [broker, commands, plugins, spool, last_publish] = parts;
    let body = json!({
        "ready": is_ready, "broker": broker, "commands": commands, "plugins": plugins, "spool": spool,
        "last_publish": last_publish,
        "draining": is_stopping,
    });
    (is_ready, body)
}

/// Whether the client hears commands.
fn commands(place: &Place) -> Value {
    match place {
        Place::Ours => json!({"ok": true}),
        Place::Open => json!({"ok": false, "reason": "not heard yet"}),
        Place::Taken { reason } | Place::Failed { reason } => {
            json!({"ok": false, "reason": reason})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        count_max: 2,
        bytes_max: 100,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// Goal: while a large result is held, writing smaller ones does not end that state; writing the last held one
    /// does.
    #[test]
    fn holding_does_not_flap() {
        let noted = Noted::new(BOUNDS);
        let is_ok = || noted.with(|vitals| vitals.spool()["ok"] == true);
        let (first, second) = (noted.hold("full".into()), noted.hold("full".into()));
        noted.unwritable(None);
        drop(first);
        assert!(!is_ok() && !noted.is_unwritable());
        drop(second);
        assert!(is_ok());
    }

    /// Goal: each part that is wrong makes the client unready, and the answer says which and why.
    #[test]
    fn readiness_names_what_is_wrong() {
        let mut vitals = Vitals::new(BOUNDS);
        let (up, away) = (
            Link::Up,
            Link::Down {
                reason: "gone".into(),
            },
        );
        assert!(readiness(&up, &Place::Ours, &vitals, false, at(0)).0);
        assert!(!readiness(&up, &Place::Ours, &vitals, true, at(0)).0);
        let (is_ready, body) = readiness(&away, &Place::Ours, &vitals, false, at(0));
        assert!(!is_ready && body["broker"]["reason"] == "gone", "{body}");
        let taken = Place::Taken {
            reason: "two of one name".into(),
        };
        let (is_ready, body) = readiness(&up, &taken, &vitals, false, at(0));
        assert!(
            !is_ready && body["commands"]["reason"] == "two of one name",
            "{body}"
        );

        vitals.spooled(2, 90, at(0));
        assert!(
            readiness(&up, &Place::Ours, &vitals, false, at(60)).0,
            "waiting a moment is no trouble"
        );
        let (is_ready, body) = readiness(&up, &Place::Ours, &vitals, false, at(61));
        assert!(!is_ready && body["spool"]["ok"] == true, "{body}");
        let reason = body["last_publish"]["reason"].as_str().unwrap();
        assert!(reason.contains(&at(0).to_string()), "{reason}");

        vitals.published(at(61));
        vitals.dropped += 1;
        let (is_ready, body) = readiness(&up, &Place::Ours, &vitals, false, at(62));
        assert!(!is_ready && body["last_publish"]["ok"] == true, "{body}");
        assert!(
            body["spool"]["reason"]
                .as_str()
                .unwrap()
                .starts_with("1 results are lost")
        );
        vitals.unwritable = Some("no space".to_owned());
        let (_, body) = readiness(&up, &Place::Ours, &vitals, false, at(62));
        let reason = body["spool"]["reason"].as_str().unwrap();
        assert!(
            reason.ends_with("the state folder cannot be written: no space"),
            "{reason}"
        );
        vitals.unwritable = None;
        vitals.held = 1;
        let (_, body) = readiness(&up, &Place::Ours, &vitals, false, at(62));
        let reason = body["spool"]["reason"].as_str().unwrap();
        assert!(reason.contains("1 results are held in memory"), "{reason}");
        vitals.held = 0;

        vitals.spooled(0, 0, at(63));
        assert!(
            readiness(&up, &Place::Ours, &vitals, false, at(600)).0,
            "an empty spool waits for nothing"
        );

        vitals.problems = vec!["x.cfg:1: refused".to_owned()];
        let (is_ready, body) = readiness(&up, &Place::Ours, &vitals, false, at(600));
        assert!(!is_ready && body["plugins"]["problems"] == 1, "{body}");
        vitals.plugins = 1;
        assert!(
            readiness(&up, &Place::Ours, &vitals, false, at(600)).0,
            "one may run"
        );
    }
}
