//! A plan as a picture: a tree for terminals, DOT for graphviz, Mermaid for Markdown.

use std::fmt::Write as _;

use super::units::{Probability, Rate, Size, Time};
use super::{Impairment, InterfacePlan, LinkPlan, Plan};

/// Each host with its interfaces, where they lead and what the way out does.
pub fn text(plan: &Plan) -> String {
    let mut out = plan.name.clone();
    if !plan.description.is_empty() {
        let _ = write!(out, ": {}", plan.description);
    }
    out.push('\n');
    let width =
        plan.hosts.iter().flat_map(|host| &host.interfaces).map(|i| address(i).len()).max().unwrap_or(0);
    for (number, host) in plan.hosts.iter().enumerate() {
        let last = number + 1 == plan.hosts.len();
        let _ = writeln!(out, "{} {}", if last { "└──" } else { "├──" }, host.name);
        for (number, interface) in host.interfaces.iter().enumerate() {
            let stem = if last { "    " } else { "│   " };
            let branch = if number + 1 == host.interfaces.len() { "└──" } else { "├──" };
            let _ = write!(out, "{stem}{branch} {:<width$}", address(interface));
            if let Some((link, other, way)) = way_out(plan, &host.name, &interface.name) {
                let _ = write!(out, "  ── {link} ─▶ {other}  {}", describe(way));
            }
            out.push('\n');
        }
    }
    out
}

/// For `dot -Tsvg`.
pub fn dot(plan: &Plan) -> String {
    let mut out = format!("digraph {} {{\n  node [shape=box];\n", quoted(&plan.name));
    for host in &plan.hosts {
        let lines: Vec<_> = host.interfaces.iter().map(address).collect();
        let label = quoted(&format!("{}\n{}", host.name, lines.join("\n")));
        let _ = writeln!(out, "  {} [label={label}];", quoted(&host.name));
    }
    for link in &plan.links {
        for (from, to, way) in both_ways(link) {
            let label = quoted(&format!("{}\n{}", link.name, describe(way)));
            let _ = writeln!(out, "  {} -> {} [label={label}];", quoted(from), quoted(to));
        }
    }
    out.push_str("}\n");
    out
}

/// For a ```` ```mermaid ```` block, which GitHub draws.
pub fn mermaid(plan: &Plan) -> String {
    let mut out = "flowchart LR\n".to_owned();
    // Host names may be words of Mermaid's own ("end"), so its nodes get numbers.
    let node = |name: &str| format!("h{}", plan.hosts.iter().position(|host| host.name == name).unwrap_or(0));
    for host in &plan.hosts {
        let lines: Vec<_> = host.interfaces.iter().map(address).collect();
        let _ = writeln!(out, "  {}[\"{}<br/>{}\"]", node(&host.name), host.name, lines.join("<br/>"));
    }
    for link in &plan.links {
        let edges: &[_] = &both_ways(link);
        if link.a_to_b == link.b_to_a {
            let (a, b, way) = edges[0];
            let _ = writeln!(out, "  {} <-->|\"{}<br/>{}\"| {}", node(a), link.name, describe(way), node(b));
            continue;
        }
        for (from, to, way) in edges {
            let _ =
                writeln!(out, "  {} -->|\"{}<br/>{}\"| {}", node(from), link.name, describe(way), node(to));
        }
    }
    out
}

/// What a direction does to frames, in words.
pub fn describe(way: &Impairment) -> String {
    let mut parts = vec![way.rate.map_or_else(|| "no limit".to_owned(), |rate| Rate(rate).to_string())];
    if way.delay.is_zero() {
        parts.push("no delay".to_owned());
    } else if way.jitter.is_zero() {
        parts.push(Time(way.delay).to_string());
    } else {
        parts.push(format!("{} ± {}", Time(way.delay), Time(way.jitter)));
    }
    parts.extend(way.queue.map(|queue| format!("queue {}", Size(queue))));
    let chances = [
        ("loss", way.loss),
        ("reorder", way.reorder),
        ("duplicate", way.duplicate),
        ("corrupt", way.corrupt),
    ];
    parts.extend(
        chances.into_iter().filter(|(_, p)| *p > 0.0).map(|(what, p)| format!("{what} {}", Probability(p))),
    );
    parts.join(", ")
}

