//! A scenario's file: who serves what, who asks for it and how. Parsed into a checked [`Scenario`], or into an error that
//! points into the file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rdma_http::fabric::FabricKind;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::Fabrics;
use super::error::{ScenarioError, what_was_meant};
use super::placeholders::Placeholders;
use crate::topology::{Plan, Size, Time, UnitError};

/// The largest body that a scenario may ask for: it is written to disk, served, and hashed twice.
pub const MAX_BODY: u64 = 4 << 30;
/// The name of the file that a client sends.
const UPLOAD: &str = "upload";
/// How long a scenario may take if it does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A scenario, checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// The file's stem; also the golden's.
    pub name: String,
    /// The file, as messages show it.
    pub file: PathBuf,
    /// One line for people.
    pub description: String,
    /// Bounds the whole of it.
    pub timeout: Duration,
    /// The part of a golden's time, 0 to 1, by which a time on a virtual clock may be off, if it is not the usual one.
    pub times_within: Option<f64>,
    /// Whether the round trips of each request are counted, on a virtual clock.
    pub round_trips: bool,
    /// Who serves.
    pub server: Server,
    /// Who asks.
    pub client: Client,
}

/// The serving side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// The topology's host that it runs in.
    pub host: String,
    /// What carries RDMA on this side, whatever the run is asked for; `None` follows the run.
    pub fabric: Option<FabricKind>,
    /// Arguments after the runner's own.
    pub args: Vec<String>,
    /// Whether it is https; then the body must not go in the clear anywhere.
    pub tls: bool,
    /// Set in its environment.
    pub env: BTreeMap<String, String>,
    /// What lies in its root.
    pub files: Vec<Body>,
}

/// A file to serve, made from a seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// Relative to the server's root.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Another seed gives other bytes.
    pub seed: u64,
}

/// The asking side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// The topology's host that it runs in.
    pub host: String,
    /// What carries RDMA on this side, whatever the run is asked for; `None` follows the run.
    pub fabric: Option<FabricKind>,
    /// What it runs.
    pub program: Program,
    /// The request's target.
    pub target: String,
    /// How often it asks for it, on one connection.
    pub requests: u8,
    /// What it sends there, from a file of this name beside the server's root.
    pub upload: Option<Body>,
    /// Arguments after the runner's own.
    pub args: Vec<String>,
    /// Set in its environment.
    pub env: BTreeMap<String, String>,
}

/// A client program that the runner knows how to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Program {
    /// Our own client, which reports events.
    RdmaFetch,
    /// curl, which knows nothing of RDMA.
    Curl,
}

impl Program {
    /// The name that it is run by.
    pub fn name(self) -> &'static str {
        match self {
            Self::RdmaFetch => "rdma-fetch",
            Self::Curl => "curl",
        }
    }
}

