//! Tests of loading: precedence, every error with its words, and the shipped file held to the code.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;
use crate::config::keys::{Keys, variable};

const SHIPPED: &str = include_str!("../../../etc/vogeler/vogeler.toml");

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn load_all(text: &str, env: &[(&str, &str)], flags: &[&str]) -> Result<Loaded, ConfigError> {
    let file = file(text);
    let env = env.iter().map(|(name, value)| (name.into(), value.into()));
    let flags: Vec<_> = flags
        .iter()
        .map(|flag| Override::parse_set(flag).unwrap())
        .collect();
    load_from(
        Path::new("/nonexistent"),
        Some(file.path()),
        &env.collect::<Vec<_>>(),
        &flags,
    )
}

fn error(text: &str, env: &[(&str, &str)], flags: &[&str]) -> String {
    load_all(text, env, flags).unwrap_err().to_string()
}

/// The lines of the shipped file that set something, uncommented.
fn uncommented() -> String {
    let lines = SHIPPED.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Goal: the file we ship shows every key with its default, and sets nothing by itself.
#[test]
fn the_shipped_file_shows_every_default() {
    let as_shipped: Config = toml::from_str(SHIPPED).unwrap();
    assert_eq!(as_shipped, Config::default());

    let text = uncommented();
    let mut shown: Config = toml::from_str(&text).unwrap();
    assert_eq!(
        shown.client.node.take().unwrap().as_str(),
        "web01.example.com"
    );
    let http_listen = shown.client.http_listen.take().unwrap();
    assert!(http_listen.ip().is_loopback(), "{http_listen}");
    assert_eq!(shown.log.level.take().as_deref(), Some("info"));
    assert_eq!(shown, Config::default());

    let table: toml::Table = toml::from_str(&text).unwrap();
    for (section, key) in Keys::new().iter() {
        assert!(
            table[section].get(key).is_some(),
            "{section}.{key} is not in etc/vogeler/vogeler.toml"
        );
        let line = format!("\n#{key} = ");
        let explained = SHIPPED.split(&line).next().unwrap().lines().last().unwrap();
        assert!(
            explained.starts_with("# "),
            "{section}.{key} has no comment"
        );
    }
}

/// Goal: key by key, flags win over the environment, the environment over the file, the file over the default.
#[test]
fn precedence_is_flags_environment_file_default() {
    let text = "[server]\nprefetch = 100\nlinger = \"1s\"\nbatch_count_max = 20\n";
    let env = [
        ("VOGELER_SERVER_LINGER", "2s"),
        ("VOGELER_SERVER_BATCH_COUNT_MAX", "30"),
        ("HOME", "/x"),
    ];
    let config = load_all(text, &env, &["server.batch_count_max=40"])
        .unwrap()
        .config;
    assert_eq!(config.server.prefetch, 100);
    assert_eq!(config.server.linger.as_secs(), 2);
    assert_eq!(config.server.batch_count_max, 40);
    assert_eq!(config.server.writes_in_flight, 4);
}

/// Goal: text from the environment becomes a value of the key's type: list, truth value, number, name.
#[test]
fn the_environment_is_read_by_the_type_of_the_key() {
    let env = [
        ("VOGELER_CLIENT_GROUPS", "web, db"),
        ("VOGELER_STORE_CREATE", "true"),
        ("VOGELER_CLIENT_NODE", "12345"),
        ("VOGELER_LOG_FORMAT", "json"),
        ("VOGELER_HTTP_LISTEN", "[::1]:0"),
        ("VOGELER_TEST_COUCH", "x"),
        ("VOGELER_BENCH_SECONDS", "x"),
    ];
    let config = load_all("", &env, &[]).unwrap().config;
    let groups: Vec<_> = config
        .client
        .groups
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(groups, ["web", "db"]);
    assert!(config.store.create);
    assert_eq!(config.client.node.unwrap().as_str(), "12345");
    assert_eq!(config.http.listen.to_string(), "[::1]:0");
}

/// Goal: an error in the file names the line, the key, the value and what is allowed.
#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn mistakes_in_the_file_are_named() {
    let cases = [
        (
            "[server]\n\nprefetch = 5000\n",
            ":3: server.prefetch = 5000: allowed is a whole number from 1 to 2000",
        ),
        (
            "[server]\nprefetch = 99999\n",
            ":2: server.prefetch = 99999: allowed is a whole number from 1 to 2000",
        ),
        (
            "[server]\nprefetch = -1\n",
            ":2: server.prefetch = -1: allowed is",
        ),
        (
            "[server]\nprefetch = \"many\"\n",
            ":2: server.prefetch = \"many\": allowed is",
        ),
        (
            "[server]\nlinger = 20\n",
            ":2: server.linger = 20: allowed is a length of time from \"0s\" to \"1m\", such as",
        ),
        ("[server]\nlinger = \"2h\"\n", ":2: server.linger = "),
        (
            "[store]\nrequest_bytes_max = 1\n",
            ":2: store.request_bytes_max = 1: allowed is a whole number of bytes from 65536",
        ),
        (
            "[broker]\nqueue_type = \"fast\"\n",
            ":2: broker.queue_type = \"fast\": unknown variant `fast`, expected `quorum` or `classic`",
        ),
        (
            "[store]\ncreate = 1\n",
            ":2: store.create = 1: invalid type: integer `1`, expected a boolean",
        ),
        (
            "[client]\ngroups = [\"a\", \"b c\"]\n",
            ":2: client.groups = [\"a\", \"b c\"]: group \"b c\" holds ' '",
        ),
        (
            "[client]\nnode = \"_x\"\n",
            ":2: client.node = \"_x\": node name \"_x\" may not start with '_'",
        ),
        (
            "[http]\nlisten = \"here\"\n",
            ":2: http.listen = \"here\": \"here\" is no address to listen on: write ADDRESS:PORT, such as",
        ),
        (
            "[client]\nhttp_listen = \"localhost:9878\"\n",
            ":2: client.http_listen = \"localhost:9878\": \"localhost:9878\" is no address to listen on: write",
        ),
        (
            "[log]\nlevel = \"loud\"\n",
            ":2: log.level = \"loud\": \"loud\" is not understood; allowed are error, warn",
        ),
        (
            "[server]\nprefetchh = 5\n",
            ":2: there is no setting server.prefetchh; did you mean server.prefetch?",
        ),
        (
            "[server]\nheartbeat = \"1s\"\n",
            ":2: there is no setting server.heartbeat; did you mean broker.heartbeat?",
        ),
        (
            "prefetch = 5\n",
            ":1: there is no setting prefetch; did you mean server.prefetch?",
        ),
        (
            "[http]\nzzzzzzzz = 5\n",
            ":2: there is no setting http.zzzzzzzz; [http] has enabled, hosts, listen",
        ),
        (
            "\n[couchdb]\nx = 5\n",
            ":2: there is no setting couchdb; the sections are [broker], [client], [http]",
        ),
        ("server = 5\n", ":1: server is a section: write [server]"),
        ("[server\n", ":1: not TOML: "),
        (
            "[server]\nprefetch = 1\nprefetch = 2\n",
            ":3: not TOML: duplicate key",
        ),
        (
            "[server]\nbatch_count_max = 2000\nwrites_in_flight = 200\n",
            "server.batch_count_max × server.writes_in_flight (2000 × 200) = 400000 must be at most",
        ),
    ];
    for (text, expected) in cases {
        let error = error(text, &[], &[]);
        assert!(
            error.contains(expected),
            "{text:?}\n  got  {error}\n  want {expected}"
        );
    }
}

