//! A headless Chromium that shows one page: what a person would see of it, as text and as a picture.

use std::path::Path;
use std::process::{Command, Stdio};

/// Settings that keep it to itself: no sandbox (tests may run as root), nothing but the page from the network.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];
/// Longest that one look may take, in seconds; slow machines start a browser in ten.
const TIMEOUT_SECONDS: &str = "180";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// One look at a page.
#[derive(Debug)]
pub(crate) struct Look {
    /// The page's elements, after the browser has read them.
    pub(crate) dom: String,
    /// The picture's bytes. One of a page with little on it has few.
    pub(crate) bytes: usize,
}

/// Opens `url` in a window of this width, and keeps the picture at `picture`.
pub(crate) fn look(url: &str, width: u32, picture: &Path) -> Look {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new("timeout")
        .args(["--kill-after=5", TIMEOUT_SECONDS, "chromium"])
        .args(FLAGS)
        .arg(format!("--user-data-dir={}", home.path().display()))
        .arg(format!("--window-size={width},1400"))
        .arg(format!("--screenshot={}", picture.display()))
        .args(["--hide-scrollbars", "--dump-dom", url])
        .env("HOME", home.path())
        .env("TMPDIR", home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let png = std::fs::read(picture).unwrap_or_else(|error| panic!("{error}: {errors}"));
    assert!(png.starts_with(PNG), "no PNG");
    Look {
        dom: String::from_utf8(output.stdout).unwrap(),
        bytes: png.len(),
    }
}
