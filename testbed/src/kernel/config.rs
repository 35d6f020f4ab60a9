//! What is wanted of a kernel's configuration, and whether it came out.
//!
//! kconfig takes a wish and gives what the dependencies allow, without a word about what it dropped. So every line that
//! was asked for is looked up in the result.

use std::collections::BTreeMap;

use super::Platform;

/// A configuration fragment: lines `CONFIG_X=value` and `# CONFIG_X is not set`, other comments, and blank lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// What it is called in messages, and its file's name.
    pub name: String,
    /// Its text.
    pub text: String,
}

impl Fragment {
    /// Those of ours that a platform is made from.
    pub fn ours(platform: Platform) -> Vec<Self> {
        let fragment = |name: &str, text: &str| Self { name: name.into(), text: text.into() };
        let guest = fragment("guest.config", include_str!("../../../ci/kernel/guest.config"));
        let own = match platform {
            Platform::Uml => fragment("uml.config", include_str!("../../../ci/kernel/uml.config")),
            Platform::Qemu => fragment("qemu.config", include_str!("../../../ci/kernel/qemu.config")),
        };
        vec![guest, own]
    }
}

/// What several fragments ask for together; the later one wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted(BTreeMap<String, Option<String>>);

/// A line of a fragment that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {text:?} is neither CONFIG_X=value nor \"# CONFIG_X is not set\"")]
pub struct ConfigError {
    /// The fragment.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// What is there.
    pub text: String,
}

impl Wanted {
    /// Reads fragments.
    pub fn parse(fragments: &[Fragment]) -> Result<Self, ConfigError> {
        let mut wanted = BTreeMap::new();
        for fragment in fragments {
            for (index, line) in fragment.text.lines().enumerate() {
                match option(line) {
                    Line::Option(name, value) => {
                        wanted.insert(name.to_owned(), value.map(str::to_owned));
                    }
                    Line::Nothing => {}
                    Line::Bad => {
                        return Err(ConfigError {
                            file: fragment.name.clone(),
                            line: index + 1,
                            text: line.to_owned(),
                        });
                    }
                }
            }
        }
        Ok(Self(wanted))
    }

    /// One line for each option, in alphabetical order: what the cache's key is made from. Comments and the order of
    /// lines make no other kernel.
    pub fn canonical(&self) -> String {
        self.0.iter().map(|(name, value)| render(name, value.as_deref()) + "\n").collect()
    }

    /// What a whole configuration (`.config`) has otherwise: a line each.
    pub fn missing(&self, dot_config: &str) -> Vec<String> {
        let found: BTreeMap<&str, Option<&str>> = dot_config
            .lines()
            .filter_map(|line| match option(line) {
                Line::Option(name, value) => Some((name, value)),
                Line::Nothing | Line::Bad => None,
            })
            .collect();
        self.0
            .iter()
            .filter_map(|(name, wanted)| {
                let got = found.get(name.as_str()).copied();
                // An option whose dependencies are not met isn't in the file at all, which is as good as not set.
                if got.flatten() == wanted.as_deref() {
                    return None;
                }
                let got = match got {
                    Some(value) => render(name, value),
                    None => "no such option, or its dependencies are not met".to_owned(),
                };
                Some(format!("  {}: {got}", render(name, wanted.as_deref())))
            })
            .collect()
    }
}

fn render(name: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("{name}={value}"),
        None => format!("# {name} is not set"),
    }
}

enum Line<'a> {
    /// An option with its value; `None` is "not set".
    Option(&'a str, Option<&'a str>),
    /// A comment, or a blank line.
    Nothing,
    Bad,
}

fn option(line: &str) -> Line<'_> {
    let line = line.trim();
    let is_name = |name: &str| {
        name.strip_prefix("CONFIG_").is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        })
    };
    if let Some(comment) = line.strip_prefix('#') {
        let name = comment.trim_start().strip_suffix(" is not set").filter(|name| is_name(name));
        return name.map_or(Line::Nothing, |name| Line::Option(name, None));
    }
    if line.is_empty() {
        return Line::Nothing;
    }
    match line.split_once('=') {
        // kconfig itself reads `=n` as "not set".
        Some((name, "n")) if is_name(name) => Line::Option(name, None),
        Some((name, value)) if is_name(name) && !value.is_empty() => Line::Option(name, Some(value)),
        _ => Line::Bad,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(text: &str) -> Wanted {
        Wanted::parse(&[Fragment { name: "t".into(), text: text.into() }]).unwrap()
    }

    #[test]
    fn ours_ask_for_rdma_on_every_platform() {
        for platform in Platform::ALL {
            let wanted = Wanted::parse(&Fragment::ours(platform)).unwrap();
            for option in ["CONFIG_RDMA_SIW", "CONFIG_RDMA_RXE", "CONFIG_NET_SCH_NETEM", "CONFIG_NET_NS"] {
                assert_eq!(wanted.0.get(option), Some(&Some("y".to_owned())), "{platform}: {option}");
            }
        }
    }

    #[test]
    fn what_was_dropped_is_named() {
        let wanted = wanted(
            "CONFIG_A=y\nCONFIG_B=\"x y\"\n# CONFIG_C is not set\nCONFIG_D=y\n# CONFIG_E is not set\n",
        );
        let result = "CONFIG_A=y\nCONFIG_B=\"x\"\nCONFIG_C=y\n# CONFIG_OTHER is not set\n";
        assert_eq!(
            wanted.missing(result),
            [
                "  CONFIG_B=\"x y\": CONFIG_B=\"x\"",
                "  # CONFIG_C is not set: CONFIG_C=y",
                "  CONFIG_D=y: no such option, or its dependencies are not met",
            ]
        );
        assert!(wanted.missing("CONFIG_A=y\nCONFIG_B=\"x y\"\nCONFIG_D=y\n").is_empty());
    }

    #[test]
    fn the_later_fragment_wins_and_neither_order_nor_comments_matter() {
        let one = wanted("# about A\nCONFIG_A=n\nCONFIG_B=y\nCONFIG_A=m\n");
        assert_eq!(one, wanted("CONFIG_B=y\n\nCONFIG_A=m"));
        assert_eq!(one.canonical(), "CONFIG_A=m\nCONFIG_B=y\n");
    }

    #[test]
    fn a_line_that_means_nothing_has_its_place() {
        let fragment = Fragment { name: "my.config".into(), text: "CONFIG_A=y\nCONFIG_B\n".into() };
        let error = Wanted::parse(&[fragment]).unwrap_err();
        assert!(error.to_string().starts_with("my.config:2: \"CONFIG_B\""), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_with_a_line_of_it(text in "(?s).{0,200}") {
            let lines = text.lines().count();
            if let Err(error) = Wanted::parse(&[Fragment { name: "t".into(), text }]) {
                prop_assert!((1..=lines).contains(&error.line));
            }
        }

        #[test]
        fn the_canonical_text_asks_for_the_same(
            options in prop::collection::btree_map("CONFIG_[A-Z0-9_]{1,8}", prop::option::of("[ym]|[0-9]{1,4}|\"[a-z,:]*\""), 0..20)
        ) {
            let original = Wanted(options);
            let again = wanted(&original.canonical());
            prop_assert_eq!(&again, &original);
            prop_assert!(original.missing(&original.canonical()).is_empty());
        }
    }
}
