//! `testbed link`: what links do, and changes to that while the lab is up.

use std::process::ExitCode;
use std::str::FromStr;

use clap::builder::FalseyValueParser;
use serde_json::json;

use super::lab::Which;
use super::{Code, Failure, Global, Outcome, block_on, say, status};
use crate::agent::client::Client;
use crate::agent::protocol::{DirectionChange, LinkStatus, Status};
use crate::topology::{Change, Limit, LinkPlan, Plan, Probability, Queue, Rate, Time, UnitError};

const EXAMPLES: &str = "\
A change holds for frames that enter from then on, until the lab is down; frames keep their order.

Examples:
  testbed link show
  testbed link set server:eth0--client:eth0 --delay '50 ms' --loss '0.1 %'
  testbed link set server:eth0--client:eth0 --from client --rate '100 Mbit/s'
  testbed link set server:eth0--client:eth0 --reset
  testbed link cut server:eth0--client:eth0
  testbed link heal server:eth0--client:eth0";

/// Show what links do, change it, cut and heal them, while the lab is up.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// What links do to frames now, and their counters.
    Show {
        #[command(flatten)]
        which: Which,
        /// The link's name; all of them by default.
        link: Option<String>,
    },
    /// Change what a link does to frames. What is not named stays as it is.
    Set {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        change: Wanted,
    },
    /// Let nothing through any more, what is under way included. The hosts' interfaces stay up.
    Cut {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        target: Target,
    },
    /// Let frames through again as before the cut.
    Heal {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, clap::Args)]
struct Target {
    /// The link's name.
    link: String,
    /// Only frames that this host sends; both directions by default.
    #[arg(long, env = "TESTBED_LINK_FROM", value_name = "HOST", hide_env_values = true)]
    from: Option<String>,
}

/// What is to change, in a topology's words.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Wanted {
    /// Added to every frame: 25 ms.
    #[arg(long, env = "TESTBED_LINK_DELAY", value_parser = quantity::<Time>, hide_env_values = true)]
    delay: Option<Time>,
    /// Standard deviation of the delay: 1 ms.
    #[arg(long, env = "TESTBED_LINK_JITTER", value_parser = quantity::<Time>, hide_env_values = true)]
    jitter: Option<Time>,
    /// 10 Gbit/s, or unlimited.
    #[arg(long, env = "TESTBED_LINK_RATE", value_parser = quantity::<Limit<Rate>>, hide_env_values = true)]
    rate: Option<Limit<Rate>>,
    /// What may wait for the rate: 8 MiB, 1 bdp or unlimited. With a new rate or delay it is 1 bdp unless it is said.
    #[arg(long, env = "TESTBED_LINK_QUEUE", value_parser = quantity::<Limit<Queue>>, hide_env_values = true)]
    queue: Option<Limit<Queue>>,
    /// Probability of a frame being lost: 0.1 %.
    #[arg(long, env = "TESTBED_LINK_LOSS", value_parser = quantity::<Probability>, hide_env_values = true)]
    loss: Option<Probability>,
    /// Probability of a frame overtaking those before it.
    #[arg(long, env = "TESTBED_LINK_REORDER", value_parser = quantity::<Probability>, hide_env_values = true)]
    reorder: Option<Probability>,
    /// Probability of a frame being sent twice.
    #[arg(long, env = "TESTBED_LINK_DUPLICATE", value_parser = quantity::<Probability>, hide_env_values = true)]
    duplicate: Option<Probability>,
    /// Probability of a frame having a bit flipped.
    #[arg(long, env = "TESTBED_LINK_CORRUPT", value_parser = quantity::<Probability>, hide_env_values = true)]
    corrupt: Option<Probability>,
    /// What the topology says, before any other change that is named here.
    #[arg(long, env = "TESTBED_LINK_RESET", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    reset: bool,
}

/// A quantity from the command line, with how to write it where it is wrong.
fn quantity<T: FromStr<Err = UnitError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|UnitError { message, help }| match help {
        Some(help) => format!("{message}; {help}"),
        None => message,
    })
}

impl Wanted {
    fn change(&self) -> Change {
        let &Self { delay, jitter, rate, queue, loss, reorder, duplicate, corrupt, reset: _ } = self;
        Change { delay, jitter, rate, queue, loss, reorder, duplicate, corrupt }
    }