/// Goal: the same for variables and flags, which are named instead of a line.
#[test]
fn mistakes_in_environment_and_flags_are_named() {
    let of_env = |name, value| error("", &[(name, value)], &[]);
    assert_eq!(
        of_env("VOGELER_SERVER_PREFETCH", "x"),
        "VOGELER_SERVER_PREFETCH: server.prefetch = \"x\": allowed is a whole number from 1 to 2000"
    );
    assert_eq!(
        of_env("VOGELER_STORE_DNS", "couch://u:hunter2@h/db"),
        "the environment variable VOGELER_STORE_DNS sets nothing; did you mean VOGELER_STORE_DSN?"
    );
    assert!(of_env("VOGELER_ZZZZZZZZZZ", "").contains("VOGELER_<SECTION>_<KEY>"));
    assert_eq!(
        error("", &[], &["server.prefetch=0"]),
        "--set server.prefetch: server.prefetch = 0: allowed is a whole number from 1 to 2000"
    );
    assert!(error("", &[], &["server=0"]).contains("there is no setting server; "));
    assert_eq!(
        Override::parse_set("couch://u:hunter2@h")
            .unwrap_err()
            .to_string(),
        "--set takes SECTION.KEY=VALUE, such as server.prefetch=200"
    );
}

/// Goal: a named file must exist; the default file need not.
#[test]
fn a_named_file_must_be_there() {
    let missing = Path::new("/nonexistent/vogeler.toml");
    let loaded = load_from(missing, None, &[], &[]).unwrap();
    assert_eq!((loaded.file, loaded.config), (None, Config::default()));
    let error = load_from(missing, Some(missing), &[], &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the configuration /nonexistent/vogeler.toml: No such file or directory (os error 2)"
    );
    let variable = vec![("VOGELER_CONFIG".into(), missing.into())];
    assert!(load_from(missing, None, &variable, &[]).is_err());
}

