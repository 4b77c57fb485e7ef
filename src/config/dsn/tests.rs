//! Tests of DSNs: which forms are read, what the error of each mistake says, and that no password is ever printed.

use proptest::prelude::*;

use super::*;

fn broker_error(text: &str) -> String {
    text.parse::<BrokerDsn>().unwrap_err().to_string()
}

fn store_error(text: &str) -> String {
    text.parse::<StoreDsn>().unwrap_err().to_string()
}

fn couch(text: &str) -> CouchUrl {
    match text.parse() {
        Ok(StoreDsn::Couch(url)) => url,
        other => panic!("{other:?}"),
    }
}

/// Goal: the documented defaults are what the constants parse to.
#[test]
fn defaults_are_the_documented_ones() {
    assert_eq!(
        BrokerDsn::default().to_string(),
        "amqp://guest:***@127.0.0.1:5672/%2f"
    );
    let BrokerDsn::Amqp(url) = BrokerDsn::default() else {
        panic!("not amqp");
    };
    assert_eq!(url.expose().as_str(), AMQP_DEFAULT);
    assert_eq!(
        StoreDsn::default().to_string(),
        "couch://127.0.0.1:5984/system_records"
    );
}

/// Goal: user, password, host, port and database come out decoded, with CouchDB's ports as default.
#[test]
fn couch_parts_are_decoded() {
    let url = couch("couch://a%40b:p%3Aw%2F@db.example.com/sys%2Frec");
    assert_eq!(url.base.as_str(), "http://db.example.com:5984/");
    assert_eq!(url.database, "sys/rec");
    assert_eq!(url.credentials, Some(("a@b".into(), "p:w/".into())));
    assert_eq!(couch("couchs://db/x").base.as_str(), "https://db:6984/");
    assert_eq!(
        couch("couch://[::1]:80/x/").to_string(),
        "couch://[::1]:80/x"
    );
    assert_eq!(
        couch("couch://a%40b:pw@db/x").to_string(),
        "couch://a%40b:***@db:5984/x"
    );
}

/// Goal: the embedded stores and the broker of one process are spelled as documented.
#[test]
fn memory_and_sqlite_are_understood() {
    assert_eq!("memory:".parse(), Ok(BrokerDsn::Memory));
    assert_eq!("memory:".parse(), Ok(StoreDsn::Memory));
    for text in ["sqlite:/tmp/a.db", "sqlite:///tmp/a.db"] {
        assert_eq!(text.parse(), Ok(StoreDsn::Sqlite("/tmp/a.db".into())));
    }
    assert_eq!("sqlite:a.db".parse(), Ok(StoreDsn::Sqlite("a.db".into())));
}

/// Goal: each kind of mistake has an error that says what is wrong and what is allowed.
#[test]
fn mistakes_are_named() {
    let cases = [
        (
            broker_error("redis://x"),
            "\"redis\" is not a kind of broker; allowed are amqp://",
        ),
        (broker_error("couch://x/y"), "allowed are amqp://"),
        (broker_error("amqp://"), "host is missing"),
        (
            broker_error("amqp://h:port"),
            "the port is not a number from 1 to 65535",
        ),
        (
            broker_error("amqp://h:99999"),
            "the port is not a number from 1 to 65535",
        ),
        (
            broker_error("amqp://h:0"),
            "the port is not a number from 1 to 65535",
        ),
        (broker_error("amqp://h/a/b"), "written %2f"),
        (
            broker_error("amqp://u:/pw@h"),
            "there is a '@' or '#' after the host",
        ),
        (broker_error("memory:x"), "nothing may follow"),
        (
            store_error("http://h:5984/db"),
            "\"http\" is not a kind of store; allowed are couch://",
        ),
        (
            store_error("couch://h:5984"),
            "the name of the database is missing",
        ),
        (
            store_error("couch://h/"),
            "the name of the database is missing",
        ),
        (store_error("couch://h/_users"), "starts with a letter a-z"),
        (store_error("couch://h/Nodes"), "starts with a letter a-z"),
        (store_error("couch://h/a/b"), "written %2f"),
        (store_error("couch://h/db?x=1"), "no '?'"),
        (
            store_error("couch://u:%ff@h/db"),
            "the password is not UTF-8",
        ),
        (store_error("sqlite:"), "the path is missing"),
        (store_error("sqlite::memory:"), "written \"memory:\""),
        (
            store_error("system_records"),
            "does not start with a kind of store",
        ),
    ];
    for (error, expected) in cases {
        assert!(error.contains(expected), "{error} / {expected}");
    }
    let long = store_error(&format!("couch://h/{}", "x".repeat(239)));
    assert!(long.contains("239 bytes long, at most 238"), "{long}");
}

proptest! {
    /// A password is never printed, whatever text surrounds it and whether the DSN parses or not.
    #[test]
    fn passwords_are_never_printed(
        scheme in "(amqps?|couchs?|http|sqlite|memory|x)?",
        separator in "(://|:|//)",
        user in "[a-z]{0,4}",
        start in "[/?#@]?",
        tail in "(@|@h|@h:1|@h:z|@h/db|@h/DB|@h/a/b|#|/@h|\\?@h)",
    ) {
        let password = "hunter2SECRET";
        let text = format!("{scheme}{separator}{user}:{start}{password}{tail}");
        let printed = [
            text.parse::<BrokerDsn>().map_or_else(|e| e.to_string(), |d| format!("{d} {d:?} {}", String::from(d.clone()))),
            match text.parse::<StoreDsn>() {
                // A path is not a password, even if it looks like one.
                Ok(StoreDsn::Sqlite(_)) => String::new(),
                Ok(dsn) => format!("{dsn} {dsn:?} {}", String::from(dsn.clone())),
                Err(error) => error.to_string(),
            },
        ];
        for text in printed {
            prop_assert!(!text.contains(password), "{}", text);
        }
    }

    /// Nothing that an operator can type makes the parser panic.
    #[test]
    fn any_text_is_a_dsn_or_an_error(text in "\\PC*") {
        drop(text.parse::<BrokerDsn>());
        drop(text.parse::<StoreDsn>());
    }
}
