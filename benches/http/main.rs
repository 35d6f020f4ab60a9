//! The figures of the whole system over loopback: `cargo bench --bench http [-- servers crowd sealed layer] [4KiB 64MiB …]`.
//! What is compared is measured in turns in one run, and medians are compared, so that a noisy minute hits all of it.

mod clients;
mod crowd;
mod layer;
mod load;
mod sealed;
mod server;
mod servers;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// Measures, with bodies of the sizes that were named, and prints.
type Figure = fn(&[String]) -> Result<()>;

const FIGURES: [(&str, Figure); 4] = [
    ("servers", servers::figure),
    ("crowd", crowd::figure),
    ("sealed", sealed::figure),
    ("layer", layer::figure),
];

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if let [layer::SERVE, args @ ..] = &wanted.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return layer::serve(args);
    }
    let (figures, sizes): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|word| FIGURES.iter().any(|(name, _)| name == word));
    for (name, figure) in FIGURES {
        // Sizes alone are those of the servers, as they ever were.
        let named = figures.iter().any(|figure| figure == name);
        if named || figures.is_empty() && (sizes.is_empty() || name == "servers") {
            let load = std::fs::read_to_string("/proc/loadavg")?;
            println!("\n{name} (load before: {})", load.split(' ').next().unwrap_or_default());
            figure(&sizes)?;
        }
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
