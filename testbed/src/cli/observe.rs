//! `testbed observe`: hidden, since a guest's first process starts it.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;

use tokio::sync::watch;

use super::{Code, Failure, Global, Outcome, block_on, print};
use crate::agent::client::Client;
use crate::agent::runtime::LabDir;
use crate::scenario::{Claim, Observed, Question, Runner};

/// Run a scenario in a lab that is up beside this process: a question on standard input, its answer on standard output.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The lab's directory.
    directory: PathBuf,
}

impl Args {
    pub(super) fn run(self, _global: &Global) -> Outcome {
        let failed =
            |what: &str, error: io::Error| Failure::new(Code::Differs, format!("cannot {what}: {error}"));
        let mut text = Vec::new();
        let input = io::stdin().lock().take(Question::MAX_BYTES);
        { input }.read_to_end(&mut text).map_err(|error| failed("read the question", error))?;
        let question: Question = serde_json::from_slice(&text)
            .map_err(|error| Failure::new(Code::Usage, format!("the question makes no sense: {error}")))?;
        let client = Client::new(LabDir::at(&self.directory)?);
        let observed: Observed = block_on(async {
            let claim = Claim::take(&client, || {}).await.map_err(|error| failed("claim the lab", error))?;
            let cancelled = watch::Sender::new(false);
            let runner = Runner {
                client: &client,
                claim: &claim,
                plan: &question.plan,
                fabrics: question.fabrics,
                clock: question.clock,
                keep: false,
                cancelled: &cancelled.subscribe(),
            };
            Ok(match runner.run(&question.scenario).await {
                Ok(observation) => Observed::Seen(Box::new(observation)),
                Err(error) => Observed::Not(error),
            })
        })?;
        print(serde_json::to_string(&observed).map_err(|error| failed("write", error.into()))?);
        Ok(ExitCode::SUCCESS)
    }
}
