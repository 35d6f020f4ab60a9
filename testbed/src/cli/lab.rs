//! What the verbs share that speak to a lab: which one is meant, and what its errors come to.

use std::time::Duration;

use super::{Code, Failure};
use crate::agent::client::{Client, ClientError};
use crate::agent::protocol::Blame;
use crate::agent::runtime::{LabDir, LabName, Runtime, RuntimeError};
use crate::guest::choice::NoChoice;
use crate::guest::host::{DownError, UpError};

/// Which lab a verb means.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The lab; may be left out while only one is up.
    #[arg(short, long, env = "TESTBED_LAB", value_name = "NAME", hide_env_values = true)]
    lab: Option<LabName>,
}

impl Which {
    pub(super) fn client(self) -> Result<Client, Failure> {
        Ok(Client::new(choose(self.lab)?))
    }
}

/// The named lab, or else the only one.
pub(super) fn choose(name: Option<LabName>) -> Result<LabDir, Failure> {
    let runtime = Runtime::locate();
    if let Some(name) = name {
        return Ok(runtime.lab(&name));
    }
    let mut labs = runtime.labs()?;
    // What a dead agent left counts only where nothing else is there, so that it is said what became of the lab.
    if labs.len() > 1 {
        labs.retain(LabDir::is_alive);
    }
    match (labs.pop(), labs.is_empty()) {
        (Some(lab), true) => Ok(lab),
        (None, _) => Err(Failure::with_help(Code::Usage, "no lab is up", "bring one up: testbed up wan-10g")),
        (Some(last), false) => {
            let names = labs.iter().chain([&last]).map(|lab| lab.name().as_str()).collect::<Vec<_>>();
            let help = format!("name one of {}", names.join(", "));
            Err(Failure::with_help(Code::Usage, "several labs are up", help))
        }
    }
}

/// A number of seconds from the command line.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>().map(Duration::try_from_secs_f64) {
        Ok(Ok(duration)) if !duration.is_zero() => Ok(duration),
        _ => Err("a number of seconds above 0 is wanted, such as 30 or 2.5".to_owned()),
    }
}

impl From<Blame> for Code {
    fn from(blame: Blame) -> Self {
        match blame {
            Blame::Usage => Self::Usage,
            Blame::Machine => Self::Machine,
            Blame::Operation => Self::Differs,
        }
    }
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        let code = match error {
            RuntimeError::BadName { .. } => Code::Usage,
            RuntimeError::NotOurs { .. } | RuntimeError::Io { .. } => Code::Machine,
            RuntimeError::Busy { .. } => Code::Differs,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NotUp { ref lab } => Self::with_help(
                Code::Usage,
                format!("lab `{lab}` is not up"),
                format!("bring it up: testbed up {lab}; `testbed status` lists those that are"),
            ),
            ClientError::Failed { message, blame } => blamed(blame, message),
            ClientError::NotExecuted { code, message } => {
                Self::new(Code::Differs, message).with_raw_code(code)
            }
            other => Self::new(Code::Differs, other.to_string()),
        }
    }
}

impl From<UpError> for Failure {
    fn from(error: UpError) -> Self {
        match error {
            UpError::Runtime(error) => error.into(),
            UpError::NoProgram | UpError::Start { .. } => Self::new(Code::Machine, error.to_string()),
            UpError::Different { ref lab, .. } => Self::with_help(
                Code::Usage,
                error.to_string(),
                format!(
                    "take that one down first (testbed down {lab}), or give this one another name (`testbed up --name`, or `name` in its file)"
                ),
            ),
            UpError::Failed { message, blame } => blamed(blame, message),
            UpError::Died { .. } | UpError::Hangs { .. } => Self::new(Code::Differs, error.to_string()),
        }
    }
}

impl From<NoChoice> for Failure {
    fn from(NoChoice { message, help, blame }: NoChoice) -> Self {
        Self::with_help(blame.into(), message, help)
    }
}

impl From<DownError> for Failure {
    fn from(error: DownError) -> Self {
        match error {
            DownError::Runtime(error) => error.into(),
            DownError::Stuck { .. } => Self::new(Code::Machine, error.to_string()),
            DownError::Refused(message) => Self::new(Code::Differs, message),
        }
    }
}

fn blamed(blame: Blame, message: String) -> Failure {
    match blame {
        Blame::Machine => Failure::with_help(
            Code::Machine,
            message,
            "`testbed doctor` says what this machine can do, and what mends it",
        ),
        other => Failure::new(other.into(), message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_positive_numbers() {
        assert_eq!(seconds("2.5"), Ok(Duration::from_millis(2500)));
        for bad in ["0", "-1", "x", "inf", "nan", "1e99"] {
            assert!(seconds(bad).is_err(), "{bad} was accepted");
        }
    }
}
