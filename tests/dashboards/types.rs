//! The boards against Grafana's own published types (`@grafana/schema` of npm), by the TypeScript compiler.
//!
//! Each board becomes an object literal that must satisfy `Dashboard`, and each panel's options, field configuration and
//! queries the types of its kind. Of an object literal TypeScript also refuses what the type does not have.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use super::expressions::{BOARDS, board, panels};

const PACKAGES: [&str; 2] = ["@grafana/schema@13.2.3", "typescript@5.9.3"];

/// The types as JSON has them: an enum is one of its values. `DataQuery` has what all queries have in common; what
/// Prometheus' queries have besides is in no package of npm that installs alone.
const TYPES: &str = r"
import type { Dashboard, DataQuery, GraphFieldConfig } from '@grafana/schema';
import type { Options as StatOptions } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type { Options as GraphOptions } from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';
import type { Options as TableOptions } from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';

type Json<T> = unknown extends T ? T
  : T extends string ? `${T}`
  : T extends number ? (`${T}` extends `${infer N extends number}` ? N : T)
  : { [K in keyof T]: Json<T[K]> };
type Query = Json<DataQuery> & {
  expr: string; legendFormat: string; instant: boolean; range: boolean; format: 'time_series' | 'table' | 'heatmap';
};
type NoCustom = Record<never, never>;
";

/// The lines that hold one board.
fn checks(file: &str) -> String {
    let board = board(file);
    let mut lines = format!("\n// {file}\n({board}) satisfies Json<Dashboard>;\n");
    for panel in panels(&board) {
        let (options, custom) = match panel["type"].as_str().unwrap() {
            "stat" => ("StatOptions", "NoCustom"),
            "timeseries" => ("GraphOptions", "GraphFieldConfig"),
            "table" => ("TableOptions", "NoCustom"),
            other => panic!("{file}: no type is known for {other}"),
        };
        writeln!(lines, "({}) satisfies Json<{options}>;", panel["options"]).unwrap();
        let defaults = &panel["fieldConfig"]["defaults"];
        if defaults["custom"].is_object() {
            writeln!(lines, "({}) satisfies Json<{custom}>;", defaults["custom"]).unwrap();
        }
        writeln!(lines, "({}) satisfies Query[];", panel["targets"]).unwrap();
    }
    lines
}

/// Goal: Grafana understands every key and value of every board.
#[test]
fn boards_have_the_types_of_grafana() {
    crate::harness::install_services();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("target/grafana-schema");
    let install = Command::new(root.join("tests/install-npm"))
        .arg(&folder)
        .args(PACKAGES)
        .status();
    assert!(install.unwrap().success(), "tests/install-npm failed");
    let program: String = std::iter::once(TYPES.to_owned())
        .chain(BOARDS.map(checks))
        .collect();
    let file = folder.join("boards.ts");
    std::fs::write(&file, program).unwrap();
    let output = Command::new("node")
        .arg(folder.join("node_modules/typescript/bin/tsc"))
        .args([
            "--noEmit",
            "--strict",
            "--skipLibCheck",
            "--module",
            "esnext",
        ])
        .args(["--moduleResolution", "bundler", "--target", "es2022"])
        .arg(&file)
        .current_dir(&folder)
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{complaints}");
}
