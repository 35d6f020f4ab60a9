//! Which commands run, and how all of them end.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};
use tokio::sync::Notify;

use super::command::GRACE;
use super::launcher::AGENT_PID;

/// How often to look whether processes that nobody waits for have ended.
const LOOK: Duration = Duration::from_millis(5);

/// The commands of a lab.
#[derive(Default)]
pub(super) struct Commands {
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Default)]
struct State {
    closed: bool,
    running: BTreeMap<String, usize>,
}

/// A command that runs; its end is the end of this.
pub(super) struct Running<'a> {
    commands: &'a Commands,
    host: String,
}

impl Commands {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a command in; `None` if no more may start.
    pub(super) fn begin(&self, host: &str) -> Option<Running<'_>> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        *state.running.entry(host.to_owned()).or_default() += 1;
        Some(Running { commands: self, host: host.to_owned() })
    }

    /// How many run in each host.
    pub(super) fn counts(&self) -> BTreeMap<String, usize> {
        self.state().running.clone()
    }

    /// Lets no more start, asks every process of the lab to end, waits, then insists.
    pub(super) async fn end_all(&self) {
        self.state().closed = true;
        // "Everybody" must be the lab's PID namespace, never the machine.
        if getpid().as_raw() != AGENT_PID {
            return;
        }
        let everybody = Pid::from_raw(-1);
        let _ = kill(everybody, Signal::SIGTERM);
        let _ = kill(everybody, Signal::SIGCONT);
        let quiet = async {
            while others() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(GRACE, quiet).await;
        let _ = kill(everybody, Signal::SIGKILL);
        let _ = tokio::time::timeout(GRACE, self.all_ended()).await;
    }

    async fn all_ended(&self) {
        loop {
            let ended = self.ended.notified();
            if self.state().running.is_empty() {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.commands.state();
        if let Some(count) = state.running.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                state.running.remove(&self.host);
            }
        }
        drop(state);
        self.commands.ended.notify_waiters();
    }
}

/// Processes of this PID namespace besides PID 1 and this one.
fn others() -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid > AGENT_PID)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn commands_are_counted_by_host_and_none_starts_after_the_end() {
        let commands = Commands::default();
        let (one, two) = (commands.begin("a").unwrap(), commands.begin("a").unwrap());
        assert_eq!(commands.counts(), BTreeMap::from([("a".to_owned(), 2)]));
        drop(one);
        drop(two);
        assert!(commands.counts().is_empty());
        commands.all_ended().await;
        commands.end_all().await;
        assert!(commands.begin("a").is_none());
    }
}
