use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::golden::Store;
use crate::guest::choice::Clock;
use crate::scenario::wire::Conversation;
use crate::scenario::{Fabrics, Observation, Place, Side, Timeline};

fn observation(program: &str) -> Observation {
    Observation {
        scenario: "get-x".into(),
        fabrics: Fabrics::both(FabricKind::Soft),
        place: Place { addresses: BTreeMap::new(), work: "/w".into() },
        client: Side { program: program.into(), ..Side::default() },
        server: Side::default(),
        served: None,
        arrived: None,
        wire: Conversation::default(),
        timeline: Timeline::default(),
        clock: Clock::Wall,
    }
}

fn finding(name: &str, outcome: Outcome) -> Finding {
    let file = PathBuf::from(format!("golden/{name}.toml"));
    let fabrics = Fabrics::both(FabricKind::Soft);
    Finding {
        name: name.into(),
        fabrics,
        file,
        elapsed: Duration::from_millis(1234),
        simulated: None,
        outcome,
    }
}

fn observed(comparisons: Vec<Comparison>) -> Outcome {
    Outcome::Observed { comparisons, blessed: vec![], violations: vec![] }
}

/// A run in which everything happens, told to a reporter.
fn tell(reporter: &mut dyn Reporter) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(folder.path());
    let compare =
        |program| store.compare(&observation(program), Path::new("golden/get-x.toml"), "x").unwrap();
    let missing = compare("rdma-fetch");
    missing.iter().for_each(|comparison| assert!(comparison.accept().unwrap()));
    let blessed = missing.iter().map(|comparison| comparison.file.clone()).collect();
    let error = RunError {
        message: "rdma-httpd was killed by signal 6 while it was needed".into(),
        unavailable: false,
        logs: vec![("rdma-httpd said".into(), "thread panicked: 100%\nat <here> & \"there\"".into())],
    };
    let leak = Outcome::Observed {
        comparisons: compare("rdma-fetch"),
        blessed: vec![],
        violations: vec!["leak: the client never released a region of 10 bytes".into()],
    };
    let findings = [
        finding("get-good", observed(compare("rdma-fetch"))),
        finding("get-new", Outcome::Observed { comparisons: missing.clone(), blessed, violations: vec![] }),
        finding("get-x", observed(compare("curl"))),
        finding("get-unknown", observed(missing)),
        finding("get-leak", leak),
        finding("get-crash", Outcome::Error(error)),
    ];
    let start = Start {
        topology: "wan-10g".into(),
        fabrics: vec![FabricKind::Soft, FabricKind::Siw],
        kernel: "host".into(),
        clock: "wall".into(),
        lab: Some("run-1".into()),
        scenarios: findings.len(),
        skipped: 2,
    };
    reporter.event(&Event::Started(&start)).unwrap();
    let mut summary = Summary { elapsed: Duration::from_secs(7), ..Summary::default() };
    for finding in &findings {
        reporter.event(&Event::ScenarioStarted { name: &finding.name, fabrics: finding.fabrics }).unwrap();
        reporter.event(&Event::ScenarioFinished(finding)).unwrap();
        summary.add(finding);
    }
    reporter.event(&Event::Finished(&summary)).unwrap();
    assert!(!summary.is_good());
}

/// What a reporter wrote, without the directory that differs from run to run.
fn told(new: impl FnOnce(&mut Vec<u8>) -> Box<dyn Reporter + '_>) -> String {
    let mut out = Vec::new();
    tell(&mut *new(&mut out));
    let text = String::from_utf8(out).unwrap();
    let temporary = std::env::temp_dir().join(".tmp").display().to_string();
    let mut parts = text.split(&temporary);
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean.push_str("golden");
        clean.push_str(&part[part.find('/').unwrap()..]);
    }
    clean
}

#[test]
fn people_get_a_line_each_and_the_differences_at_the_end() {
    insta::assert_snapshot!(told(|out| Box::new(Human::new(out, false, false, false))));
}

#[test]
fn the_quiet_get_what_is_wrong() {
    let text = told(|out| Box::new(Human::new(out, false, false, true)));
    assert!(!text.contains("get-good") && !text.contains("Starting"), "{text}");
    assert!(text.contains("get-leak") && text.contains("Summary"), "{text}");
}

#[test]
fn color_does_not_change_the_words() {
    let plain = told(|out| Box::new(Human::new(out, false, false, false)));
    let mut colored = told(|out| Box::new(Human::new(out, true, false, false)));
    assert!(colored.contains("\x1b[31m"), "{colored}");
    while let Some(at) = colored.find('\x1b') {
        let end = colored[at..].find('m').unwrap();
        colored.replace_range(at..=at + end, "");
    }
    assert_eq!(colored, plain);
}

#[test]
fn programs_get_an_object_a_line() {
    let text = told(|out| Box::new(Json::new(out)));
    let values: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let verdicts: Vec<&str> = values.iter().filter_map(|value| value["verdict"].as_str()).collect();
    assert_eq!(verdicts, ["pass", "blessed", "fail", "fail", "fail", "error"]);
    assert_eq!(values[0]["event"], "started");
    assert_eq!(values[3]["goldens"][0]["outcome"], "differs");
    assert_eq!(values[3]["goldens"][0]["line"], 5);
    assert!(values[3]["goldens"][0]["diff"].as_str().unwrap().contains("+client: curl"));
    assert_eq!(values[6]["error"]["logs"][0]["name"], "rdma-httpd said");
    let end = &values[7];
    assert_eq!((&end["event"], &end["passed"], &end["failed"]), (&"finished".into(), &1.into(), &3.into()));
}

#[test]
fn junit_is_read_by_its_own_library_and_counts_right() {
    let text = told(|out| Box::new(JUnit::new(out)));
    let report = quick_junit::Report::deserialize_from_str(&text).unwrap();
    assert_eq!((report.tests, report.failures, report.errors), (6, 3, 1));
    let suite = &report.test_suites[0];
    assert_eq!(suite.name.as_str(), "wan-10g");
    let names: Vec<&str> = suite.test_cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["get-good", "get-new", "get-x", "get-unknown", "get-leak", "get-crash"]);
}

#[test]
fn github_gets_one_line_a_problem_that_points_into_the_golden() {
    let text = told(|out| Box::new(GitHub::new(out)));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.iter().all(|line| line.starts_with("::error file=golden/")), "{text}");
    let differs = lines.iter().find(|line| line.contains("title=scenario get-x")).unwrap();
    assert!(differs.starts_with("::error file=golden/snapshots/get-x.snap,line=5,title="), "{differs}");
    assert!(differs.contains("%0A-client: rdma-fetch%0A+client: curl"), "{differs}");
    let crash = lines.iter().find(|line| line.contains("title=scenario get-crash")).unwrap();
    assert!(crash.contains("100%25"), "{crash}");
}