impl Scenario {
    /// Reads a scenario; `file` gives it its name and shows in messages.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Box<ScenarioError>> {
        let fail = |span: Range<usize>, message: String, help: Option<String>| {
            Box::new(ScenarioError::new(file, text, span, message, help))
        };
        let raw: RawScenario = toml::from_str(text).map_err(|error| {
            let message = error.message().trim_end().replace('\n', "; ");
            let help = what_was_meant(&message);
            fail(error.span().unwrap_or(0..0), message, help)
        })?;
        let timeout = match &raw.timeout {
            None => DEFAULT_TIMEOUT,
            Some(text) => parse_timeout(text.get_ref()).map_err(|e| fail(text.span(), e.message, e.help))?,
        };
        let times_within = match &raw.times_within {
            None => None,
            Some(text) => Some(parse_part(text.get_ref()).map_err(|m| fail(text.span(), m, None))?),
        };
        let mut files: Vec<Body> = Vec::new();
        for file in raw.server.file {
            let path = PathBuf::from(file.path.get_ref());
            let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
            if !inside || path.as_os_str().is_empty() {
                let message = format!("{:?} does not stay inside the server's root", file.path.get_ref());
                let help = Some("give a relative path without `..`".to_owned());
                return Err(fail(file.path.span(), message, help));
            }
            if files.iter().any(|earlier| earlier.path == path) {
                let message = format!("{:?} is there twice", file.path.get_ref());
                return Err(fail(file.path.span(), message, None));
            }
            let size =
                parse_size(file.size.get_ref()).map_err(|e| fail(file.size.span(), e.message, e.help))?;
            files.push(Body { path, size, seed: file.seed.unwrap_or(1) });
        }
        let upload = match raw.client.upload {
            None => None,
            Some(upload) => {
                let size = parse_size(upload.size.get_ref())
                    .map_err(|e| fail(upload.size.span(), e.message, e.help))?;
                Some(Body { path: UPLOAD.into(), size, seed: upload.seed.unwrap_or(1) })
            }
        };
        if !raw.client.target.get_ref().starts_with('/') {
            let message = format!("{:?} is no request target", raw.client.target.get_ref());
            return Err(fail(raw.client.target.span(), message, Some("it begins with `/`".to_owned())));
        }
        let requests = raw.client.requests.as_ref().map_or(1, |requests| *requests.get_ref());
        if let (0 | 17.., Some(spanned)) = (requests, &raw.client.requests) {
            return Err(fail(spanned.span(), "a client asks 1 to 16 times".to_owned(), None));
        }
        let placeholders = raw.server.args.iter().chain(&raw.client.args);
        for argument in placeholders {
            Placeholders::check(argument.get_ref()).map_err(|m| {
                let help =
                    format!("known are {}", Placeholders::NAMES.map(|n| format!("{{{n}}}")).join(", "));
                fail(argument.span(), m, Some(help))
            })?;
        }
        let fabric = |fabric: &Option<Spanned<FabricKind>>| fabric.as_ref().map(|fabric| *fabric.get_ref());
        let (server_fabric, client_fabric) = (fabric(&raw.server.fabric), fabric(&raw.client.fabric));
        if let (Some(server), Some(client), Some(spanned)) =
            (server_fabric, client_fabric, &raw.client.fabric)
            && !(Fabrics { server, client }).interoperate()
        {
            let message = format!("{client} does not understand {server}, the server's fabric");
            let help = "soft and siw understand each other, rxe only itself".to_owned();
            return Err(fail(spanned.span(), message, Some(help)));
        }
        let plain = |args: Vec<Spanned<String>>| args.into_iter().map(Spanned::into_inner).collect();
        Ok(Self {
            name: file.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            file: file.to_owned(),
            description: raw.description,
            timeout,
            times_within,
            round_trips: raw.round_trips,
            server: Server {
                host: raw.server.host.unwrap_or_else(|| "server".to_owned()),
                fabric: server_fabric,
                args: plain(raw.server.args),
                tls: raw.server.tls,
                env: raw.server.env,
                files,
            },
            client: Client {
                host: raw.client.host.unwrap_or_else(|| "client".to_owned()),
                fabric: client_fabric,
                program: raw.client.program.unwrap_or(Program::RdmaFetch),
                target: raw.client.target.into_inner(),
                requests,
                upload,
                args: plain(raw.client.args),
                env: raw.client.env,
            },
        })
    }

    /// Whether a topology has the hosts that it needs.
    pub fn fits(&self, plan: &Plan) -> bool {
        let has = |name: &str| plan.hosts.iter().any(|host| host.name == name);
        has(&self.server.host) && has(&self.client.host)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScenario {
    description: String,
    timeout: Option<Spanned<String>>,
    times_within: Option<Spanned<String>>,
    #[serde(default)]
    round_trips: bool,
    server: RawServer,
    client: RawClient,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServer {
    host: Option<String>,
    fabric: Option<Spanned<FabricKind>>,
    #[serde(default)]
    tls: bool,
    #[serde(default)]
    args: Vec<Spanned<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    file: Vec<RawBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBody {
    path: Spanned<String>,
    size: Spanned<String>,
    seed: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUpload {
    size: Spanned<String>,
    seed: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClient {
    host: Option<String>,
    fabric: Option<Spanned<FabricKind>>,
    program: Option<Program>,
    target: Spanned<String>,
    requests: Option<Spanned<u8>>,
    upload: Option<RawUpload>,
    #[serde(default)]
    args: Vec<Spanned<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

fn parse_size(text: &str) -> Result<u64, UnitError> {
    let Size(bytes) = text.parse()?;
    if bytes > MAX_BODY {
        let message = format!("{text:?} is more than {} GiB", MAX_BODY >> 30);
        return Err(UnitError { message, help: None });
    }
    Ok(bytes)
}

fn parse_timeout(text: &str) -> Result<Duration, UnitError> {
    let Time(duration) = text.parse()?;
    if duration.is_zero() {
        let message = "a scenario cannot be over in no time".to_owned();
        return Err(UnitError { message, help: None });
    }
    Ok(duration)
}

fn parse_part(text: &str) -> Result<f64, String> {
    let number = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    let percent = number.filter(|percent| (0.0..=100.0).contains(percent));
    percent
        .map(|percent| percent / 100.0)
        .ok_or_else(|| format!("{text:?} is no percentage, such as \"5 %\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_a_percentage() {
        assert_eq!(parse_part("10 %"), Ok(0.1));
        assert_eq!(parse_part("0.5%"), Ok(0.005));
        for bad in ["", "%", "10", "-1 %", "101 %", "nan %", "a %"] {
            assert!(parse_part(bad).unwrap_err().contains("is no percentage"), "{bad}");
        }
    }

    const GOOD: &str = r#"
description = "a GET"
timeout = "30s"

[server]
args = ["--allow", "{nobody}"]
[[server.file]]
path = "body.bin"
size = "1 MiB"
seed = 7

[client]
target = "/body.bin"
"#;

    fn parse(text: &str) -> Result<Scenario, Box<ScenarioError>> {
        Scenario::parse(Path::new("golden/get-x.toml"), text)
    }

    #[test]
    fn a_file_becomes_a_scenario() {
        let scenario = parse(GOOD).unwrap();
        assert_eq!(scenario.name, "get-x");
        assert_eq!(scenario.timeout, Duration::from_secs(30));
        assert_eq!(scenario.server.host, "server");
        assert_eq!(scenario.server.files, [Body { path: "body.bin".into(), size: 1 << 20, seed: 7 }]);
        assert_eq!(scenario.client.program, Program::RdmaFetch);
    }

    /// Parses `GOOD` with one piece replaced and returns where the error points and what it says.
    fn error_of(from: &str, to: &str) -> ((usize, usize), String, String) {
        assert!(GOOD.contains(from));
        let error = parse(&GOOD.replace(from, to)).unwrap_err();
        let help = error.help.clone().unwrap_or_default();
        (error.position(), error.to_string(), help)
    }

    #[test]
    fn an_unknown_key_is_shown_with_what_was_meant() {
        let (position, message, help) = error_of("target =", "tagret =");
        assert_eq!(position, (13, 1));
        assert!(message.starts_with("golden/get-x.toml:13:1: unknown field `tagret`"), "{message}");
        assert_eq!(help, "did you mean `target`?");
    }

    #[test]
    fn a_bad_size_is_shown_at_its_place() {
        let (position, message, _) = error_of("\"1 MiB\"", "\"1 Mib\"");
        assert_eq!(position, (9, 8));
        assert!(message.contains("Mib"), "{message}");
        assert!(parse(&GOOD.replace("1 MiB", "99999999999 GiB")).is_err());
        let (_, message, _) = error_of("\"1 MiB\"", "\"5 GiB\"");
        assert!(message.contains("more than 4 GiB"), "{message}");
    }

    #[test]
    fn a_file_outside_the_root_is_refused() {
        for path in ["\"../x\"", "\"/etc/passwd\"", "\"\""] {
            let (position, message, _) = error_of("\"body.bin\"\nsize", &format!("{path}\nsize"));
            assert_eq!(position, (8, 8));
            assert!(message.contains("inside the server's root"), "{message}");
        }
    }

    #[test]
    fn an_unknown_placeholder_is_refused() {
        let (position, message, help) = error_of("{nobody}", "{nobdy}");
        assert_eq!(position, (6, 20));
        assert!(message.contains("{nobdy}"), "{message}");
        assert!(help.contains("{nobody}"), "{help}");
        assert!(error_of("{nobody}", "{nobody").1.contains("without its `}`"));
    }

    #[test]
    fn a_client_may_send_a_body() {
        let text = GOOD.replace("target =", "upload = { size = \"3 KiB\", seed = 7 }\ntarget =");
        let sent = parse(&text).unwrap().client.upload;
        assert_eq!(sent, Some(Body { path: "upload".into(), size: 3 << 10, seed: 7 }));
        assert!(parse(&text.replace("3 KiB", "3 Kib")).is_err());
    }

    #[test]
    fn a_client_may_ask_more_than_once() {
        let ask = |times: u8| parse(&GOOD.replace("target =", &format!("requests = {times}\ntarget =")));
        assert_eq!((parse(GOOD).unwrap().client.requests, ask(2).unwrap().client.requests), (1, 2));
        for times in [0, 17] {
            let error = ask(times).unwrap_err();
            assert_eq!(error.position(), (13, 12));
            assert!(error.to_string().contains("1 to 16 times"), "{error}");
        }
    }

    #[test]
    fn broken_toml_an_endless_timeout_and_an_unknown_program_are_refused() {
        assert_eq!(error_of("[server]", "[server").0, (5, 8));
        assert!(error_of("\"30s\"", "\"0s\"").1.contains("in no time"));
        assert_eq!(error_of("\"30s\"", "\"1h\"").0, (3, 11));
        let (_, message, help) = error_of("target =", "program = \"crul\"\ntarget =");
        assert!(message.contains("unknown variant `crul`"), "{message}");
        assert_eq!(help, "did you mean `curl`?");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn no_edit_of_a_good_file_makes_the_parser_panic(at in 0..GOOD.len(), with in "\\PC{0,3}") {
            let mut text = GOOD.to_owned();
            text.replace_range(at..=at, &with);
            let _ = parse(&text);
        }
    }
}