/// Goal: a file read because it is in the default place counts like a named one, and a named one replaces it.
#[test]
fn the_default_file_is_read_if_it_is_there() {
    let (default, other) = (
        file("[log]\nlevel = \"debug\"\n"),
        file("[log]\nlevel = \"warn\"\n"),
    );
    let loaded = load_from(default.path(), None, &[], &[]).unwrap();
    assert_eq!(loaded.config.log.level.as_deref(), Some("debug"));
    let variable = vec![("VOGELER_CONFIG".into(), other.path().into())];
    let loaded = load_from(default.path(), None, &variable, &[]).unwrap();
    assert_eq!(loaded.config.log.level.as_deref(), Some("warn"));
}

/// Goal: there is a warning for a password in a file that everybody may read, and for nothing else.
#[test]
fn readable_passwords_are_warned_about() {
    let secret = file("[store]\ndsn = \"couch://u:hunter2@h/db\"\n");
    let load = |mode| {
        std::fs::set_permissions(secret.path(), Permissions::from_mode(mode)).unwrap();
        load_from(Path::new("/nonexistent"), Some(secret.path()), &[], &[])
            .unwrap()
            .warnings
    };
    assert_eq!(load(0o640), Vec::<String>::new());
    let warning = load(0o644).join("");
    assert!(
        warning.contains("chmod o-r") && !warning.contains("hunter2"),
        "{warning}"
    );
    let plain = file("[store]\ndsn = \"couch://h/db\"\n");
    std::fs::set_permissions(plain.path(), Permissions::from_mode(0o644)).unwrap();
    assert!(
        load_from(Path::new("/x"), Some(plain.path()), &[], &[])
            .unwrap()
            .warnings
            .is_empty()
    );
}

proptest! {
    /// Wherever a wrong DSN comes from, its password is neither in the error nor in the error's debug form.
    #[test]
    fn passwords_are_in_no_error(
        key in "(broker[.]dsn|store[.]dsn|store[.]dns|broker[.]partitions)",
        dsn in "(couch|amqp|http|)(://|:)u:hunter2@(h|h:x|h/|h/DB|)",
        from in 0..3_u8,
    ) {
        let (section, leaf) = key.split_once('.').unwrap();
        let text = format!("[{section}]\n{leaf} = \"{dsn}\"\n");
        let result = match from {
            0 => load_all(&text, &[], &[]),
            1 => load_all("", &[(&variable(section, leaf), &dsn)], &[]),
            _ => load_all("", &[], &[&format!("{key}={dsn}")]),
        };
        let printed = result.map_or_else(|e| format!("{e} {e:?}"), |l| format!("{:?}", l.config));
        prop_assert!(!printed.contains("hunter2"), "{}", printed);
    }
}
