//! Which of the scenarios are to be run: by name or glob, for a topology, in parts.

use std::str::FromStr;

use globset::{Glob, GlobMatcher};
use miette::Diagnostic;
use sha2::{Digest, Sha256};

use super::Scenario;
use crate::topology::Plan;

/// A name, or a glob with `*`, `?`, `[…]` or `{…}`.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    /// `None` for a plain name.
    glob: Option<GlobMatcher>,
}

/// One part of several, so that as many machines can share a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// How the scenarios are dealt out.
    pub by: PartitionBy,
    /// Which part, from 1.
    pub part: u64,
    /// How many there are.
    pub of: u64,
}

/// How scenarios are dealt out to the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionBy {
    /// By the hash of the name: a scenario stays where it is when others come and go.
    Hash,
    /// In turn: the parts are as even as can be.
    Slice,
}

/// What was asked for makes no sense.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[non_exhaustive]
pub enum SelectError {
    /// Not a glob.
    #[error("{text:?} is no pattern: {error}")]
    Pattern {
        /// What was given.
        text: String,
        /// What is wrong with it.
        error: globset::Error,
    },
    /// There is no such scenario.
    #[error("no scenario is called {name:?}")]
    Unknown {
        /// What was given.
        name: String,
        /// What there is.
        #[help]
        help: String,
    },
    /// There is, but the topology lacks its hosts.
    #[error(
        "scenario {name} needs the hosts {server:?} and {client:?}, and topology {topology} has not both"
    )]
    #[diagnostic(help("run it on a topology that has them, such as wan-10g"))]
    DoesNotFit {
        /// The scenario.
        name: String,
        /// The topology.
        topology: String,
        /// Who serves.
        server: String,
        /// Who asks.
        client: String,
    },
}

impl FromStr for Pattern {
    type Err = SelectError;

    fn from_str(text: &str) -> Result<Self, SelectError> {
        let glob = if text.contains(['*', '?', '[', '{']) {
            let glob =
                Glob::new(text).map_err(|error| SelectError::Pattern { text: text.to_owned(), error })?;
            Some(glob.compile_matcher())
        } else {
            None
        };
        Ok(Self { text: text.to_owned(), glob })
    }
}

impl Pattern {
    fn matches(&self, name: &str) -> bool {
        self.glob.as_ref().map_or(self.text == name, |glob| glob.is_match(name))
    }
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (by, numbers) = text.split_once(':')?;
            let (part, of) = numbers.split_once('/')?;
            let by = match by {
                "hash" => PartitionBy::Hash,
                "slice" => PartitionBy::Slice,
                _ => return None,
            };
            let (part, of) = (part.parse().ok()?, of.parse().ok()?);
            (1..=of).contains(&part).then_some(Self { by, part, of })
        };
        parse()
            .ok_or_else(|| "hash:M/N or slice:M/N is wanted, with M from 1 to N, such as hash:1/4".to_owned())
    }
}

impl Partition {
    fn takes(self, index: usize, name: &str) -> bool {
        let bucket = match self.by {
            PartitionBy::Slice => index as u64 % self.of,
            PartitionBy::Hash => {
                let hash = Sha256::digest(name);
                let first = hash.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                first % self.of
            }
        };
        bucket + 1 == self.part
    }
}

/// The scenarios that `patterns` name and that fit the topology (all that fit, if there are no patterns), in their
/// order, and of those the ones in `partition`.
pub fn select<'s>(
    scenarios: &'s [Scenario],
    plan: &Plan,
    patterns: &[Pattern],
    partition: Option<Partition>,
) -> Result<Vec<&'s Scenario>, SelectError> {
    for pattern in patterns.iter().filter(|pattern| pattern.glob.is_none()) {
        match scenarios.iter().find(|scenario| pattern.matches(&scenario.name)) {
            None => return Err(unknown(&pattern.text, scenarios)),
            Some(scenario) if !scenario.fits(plan) => {
                return Err(SelectError::DoesNotFit {
                    name: scenario.name.clone(),
                    topology: plan.name.clone(),
                    server: scenario.server.host.clone(),
                    client: scenario.client.host.clone(),
                });
            }
            Some(_) => {}
        }
    }
    let chosen = scenarios.iter().filter(|scenario| scenario.fits(plan)).filter(|scenario| {
        patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(&scenario.name))
    });
    let in_part = |(index, scenario): &(usize, &Scenario)| {
        partition.is_none_or(|partition| partition.takes(*index, &scenario.name))
    };
    Ok(chosen.enumerate().filter(in_part).map(|(_, scenario)| scenario).collect())
}

