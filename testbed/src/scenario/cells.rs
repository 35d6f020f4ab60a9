//! The table of the cells of flow x connection x memory that have a golden, and of those that have none, with the reason:
//! `docs/cells.md`, made of the scenarios.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::Scenario;

const HEAD: &str = "\
# Which cells have a golden

Made of the scenarios in `golden/` by a test, which fails where the two differ, and where a cell has neither a scenario nor a
reason to have none; `BLESS_DOCS=1 cargo nextest run -p testbed cells` writes it anew. The tests in `tests/it/flows.rs` try all
combinations of flow, way of connecting, memory and length over soft. *All* fabrics are soft, siw and rxe.

";

const NONE: &str = "
## Which have none

Both ends have the same memory here, but for `sendfile`, which is the sender's alone: who receives registers the memory into
which the bytes come, as with `dynamic`. Other pairs are no cells of their own: neither end knows what the other has.

| flow | who connects: memory | why there is none |
|---|---|---|
";

const FLOWS: [&str; 6] = [
    "GET client-reads",
    "GET server-writes",
    "POST client-writes",
    "POST server-reads",
    "PUT client-writes",
    "PUT server-reads",
];
const WAYS: [&str; 3] = ["server", "client", "in-place"];
const MEMORIES: [&str; 4] = ["dynamic", "static", "cache", "sendfile"];
const SEALED: &str = ", sealed";

/// A flow, who connects, and the server's and client's memory.
type Cell = (String, String, String);

/// The value of a flag, if a scenario gives it.
fn flag<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).map(String::as_str)
}

/// Both ends' memory, where the sender has this one.
fn both(flow: &str, memory: &str) -> String {
    match (memory, flow.starts_with("GET")) {
        ("sendfile", true) => "sendfile, dynamic".to_owned(),
        ("sendfile", false) => "dynamic, sendfile".to_owned(),
        _ => format!("{memory}, {memory}"),
    }
}

/// Why a cell has no scenario.
fn why_not(flow: &str, way: &str, memory: &str) -> Option<&'static str> {
    let sealed = flow.ends_with(SEALED);
    Some(match (sealed, way, memory) {
        (true, "in-place", _) => {
            "it cannot be: an HTTP connection with TLS does not become one for RDMA (protocol.md, section 7)"
        }
        (true, _, "sendfile") => {
            "it cannot be: what is sealed is no file's bytes any more, and goes as with `dynamic`"
        }
        _ if flow.starts_with("POST") => {
            "a POST's body is moved by the code that moves a PUT's; the method shows in the file service's answer only"
        }
        (true, "client", _) | (true, _, "static" | "cache") => {
            "bodies are sealed before they are in registered memory, and whoever connected: `tests/it/sealed` tries it over soft"
        }
        _ => return None,
    })
}

struct Scenarios {
    fabrics: &'static str,
    names: Vec<String>,
}

fn scenarios() -> BTreeMap<Cell, Scenarios> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden");
    let mut cells: BTreeMap<Cell, Scenarios> = BTreeMap::new();
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
        let sealed = if scenario.server.tls { SEALED } else { "" };
        let cell = (format!("{method} {mode}{sealed}"), connects.to_owned(), memory);
        // Only soft can connect in place; what else names its fabric is one of several scenarios of its cell.
        let fabrics = if connects == "in-place" { "soft" } else { "all" };
        let there = cells.entry(cell).or_insert(Scenarios { fabrics, names: Vec::new() });
        there.names.push(format!("`{}`", scenario.name));
    }
    cells
}

fn table() -> String {
    let mut cells = scenarios();
    let mut none: BTreeMap<(String, &str), BTreeMap<usize, Vec<&str>>> = BTreeMap::new();
    for flow in FLOWS.iter().flat_map(|flow| [(*flow).to_owned(), format!("{flow}{SEALED}")]) {
        for (number, way) in WAYS.iter().enumerate() {
            for memory in MEMORIES {
                let cell = (flow.clone(), (*way).to_owned(), both(&flow, memory));
                match (cells.contains_key(&cell), why_not(&flow, way, memory)) {
                    (true, _) => {}
                    (false, Some(why)) => {
                        none.entry((flow.clone(), why)).or_default().entry(number).or_default().push(memory);
                    }
                    (false, None) => panic!("{cell:?} has no scenario, and nothing says why"),
                }
            }
        }
    }
    let mut page = HEAD.to_owned();
    page.push_str(
        "| flow that is offered | who connects | memory of server, client | fabrics | scenarios |\n|---|---|---|---|---|\n",
    );
    for ((flow, connects, memory), there) in &mut cells {
        there.names.sort();
        let (fabrics, names) = (there.fabrics, there.names.join(", "));
        writeln!(page, "| {flow} | {connects} | {memory} | {fabrics} | {names} |").unwrap();
    }
    page.push_str(NONE);
    for ((flow, why), ways) in none {
        let ways = ways.iter().map(|(way, memories)| format!("{}: {}", WAYS[*way], memories.join(", ")));
        writeln!(page, "| {flow} | {} | {why} |", ways.collect::<Vec<_>>().join("; ")).unwrap();
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
