//! The files of `dashboards/` against the program that makes them.

use std::fs;

use super::boards;

/// Set by `make dashboards`: the files are written instead of compared.
const WRITE_VARIABLE: &str = "VOGELER_WRITE_DASHBOARDS";

/// Goal: nobody edits a board's file by hand, and nobody changes the program without its files.
#[test]
#[allow(clippy::disallowed_methods, reason = "a setting of the tests")]
fn the_files_are_what_the_program_makes() {
    let is_writing = std::env::var(WRITE_VARIABLE).is_ok();
    for (file, board) in boards::all() {
        let mut made = serde_json::to_string_pretty(&board.json()).unwrap();
        made.push('\n');
        if is_writing {
            fs::write(file, &made).unwrap();
        }
        let kept = fs::read_to_string(file).unwrap_or_default();
        assert!(
            made == kept,
            "{file} differs: run `make dashboards`, and look at what it changed"
        );
    }
}
