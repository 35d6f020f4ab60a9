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

/// From so many bytes on a scenario takes several times as long as most do.
const LONG: u64 = 16 << 20;

impl Job<'_> {
    /// What is greater takes longer: as it grows with the bytes that move, and with the packets that carry them, which are
    /// the smallest on rxe (1 KiB, each on its way through the whole of a guest's kernel). All that are short are alike.
    pub(super) fn cost(&self) -> (u64, u8) {
        let files = self.scenario.server.files.iter().chain(&self.scenario.client.upload);
        let bytes: u64 = files.map(|file| file.size).sum();
        let packets = match self.fabrics.device() {
            _ if bytes < LONG => 0,
            FabricKind::Soft => 1,
            FabricKind::Siw => 2,
            FabricKind::Rxe => 3,
        };
        (bytes / LONG, packets)
    }
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
    fn more_bytes_and_smaller_packets_cost_more() {
        let file = |size: &str| format!("[[server.file]]\npath = \"x\"\nsize = \"{size}\"\n[client]\n");
        let [short, long] = ["1 MiB", "64 MiB"].map(|size| scenario(&format!("{size}.toml"), &file(size)));
        let empty = scenario("empty.toml", "[server]\n[client]\n");
        let scenarios = [&short, &empty, &long];
        let mut jobs = matrix(&scenarios, &[Soft, Rxe]);
        jobs.sort_by_key(Job::cost);
        let names: Vec<String> =
            jobs.iter().map(|job| format!("{} {}", job.fabrics, job.scenario.name)).collect();
        let expected = ["soft 1 MiB", "soft empty", "rxe 1 MiB", "rxe empty", "soft 64 MiB", "rxe 64 MiB"];
        assert_eq!(names, expected);
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
