//! Labs for the tests of other programs.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::agent::client::{Client, ClientError, Command, Outputs};
use crate::agent::protocol::Status;
use crate::guest::host::{self, DownError, Lease, Options, UpError};
use crate::topology::{self, Plan};

/// Bytes of output that [`LabHandle::exec`] collects at most.
const MAX_OUTPUT: usize = 64 << 20;

/// A lab that lives as long as this: it goes when the handle is dropped, and also if the process is killed.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let lab = testbed::LabHandle::up("wan-10g").await?;
/// let outputs = lab.exec("client", ["ping", "-c1", "server"]).await?;
/// assert_eq!(outputs.exit, testbed::agent::protocol::Exit::Code(0));
/// lab.down().await?;
/// # Ok(())
/// # }
/// ```
///
/// The agent is the `testbed` executable: `$TESTBED_BIN`, or one beside the program or a directory above it, where cargo
/// puts it.
#[derive(Debug)]
pub struct LabHandle {
    client: Client,
    status: Status,
    options: Options,
    _lease: Option<Lease>,
}

impl LabHandle {
    /// Brings up a topology (a name, a path, or `-`) under a name that no other lab has.
    pub async fn up(topology: &str) -> Result<Self, UpError> {
        let plan = topology::load(topology).map_err(|error| UpError::Failed {
            message: error.to_string(),
            blame: crate::agent::protocol::Blame::Usage,
        })?;
        Self::up_plan(&plan).await
    }

    /// Brings up a plan under a name that no other lab has.
    pub async fn up_plan(plan: &Plan) -> Result<Self, UpError> {
        Self::up_with(plan, Options::new()?).await
    }

    /// Brings up a plan under a name that no other lab has, where and as the options say: in a guest, say.
    pub async fn up_with(plan: &Plan, options: Options) -> Result<Self, UpError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let stem: String = plan.name.chars().take(30).collect();
        let name = format!("{stem}-{pid}-{count}").parse()?;
        let up = host::up(&name, plan, &options).await?;
        Ok(Self { client: up.client, status: up.status, options, _lease: up.lease })
    }

    /// What was up when the lab was ready. [`Client::status`] asks anew.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// The lab's agent, for all that this has no method for.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Runs a command in a host to its end and collects its output (64 MiB at most).
    pub async fn exec<T: Into<String>>(
        &self,
        host: &str,
        argv: impl IntoIterator<Item = T>,
    ) -> Result<Outputs, ClientError> {
        let mut argv = argv.into_iter();
        let program = argv.next().map(Into::into).unwrap_or_default();
        self.client.exec(Command::new(host, program).args(argv)).await?.output(MAX_OUTPUT).await
    }

    /// Takes the lab down, and returns when nothing of it is left.
    pub async fn down(self) -> Result<(), DownError> {
        host::down(self.client.lab(), self.options.timeout).await.map(|_| ())
    }
}
