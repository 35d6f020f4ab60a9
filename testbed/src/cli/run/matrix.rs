//! Which scenario runs on which fabrics: each on each, unless it names its own.

use rdma_http::fabric::FabricKind;

use crate::scenario::{Fabrics, Scenario};

/// A scenario on its fabrics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job<'a> {
    /// What.
    pub(super) scenario: &'a Scenario,
    /// Over what.
    pub(super) fabrics: Fabrics,
}

/// All that is to be run, fabric by fabric. A scenario that names a fabric is run where that is asked for, beside those
/// that need the same devices.
pub(super) fn matrix<'a>(scenarios: &[&'a Scenario], asked: &[FabricKind]) -> Vec<Job<'a>> {
    let on = |device: FabricKind| {
        let jobs =
            scenarios.iter().map(move |scenario| Job { scenario, fabrics: Fabrics::of(scenario, device) });
        jobs.filter(move |job| {
            let named = [job.scenario.server.fabric, job.scenario.client.fabric];
            job.fabrics.device() == device
                && job.fabrics.interoperate()
                && named.into_iter().flatten().all(|fabric| asked.contains(&fabric))
        })
    };
    asked.iter().flat_map(|device| on(*device)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use FabricKind::{Rxe, Siw, Soft};

    use super::*;

    fn scenario(name: &str, sides: &str) -> Scenario {
        let text = format!("description = \"x\"\n{sides}target = \"/x\"\n");
        Scenario::parse(Path::new(name), &text).unwrap()
    }

    fn names(asked: &[FabricKind]) -> Vec<String> {
        let scenarios = [
            scenario("both.toml", "[server]\nfabric = \"siw\"\n[client]\nfabric = \"soft\"\n"),
            scenario("plain.toml", "[server]\n[client]\n"),
            scenario("server.toml", "[server]\nfabric = \"siw\"\n[client]\n"),
        ];
        let scenarios: Vec<&Scenario> = scenarios.iter().collect();
        let jobs = matrix(&scenarios, asked);
        jobs.iter().map(|job| format!("{} {}", job.fabrics, job.scenario.name)).collect()
    }

    #[test]
    fn each_runs_on_each_and_what_names_its_fabric_where_that_is_asked_for() {
        assert_eq!(names(&[Soft]), ["soft plain"]);
        assert_eq!(names(&[Siw]), ["siw plain", "siw server"]);
        let all = ["soft plain", "siw-soft both", "siw plain", "siw server", "rxe plain"];
        assert_eq!(names(&[Soft, Siw, Rxe]), all);
        assert_eq!(names(&[Rxe]), ["rxe plain"]);
    }
}
