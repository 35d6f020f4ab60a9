//! What registering memory costs: register and deregister, against copying as many bytes. Where the one is less than the
//! other, `--memory dynamic` is worth it. Runs as the hidden verb `testbed perf register`, where the fabric is.

use std::hint::black_box;
use std::time::Instant;

use rdma_http::fabric::{Access, Fabric, FabricError, FabricKind};
use serde::{Deserialize, Serialize};

use super::bed::{Bed, BenchError};
use super::fabrics::{OF_GUESTS, guest};
use super::measure::{Progress, down, median};
use super::{Figure, Row};

/// Bytes that are registered, and copied.
const SIZES: [usize; 6] = [4 << 10, 64 << 10, 256 << 10, 1 << 20, 16 << 20, 64 << 20];

/// How many bytes are registered or copied for a median.
pub const WORK: usize = 512 << 20;

/// And for one reading of the clock, at the least: in a guest that takes as long as copying some KiB.
const BATCH: usize = 4 << 20;

/// What both cost for one size; medians.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Bytes.
    pub bytes: usize,
    /// Of register and deregister together.
    pub register_ns: f64,
    /// Of a copy between two buffers that are there.
    pub copy_ns: f64,
}

/// Measures each size, both in turns, with about `work` bytes of each.
pub fn measure(fabric: &dyn Fabric, work: usize) -> Result<Vec<Cost>, FabricError> {
    let pd = fabric.allocate_pd()?;
    let mut costs = Vec::new();
    for bytes in SIZES {
        // Filled, so that neither pays for pages that are not there yet.
        let (mut memory, source, mut target) = (vec![1; bytes], vec![2; bytes], vec![3; bytes]);
        let (mut registering, mut copying) = (Vec::new(), Vec::new());
        let batch = (BATCH / bytes).max(1);
        let each = |start: Instant| start.elapsed().as_nanos() as f64 / batch as f64;
        for _ in 0..(work / bytes / batch).max(1) {
            let start = Instant::now();
            for _ in 0..batch {
                memory = pd.register(memory, Access::REMOTE_WRITE)?.deregister()?;
            }
            registering.push(each(start));
            let start = Instant::now();
            for _ in 0..batch {
                target.copy_from_slice(black_box(&source));
                black_box(&mut target);
            }
            copying.push(each(start));
        }
        costs.push(Cost { bytes, register_ns: median(&registering), copy_ns: median(&copying) });
    }
    Ok(costs)
}

/// Each fabric in a guest of its own, since only there are all of them.
pub(super) async fn run(rounds: usize, progress: Progress<'_>) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    for &fabric in OF_GUESTS {
        let bed = guest(fabric).await?;
        let measured = of_guest(&bed, fabric, rounds, progress).await;
        down([bed]).await;
        rows.extend(measured?);
    }
    Ok(rows)
}

async fn of_guest(
    bed: &Bed,
    fabric: FabricKind,
    rounds: usize,
    progress: Progress<'_>,
) -> Result<Vec<Row>, BenchError> {
    let over = fabric.to_string();
    let argv = ["testbed", "perf", "register", "--over", &over];
    let (mut registering, mut copying) = (vec![Vec::new(); SIZES.len()], vec![Vec::new(); SIZES.len()]);
    for round in 1..=rounds {
        progress(&format!("register: round {round} of {rounds}, {fabric}"));
        let failed = |why: String| BenchError::Failed { what: argv.join(" "), why };
        let costs: Vec<Cost> = serde_json::from_slice(&bed.judge("client", &argv).await?)
            .map_err(|error| failed(error.to_string()))?;
        for (index, cost) in costs.iter().enumerate().take(SIZES.len()) {
            registering[index].push(cost.register_ns);
            copying[index].push(cost.copy_ns);
        }
    }
    let rows = SIZES.iter().zip(registering.iter().zip(&copying)).map(|(bytes, (registering, copying))| {
        let what = format!("{fabric} in a UML guest, register {} KiB and end it : copy it", bytes >> 10);
        Row::new(Figure::Register, what, median(registering) / 1e3, median(copying) / 1e3, "us")
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use rdma_http::fabric::soft::SoftFabric;

    use super::*;

    #[test]
    fn every_size_is_measured() {
        let costs = measure(&SoftFabric::default(), 0).unwrap();
        let sizes: Vec<usize> = costs.iter().map(|cost| cost.bytes).collect();
        assert_eq!(sizes, SIZES);
        assert!(costs.iter().all(|cost| cost.register_ns > 0.0 && cost.copy_ns > 0.0), "{costs:?}");
    }
}
