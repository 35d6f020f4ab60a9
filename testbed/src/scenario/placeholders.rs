//! Names in braces in a scenario's arguments, for what only the topology knows.

/// What stands for a value of the topology in a scenario's arguments.
#[derive(Clone, Debug)]
pub struct Placeholders {
    values: [(&'static str, String); 3],
}

impl Placeholders {
    /// The names that may stand in braces: the server's address, the client's address, and an address of the client's
    /// subnet that nobody has.
    pub const NAMES: [&'static str; 3] = ["server", "client", "nobody"];

    /// Values for the [`NAMES`](Self::NAMES), in their order.
    pub fn new(server: String, client: String, nobody: String) -> Self {
        Self { values: [("server", server), ("client", client), ("nobody", nobody)] }
    }

    /// Puts the values in.
    pub fn fill(&self, argument: &str) -> String {
        let mut filled = argument.to_owned();
        for (name, value) in &self.values {
            filled = filled.replace(&format!("{{{name}}}"), value);
        }
        filled
    }

    pub(super) fn check(argument: &str) -> Result<(), String> {
        let mut rest = argument;
        while let Some((_, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else {
                return Err("a `{` without its `}`".to_owned());
            };
            if !Self::NAMES.contains(&name) {
                return Err(format!("nothing is called {{{name}}}"));
            }
            rest = after;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled() {
        let values = Placeholders::new("10.0.0.1".into(), "10.0.0.2".into(), "10.0.0.254".into());
        assert_eq!(values.fill("--x={server},{nobody}"), "--x=10.0.0.1,10.0.0.254");
    }
}