    /// What both directions come to, of which `wanted` are to change.
    fn apply(
        &self,
        plan: &Plan,
        link: &LinkPlan,
        now: &LinkStatus,
        wanted: [bool; 2],
    ) -> Result<[DirectionChange; 2], Failure> {
        let change = self.change();
        let before =
            if self.reset { [&link.a_to_b, &link.b_to_a] } else { [&now.a_to_b.does, &now.b_to_a.does] };
        let delays: [Time; 2] = [0, 1].map(|n| match (wanted[n], change.delay) {
            (true, Some(delay)) => delay,
            (true, None) => Time(before[n].delay),
            (false, _) => Time([&now.a_to_b, &now.b_to_a][n].does.delay),
        });
        let mtu = plan.mtu(&link.a);
        let mut changes = [DirectionChange::default(), DirectionChange::default()];
        for n in (0..2).filter(|n| wanted[*n]) {
            let does = change.apply(before[n], delays[1 - n], mtu).map_err(|error| {
                let message = format!("link {}: {}", link.name, error.message);
                match error.help {
                    Some(help) => Failure::with_help(Code::Usage, message, help),
                    None => Failure::new(Code::Usage, message),
                }
            })?;
            changes[n].does = Some(does);
        }
        Ok(changes)
    }
}

impl Args {
    pub(super) fn run(self, global: &Global) -> Outcome {
        let (which, target, set) = match self.what {
            What::Show { which, link } => return show(global, &which.client()?, link.as_deref()),
            What::Set { which, target, change } => (which, target, Ok(change)),
            What::Cut { which, target } => (which, target, Err(true)),
            What::Heal { which, target } => (which, target, Err(false)),
        };
        let client = which.client()?;
        let status = block_on(async {
            let status = client.status().await?;
            let (plan, now) = find(&status, &target.link)?;
            let wanted = directions(plan, target.from.as_deref())?;
            let [a_to_b, b_to_a] = match set {
                Ok(set) => set.apply(&status.plan, plan, now, wanted)?,
                Err(cut) => wanted.map(|wanted| DirectionChange { cut: wanted.then_some(cut), does: None }),
            };
            client.change_link(&plan.name, a_to_b, b_to_a).await?;
            Ok(client.status().await?)
        })?;
        if global.json {
            let (_, now) = find(&status, &target.link)?;
            say(format_args!("{:#}", json!(now)));
        } else if !global.quiet {
            say(status::links_text(&status, Some(&target.link), global.color_stdout()).trim_end());
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(global: &Global, client: &Client, link: Option<&str>) -> Outcome {
    let status = block_on(async { Ok(client.status().await?) })?;
    if let Some(link) = link {
        find(&status, link)?;
    }
    if global.json {
        let shown = status.links.iter().filter(|status| link.is_none_or(|link| status.name == link));
        say(format_args!("{:#}", json!(shown.collect::<Vec<_>>())));
    } else {
        say(status::links_text(&status, link, global.color_stdout()).trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

/// A link's plan and how it is now.
fn find<'s>(status: &'s Status, link: &str) -> Result<(&'s LinkPlan, &'s LinkStatus), Failure> {
    let mut links = status.plan.links.iter().zip(&status.links);
    links.find(|(plan, _)| plan.name == link).ok_or_else(|| {
        let names: Vec<_> = status.plan.links.iter().map(|link| link.name.as_str()).collect();
        Failure::with_help(
            Code::Usage,
            format!("lab `{}` has no link `{link}`", status.lab),
            format!("its links are {}", names.join(", ")),
        )
    })
}

/// Which directions are meant: from a to b, from b to a.
fn directions(link: &LinkPlan, from: Option<&str>) -> Result<[bool; 2], Failure> {
    let Some(from) = from else { return Ok([true; 2]) };
    let wanted = [&link.a, &link.b].map(|end| end.host == from || end.to_string() == from);
    if wanted == [false; 2] {
        return Err(Failure::with_help(
            Code::Usage,
            format!("`{from}` is no end of link {}", link.name),
            format!("its ends are {} and {}", link.a, link.b),
        ));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direction_is_named_by_the_host_that_sends() {
        let plan = crate::topology::load("wan-10g").unwrap();
        let link = &plan.links[0];
        assert_eq!(directions(link, None).unwrap(), [true, true]);
        assert_eq!(directions(link, Some(&link.a.host)).unwrap(), [true, false]);
        assert_eq!(directions(link, Some(&link.b.to_string())).unwrap(), [false, true]);
        assert!(directions(link, Some("nobody")).is_err());
    }
}