fn address(interface: &InterfacePlan) -> String {
    format!("{} {}", interface.name, interface.address)
}

fn way_out<'p>(plan: &'p Plan, host: &str, interface: &str) -> Option<(&'p str, String, &'p Impairment)> {
    plan.links.iter().find_map(|link| {
        let is = |end: &super::Endpoint| end.host == host && end.interface == interface;
        if is(&link.a) {
            Some((&*link.name, link.b.to_string(), &link.a_to_b))
        } else if is(&link.b) {
            Some((&*link.name, link.a.to_string(), &link.b_to_a))
        } else {
            None
        }
    })
}

fn both_ways(link: &LinkPlan) -> [(&str, &str, &Impairment); 2] {
    [(&link.a.host, &link.b.host, &link.a_to_b), (&link.b.host, &link.a.host, &link.b_to_a)]
}

/// A string of DOT.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::super::Topology;
    use super::*;

    fn plan() -> Plan {
        let text = r#"
            name = "triangle"
            description = "not all alike"
            [hosts.server]
            [hosts.client]
            [hosts.far]
            [[links]]
            name = "wan"
            endpoints = ["server:eth0", "client:eth0"]
            rate = "10 Gbit/s"
            delay = "25 ms"
            [[links]]
            name = "up"
            endpoints = ["server:eth1", "far:eth0"]
            a_to_b = { delay = "2 ms", jitter = "0.5 ms", loss = "1 %" }
        "#;
        Topology::parse("t.toml", text).unwrap().plan()
    }

    #[test]
    fn a_tree() {
        insta::assert_snapshot!(text(&plan()), @r"
        triangle: not all alike
        ├── server
        │   ├── eth0 10.10.0.1/24  ── wan ─▶ client:eth0  10 Gbit/s, 25 ms, queue 62.5 MB
        │   └── eth1 10.10.1.1/24  ── up ─▶ far:eth0  no limit, 2 ms ± 500 us, loss 0.01
        ├── client
        │   └── eth0 10.10.0.2/24  ── wan ─▶ server:eth0  10 Gbit/s, 25 ms, queue 62.5 MB
        └── far
            └── eth0 10.10.1.2/24  ── up ─▶ server:eth1  no limit, no delay
        ");
    }

    #[test]
    fn a_dot_file() {
        insta::assert_snapshot!(dot(&plan()), @r#"
        digraph "triangle" {
          node [shape=box];
          "server" [label="server\neth0 10.10.0.1/24\neth1 10.10.1.1/24"];
          "client" [label="client\neth0 10.10.0.2/24"];
          "far" [label="far\neth0 10.10.1.2/24"];
          "server" -> "client" [label="wan\n10 Gbit/s, 25 ms, queue 62.5 MB"];
          "client" -> "server" [label="wan\n10 Gbit/s, 25 ms, queue 62.5 MB"];
          "server" -> "far" [label="up\nno limit, 2 ms ± 500 us, loss 0.01"];
          "far" -> "server" [label="up\nno limit, no delay"];
        }
        "#);
    }

    #[test]
    fn a_mermaid_chart() {
        insta::assert_snapshot!(mermaid(&plan()), @r#"
        flowchart LR
          h0["server<br/>eth0 10.10.0.1/24<br/>eth1 10.10.1.1/24"]
          h1["client<br/>eth0 10.10.0.2/24"]
          h2["far<br/>eth0 10.10.1.2/24"]
          h0 <-->|"wan<br/>10 Gbit/s, 25 ms, queue 62.5 MB"| h1
          h0 -->|"up<br/>no limit, 2 ms ± 500 us, loss 0.01"| h2
          h2 -->|"up<br/>no limit, no delay"| h0
        "#);
    }
}