fn unknown(name: &str, scenarios: &[Scenario]) -> SelectError {
    let names: Vec<&str> = scenarios.iter().map(|scenario| scenario.name.as_str()).collect();
    let list = format!("there are: {}", names.join(", "));
    let help = match similar::get_close_matches(name, &names, 1, 0.6).first() {
        Some(meant) => format!("did you mean {meant:?}? {list}"),
        None => list,
    };
    SelectError::Unknown { name: name.to_owned(), help }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn scenarios(names: &[&str]) -> Vec<Scenario> {
        let text = "description = \"x\"\n[server]\n[client]\ntarget = \"/x\"\n";
        names.iter().map(|name| Scenario::parse(Path::new(name), text).unwrap()).collect()
    }

    fn plan() -> Plan {
        crate::topology::load("wan-10g").unwrap()
    }

    fn chosen(patterns: &[&str], partition: Option<&str>) -> Result<Vec<String>, SelectError> {
        let scenarios = scenarios(&["get-a", "get-b", "post-a"]);
        let patterns: Vec<Pattern> = patterns.iter().map(|p| p.parse().unwrap()).collect();
        let partition = partition.map(|p| p.parse().unwrap());
        let chosen = select(&scenarios, &plan(), &patterns, partition)?;
        Ok(chosen.iter().map(|scenario| scenario.name.clone()).collect())
    }

    #[test]
    fn names_and_globs_choose() {
        assert_eq!(chosen(&[], None).unwrap(), ["get-a", "get-b", "post-a"]);
        assert_eq!(
            chosen(&["post-a", "get-a"], None).unwrap(),
            ["get-a", "post-a"],
            "in the library's order"
        );
        assert_eq!(chosen(&["get-*"], None).unwrap(), ["get-a", "get-b"]);
        assert_eq!(chosen(&["*-a"], Some("slice:2/2")).unwrap(), ["post-a"]);
        assert_eq!(chosen(&["put-*"], None).unwrap(), [""; 0]);
    }

    #[test]
    fn an_unknown_name_gets_the_list() {
        let error = chosen(&["get-c"], None).unwrap_err();
        let help = Diagnostic::help(&error).unwrap().to_string();
        assert!(help.contains("there are: get-a, get-b, post-a"), "{help}");
        assert!("[".parse::<Pattern>().unwrap_err().to_string().contains("no pattern"));
    }

    #[test]
    fn a_scenario_whose_hosts_are_missing_is_left_out_unless_it_is_named() {
        let mut plan = plan();
        plan.hosts[0].name = "other".to_owned();
        let scenarios = scenarios(&["get-a"]);
        assert!(select(&scenarios, &plan, &[], None).unwrap().is_empty());
        let named = ["get-a".parse().unwrap()];
        let error = select(&scenarios, &plan, &named, None).unwrap_err().to_string();
        assert!(error.contains("needs the hosts \"server\" and \"client\""), "{error}");
    }

    #[test]
    fn partitions_are_checked() {
        for bad in ["", "hash", "hash:1", "hash:0/4", "hash:5/4", "slice:1/0", "count:1/2", "hash:-1/2"] {
            assert!(bad.parse::<Partition>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_scenario_is_in_exactly_one_part(
            names in prop::collection::btree_set("[a-z]{1,8}", 1..30),
            of in 1u64..9,
            hash: bool,
        ) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let scenarios = scenarios(&names);
            let by = if hash { PartitionBy::Hash } else { PartitionBy::Slice };
            let mut seen = Vec::new();
            for part in 1..=of {
                let chosen = select(&scenarios, &plan(), &[], Some(Partition { by, part, of })).unwrap();
                seen.extend(chosen.iter().map(|scenario| scenario.name.clone()));
            }
            seen.sort();
            prop_assert_eq!(seen, names);
        }
    }
}
