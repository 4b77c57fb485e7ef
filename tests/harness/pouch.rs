//! A CouchDB-protocol server for all tests of this process: pouchdb-server from npm, in memory, on a free port.
//!
//! An independent implementation of the protocol. Where it differs from CouchDB, CouchDB rules.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use url::Url;

use super::process::{Service, free_port, wait_until};

/// The server's administrator. (With one, a wrong password is refused; without, everything is taken.)
pub const USER: &str = "vogeler";
/// The administrator's password.
pub const PASSWORD: &str = "se:cret@1";
/// One that ends by itself is noticed at once; beside builds and benches it may take long.
const START_DEADLINE: Duration = Duration::from_mins(5);

#[derive(Debug)]
struct Pouch {
    port: u16,
    /// Held for the life of the process.
    _service: Service,
}

/// Address of the server, with user and password; the first caller starts it.
pub fn url() -> Url {
    // One that does not start is not started again for each test: the others fail at once.
    static SERVER: LazyLock<Pouch> = LazyLock::new(start);
    let port = SERVER.port;
    let mut url = Url::parse(&format!("http://127.0.0.1:{port}")).unwrap();
    url.set_username(USER).unwrap();
    url.set_password(Some(PASSWORD)).unwrap();
    url
}

/// DSN of a database that no other test uses. It is not there yet.
pub fn fresh_dsn() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let url = url();
    let rest = url
        .as_str()
        .trim_start_matches("http")
        .trim_end_matches('/');
    format!("couch{rest}/fresh_{next}")
}

fn install() -> PathBuf {
    super::install_services();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("target/pouchdb-server");
    let status = Command::new(root.join("tests/install-pouchdb"))
        .arg(&folder)
        .status();
    assert!(status.unwrap().success(), "tests/install-pouchdb failed");
    folder.join("node_modules/pouchdb-server/bin/pouchdb-server")
}

fn start() -> Pouch {
    let program = install();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log.txt");
    let config = serde_json::json!({"admins": {USER: PASSWORD}, "log": {"file": log}});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let port = free_port();
    let mut command = Command::new("node");
    command
        .arg(&program)
        .args(["--in-memory", "--no-stdout-logs", "--host", "127.0.0.1"])
        .args(["--port", &port.to_string()])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut service = Service::start(&mut command, folder.path()).unwrap();
    let is_up = wait_until(START_DEADLINE, || {
        assert!(service.is_running(), "pouchdb-server ended: {command:?}");
        answers(port)
    });
    assert!(
        is_up,
        "pouchdb-server does not answer within {START_DEADLINE:?}"
    );
    // From now on it goes with the guard of the service.
    drop(folder.keep());
    Pouch {
        port,
        _service: service,
    }
}

/// Whether the server answers `GET /` as it does when it is ready.
fn answers(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ask().is_ok_and(|text| text.contains("express-pouchdb"))
}
