//! The limits, as three things that must not get out of step have them: the table of `docs/httpd.md`, the settings of
//! rdma-httpd, and its figures.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::victim::Victim;
use crate::program::{command, run};

const GUIDE: &str = include_str!("../../../docs/httpd.md");

/// A limit's name and its value: a number, bytes, or seconds.
type Limits = BTreeMap<String, f64>;

/// `1024`, `10 s`, `100 B/s`, `1 TiB` or `1TiB`.
fn value(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let scale = match text[digits..].trim() {
        "" | "s" | "B/s" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    Some(text[..digits].parse::<f64>().ok()? * 2_f64.powi(scale))
}

/// What the table says.
fn documented() -> Limits {
    let section = GUIDE.split("\n## ").find(|section| section.starts_with("Limits\n")).unwrap();
    let mut limits = Limits::new();
    let mut before = None;
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = row.split(" | ");
        let names = cells.next().unwrap().trim_start_matches("| ").split(", ");
        for (name, default) in names.zip(cells.next().unwrap().split(", ")) {
            let default = if default == "as many" { before } else { value(default) };
            before = Some(default.unwrap_or_else(|| panic!("no value in {row}")));
            limits.insert(name.trim_matches('`').to_owned(), before.unwrap());
        }
    }
    limits
}

/// The settings that bound something, by their names, and their defaults.
fn settings() -> BTreeMap<String, Option<f64>> {
    let mut httpd = command(env!("CARGO_BIN_EXE_rdma-httpd"));
    let printed = run(httpd.args(["--root", ".", "--print-config"])).stdout;
    let printed = String::from_utf8(printed).unwrap();
    let bounds = |name: &str| {
        name.starts_with("max-")
            || name.starts_with("min-")
            || name.ends_with("-timeout")
            || ["chunk-size", "window"].contains(&name)
    };
    let setting = |line: &str| {
        let line = line.trim_start_matches("# ");
        let name = line.split(' ').next()?;
        let text = line.split('"').nth(1);
        bounds(name).then(|| (name.to_owned(), text.and_then(value)))
    };
    printed.lines().filter_map(setting).collect()
}

/// What the figures tell, once they tell of all.
async fn told(victim: &Victim) -> (Limits, BTreeSet<String>) {
    let last = "rdma_http_limit{setting=\"shutdown-timeout\"}";
    victim.until("told of", |figures| figures.contains_key(last)).await;
    let figures: HashMap<String, f64> = victim.figures().await;
    let named = |figure: &str| {
        let select = format!("{figure}{{setting=\"");
        let name = |(name, value): (&String, &f64)| {
            Some((name.strip_prefix(&select)?.strip_suffix("\"}")?.to_owned(), *value))
        };
        figures.iter().filter_map(name).collect::<Limits>()
    };
    let met = named("rdma_http_limited_total");
    assert!(met.values().all(|times| *times == 0.0), "{met:?}");
    (named("rdma_http_limit"), met.into_keys().collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_is_a_setting_a_figure_and_in_the_guide() {
    let documented = documented();
    let settings = settings();
    assert!(settings.keys().eq(documented.keys()), "{settings:#?}\nare not\n{documented:#?}");
    for (name, default) in settings {
        assert!(default.is_none_or(|default| default == documented[&name]), "{name} is {default:?}");
    }
    let (limits, met) = told(&Victim::start(&[])).await;
    assert_eq!(limits, documented);
    assert!(met.iter().eq(documented.keys()), "{met:?}");

    // And what is told is what is set.
    let others: Limits = documented.into_iter().map(|(name, value)| (name, value + 1.0)).collect();
    let args: Vec<String> =
        others.iter().flat_map(|(n, value)| [format!("--{n}"), value.to_string()]).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    assert_eq!(told(&Victim::start(&args)).await.0, others);
}
