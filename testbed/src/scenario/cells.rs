//! The table of the cells of flow x connection x memory that have a golden: `docs/cells.md`, made of the scenarios.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::Scenario;

const HEAD: &str = "\
# Which cells have a golden

Made of the scenarios in `golden/` by a test, which fails where the two differ; `BLESS_DOCS=1 cargo nextest run -p testbed cells`
writes it anew. Each scenario runs on every fabric that is there. The tests in `tests/it/flows.rs` try all combinations of flow,
way of connecting, memory and length over soft.

";

/// The value of a flag, if a scenario gives it.
fn flag<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).map(String::as_str)
}

fn table() -> String {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden");
    // (flow, who connects, server's and client's memory) -> scenarios
    let mut cells: BTreeMap<(String, String, String), Vec<String>> = BTreeMap::new();
    for entry in golden.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let scenario = Scenario::parse(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
        let (server, client) = (&scenario.server.args, &scenario.client.args);
        let upload = scenario.client.upload.is_some();
        let method = flag(client, "--request").unwrap_or(if upload { "PUT" } else { "GET" });
        let offered = if upload { "client-writes" } else { "server-writes" };
        let mode = match (scenario.client.program, flag(client, "--mode")) {
            (super::Program::Curl, _) => "none",
            (_, None | Some("auto")) => offered,
            (_, Some(mode)) => mode,
        };
        let connects = if mode == "none" || mode == "plain" {
            "nobody"
        } else {
            flag(client, "--connect").unwrap_or("server")
        };
        let memory = |args| flag(args, "--memory").unwrap_or("dynamic");
        let memory = format!("{}, {}", memory(server), memory(client));
        let sealed = if scenario.server.tls { ", sealed" } else { "" };
        let cell = (format!("{method} {mode}{sealed}"), connects.to_owned(), memory);
        cells.entry(cell).or_default().push(format!("`{}`", scenario.name));
    }
    let mut page = HEAD.to_owned();
    page.push_str(
        "| flow that is offered | who connects | memory of server, client | scenarios |\n|---|---|---|---|\n",
    );
    for ((flow, connects, memory), mut scenarios) in cells {
        scenarios.sort();
        writeln!(page, "| {flow} | {connects} | {memory} | {} |", scenarios.join(", ")).unwrap();
    }
    page
}

#[test]
fn the_table_is_that_of_the_scenarios() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cells.md");
    if std::env::var_os("BLESS_DOCS").is_some() {
        std::fs::write(&file, table()).unwrap();
    }
    let there = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(there == table(), "docs/cells.md is not what the scenarios make: BLESS_DOCS=1 writes it anew");
}
