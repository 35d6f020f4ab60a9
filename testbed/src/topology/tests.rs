//! Whole files, good and bad.

use std::time::Duration;

use miette::{GraphicalReportHandler, GraphicalTheme};

use super::*;

/// A good file; each test breaks it in its own way.
const GOOD: &str = r#"
[hosts.server]
[hosts.client]
[[links]]
endpoints = ["server:eth0", "client:eth0"]
rate = "10 Gbit/s"
delay = "25 ms"
"#;

/// What is wrong with `text`, a line each: `line:column message | help`.
fn problems(text: &str) -> String {
    let error = Topology::parse("t.toml", text).expect_err("the file was accepted");
    let line = |problem: &Problem| {
        let place = format!("{}:{}", problem.line(), problem.column());
        format!("{place} {} | {}", problem.message(), problem.help().unwrap_or("-"))
    };
    error.problems().iter().map(line).collect::<Vec<_>>().join("\n")
}

/// As the command line shows it.
fn rendered(text: &str) -> String {
    let error = Topology::parse("t.toml", text).expect_err("the file was accepted");
    let mut out = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_wrap_lines(false)
        .with_links(false)
        .render_report(&mut out, &error)
        .unwrap();
    out
}

fn good(text: &str) -> Topology {
    Topology::parse("t.toml", text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn wan_10g_becomes_the_plan_that_its_numbers_mean() {
    let text = include_str!("../../../topologies/wan-10g.toml");
    let plan = good(text).plan();
    insta::assert_snapshot!(serde_json::to_string_pretty(&plan).unwrap(), @r#"
    {
      "name": "wan-10g",
      "description": "two hosts, 10 Gbit/s, 25 ms each way",
      "fabric": "soft",
      "hosts": [
        {
          "name": "server",
          "interfaces": [
            {
              "name": "eth0",
              "mac": "02:00:00:00:00:01",
              "address": "10.10.0.1/24",
              "mtu": 1500,
              "neighbors": [
                [
                  "10.10.0.2",
                  "02:00:00:00:00:02"
                ]
              ]
            }
          ],
          "sysctls": {
            "net.ipv4.tcp_no_metrics_save": "1",
            "net.ipv4.tcp_rmem": "4096 131072 250000000",
            "net.ipv4.tcp_wmem": "4096 16384 250000000"
          }
        },
        {
          "name": "client",
          "interfaces": [
            {
              "name": "eth0",
              "mac": "02:00:00:00:00:02",
              "address": "10.10.0.2/24",
              "mtu": 1500,
              "neighbors": [
                [
                  "10.10.0.1",
                  "02:00:00:00:00:01"
                ]
              ]
            }
          ],
          "sysctls": {
            "net.ipv4.tcp_no_metrics_save": "1",
            "net.ipv4.tcp_rmem": "4096 131072 250000000",
            "net.ipv4.tcp_wmem": "4096 16384 250000000"
          }
        }
      ],
      "links": [
        {
          "name": "wan",
          "a": {
            "host": "server",
            "interface": "eth0"
          },
          "b": {
            "host": "client",
            "interface": "eth0"
          },
          "a_to_b": {
            "delay": {
              "secs": 0,
              "nanos": 25000000
            },
            "jitter": {
              "secs": 0,
              "nanos": 0
            },
            "rate": 10000000000,
            "queue": 62500000,
            "loss": 0.0,
            "reorder": 0.0,
            "duplicate": 0.0,
            "corrupt": 0.0
          },
          "b_to_a": {
            "delay": {
              "secs": 0,
              "nanos": 25000000
            },
            "jitter": {
              "secs": 0,
              "nanos": 0
            },
            "rate": 10000000000,
            "queue": 62500000,
            "loss": 0.0,
            "reorder": 0.0,
            "duplicate": 0.0,
            "corrupt": 0.0
          },
          "driver": "auto"
        }
      ]
    }
    "#);
}

#[test]
fn the_example_of_the_guide_is_good() {
    let guide = include_str!("../../../docs/guide.md");
    let (_, rest) = guide.split_once("```toml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let topology = good(example);
    assert_eq!(topology.name, "branch-office");
    assert_eq!(topology.links[0].a_to_b.queue, Some(Queue::Bytes(Size(16_000_000))));
    assert_eq!(topology.links[1].b_to_a.rate, Some(Rate(1_000_000_000)));
}

#[test]
fn what_is_left_out_is_assigned_and_the_same_each_time() {
    let topology = good(GOOD);
    assert_eq!(topology.name, "t");
    let [link] = &topology.links[..] else { panic!() };
    assert_eq!(link.name, "server:eth0--client:eth0");
    assert_eq!(link.ends.clone().map(|end| end.address.to_string()), ["10.10.0.1/24", "10.10.0.2/24"]);
    assert_eq!(link.a_to_b.queue, Some(Queue::MilliBdp(1_000)));
    assert_eq!(topology.plan(), good(GOOD).plan());
}

#[test]
fn a_direction_wins_over_its_link_and_a_link_over_the_defaults() {
    let topology = good(
        r#"
        defaults = { delay = "1 ms", rate = "1 Gbit/s", loss = "0.1 %", mtu = 9000 }
        [hosts.a]
        [hosts.b]
        [[links]]
        endpoints = ["a:eth0", "b:eth0"]
        delay = "2 ms"
        b_to_a = { delay = "3 ms", rate = "unlimited" }
        "#,
    );
    let [link] = &topology.links[..] else { panic!() };
    let ms = |n| Time(Duration::from_millis(n));
    assert_eq!((link.a_to_b.delay, link.b_to_a.delay), (ms(2), ms(3)));
    assert_eq!((link.a_to_b.rate, link.b_to_a.rate), (Some(Rate(1_000_000_000)), None));
    assert_eq!((link.a_to_b.loss, link.b_to_a.loss), (Probability(0.001), Probability(0.001)));
    assert_eq!(link.mtu, 9000);
    // 1 Gbit/s by 5 ms is 625 kB; no rate, no queue.
    let plan = topology.plan();
    assert_eq!((plan.links[0].a_to_b.queue, plan.links[0].b_to_a.queue), (Some(625_000), None));
}

#[test]
fn given_settings_win_over_derived_ones() {
    let plan = good(&GOOD.replace(
        "[hosts.client]",
        "[hosts.client]\nsysctls = { \"net.ipv4.tcp_rmem\" = \"1 2 3\", net.ipv4.tcp_sack = 0 }",
    ))
    .plan();
    assert_eq!(plan.hosts[0].sysctls["net.ipv4.tcp_rmem"], "4096 131072 250000000");
    assert_eq!(plan.hosts[1].sysctls["net.ipv4.tcp_rmem"], "1 2 3");
    assert_eq!(plan.hosts[1].sysctls["net.ipv4.tcp_sack"], "0");
}

#[test]
fn the_other_end_of_a_given_address_comes_from_its_subnet() {
    let topology = good(
        r#"
        hosts.a.interfaces.eth0.address = "192.0.2.1/24"
        hosts.b.interfaces.eth1.address = "10.10.0.9/16"
        hosts.c = {}
        [[links]]
        endpoints = ["a:eth0", "b:eth0"]
        [[links]]
        endpoints = ["b:eth1", "c:eth0"]
        [[links]]
        endpoints = ["a:eth1", "c:eth1"]
        "#,
    );
    let addresses: Vec<_> =
        topology.links.iter().flat_map(|link| &link.ends).map(|end| end.address.to_string()).collect();
    let expected =
        ["192.0.2.1/24", "192.0.2.2/24", "10.10.0.9/16", "10.10.0.1/16", "10.11.0.1/24", "10.11.0.2/24"];
    assert_eq!(addresses, expected);
}

#[test]
fn an_unknown_key_is_shown_where_it_stands_with_what_was_meant() {
    insta::assert_snapshot!(rendered(&GOOD.replace("delay", "dealy")), @r#"
     × t.toml:7:1: unknown key "dealy" in a link
      ╭─[t.toml:7:1]
    6 │ rate = "10 Gbit/s"
    7 │ dealy = "25 ms"
      · ──┬──
      ·   ╰── not known
      ╰────
     help: did you mean "delay"?
    "#);
}

#[test]
fn several_problems_are_told_at_once_in_the_order_of_the_file() {
    let text = GOOD
        .replace("client:eth0", "clinet:eth0")
        .replace("10 Gbit/s", "10 Gbps")
        .replace("25 ms", "25")
        .replace("[hosts.server]", "[hosts.server]\ncolour = 1");
    insta::assert_snapshot!(rendered(&text), @r#"
      × t.toml has 4 mistakes

    Error: 
      × t.toml:3:1: unknown key "colour" in a host
       ╭─[t.toml:3:1]
     2 │ [hosts.server]
     3 │ colour = 1
       · ───┬──
       ·    ╰── not known
     4 │ [hosts.client]
       ╰────
      help: a host has: interfaces, sysctls

    Error: 
      × t.toml:6:29: there is no host "clinet"
       ╭─[t.toml:6:29]
     5 │ [[links]]
     6 │ endpoints = ["server:eth0", "clinet:eth0"]
       ·                             ──────┬──────
       ·                                   ╰── not a host
     7 │ rate = "10 Gbps"
       ╰────
      help: did you mean "client:eth0"?

    Error: 
      × t.toml:7:8: unknown unit "Gbps" in the rate "10 Gbps"
       ╭─[t.toml:7:8]
     6 │ endpoints = ["server:eth0", "clinet:eth0"]
     7 │ rate = "10 Gbps"
       ·        ────┬────
       ·            ╰── here
     8 │ delay = "25"
       ╰────
      help: did you mean "10 Gbit/s"?

    Error: 
      × t.toml:8:9: the time "25" has no unit
       ╭─[t.toml:8:9]
     7 │ rate = "10 Gbps"
     8 │ delay = "25"
       ·         ──┬─
       ·           ╰── here
       ╰────
      help: write a time as "25 ms"
    "#);
    insta::assert_snapshot!(problems(&text), @r#"
    3:1 unknown key "colour" in a host | a host has: interfaces, sysctls
    6:29 there is no host "clinet" | did you mean "client:eth0"?
    7:8 unknown unit "Gbps" in the rate "10 Gbps" | did you mean "10 Gbit/s"?
    8:9 the time "25" has no unit | write a time as "25 ms"
    "#);
}

#[test]
fn two_hosts_with_one_address_are_both_shown() {
    let text = GOOD
        .replace("[hosts.server]", "[hosts.server]\ninterfaces.eth0.address = \"10.1.0.1/24\"")
        .replace("[hosts.client]", "[hosts.client]\ninterfaces.eth0.address = \"10.1.0.1/24\"");
    insta::assert_snapshot!(rendered(&text), @r#"
     × t.toml:5:27: server:eth0 and client:eth0 have one address
      ╭─[t.toml:5:27]
    2 │ [hosts.server]
    3 │ interfaces.eth0.address = "10.1.0.1/24"
      ·                           ──────┬──────
      ·                                 ╰── first here
    4 │ [hosts.client]
    5 │ interfaces.eth0.address = "10.1.0.1/24"
      ·                           ──────┬──────
      ·                                 ╰── 10.1.0.1 again
    6 │ [[links]]
      ╰────
     help: every interface needs an address of its own
    "#);
}

#[test]
fn addresses_that_cannot_be() {
    let with = |server: &str, client: &str| {
        problems(
            &GOOD
                .replace("[hosts.server]", &format!("[hosts.server]\ninterfaces.eth0.address = \"{server}\""))
                .replace(
                    "[hosts.client]",
                    &format!("[hosts.client]\ninterfaces.eth0.address = \"{client}\""),
                ),
        )
    };
    insta::assert_snapshot!(with("10.1.0.1", "10.1.0.2/24"), @r#"3:27 "10.1.0.1" is no address | it needs its prefix length: "10.1.0.1/24""#);
    insta::assert_snapshot!(with("10.1.0.1/24", "10.2.0.2/24"), @"5:27 the ends of server:eth0--client:eth0 are not in one subnet | for example 10.1.0.1/24 and 10.1.0.2/24");
    insta::assert_snapshot!(with("10.1.0.1/24", "10.1.0.2/16"), @"5:27 the ends of server:eth0--client:eth0 are not in one subnet | for example 10.1.0.1/24 and 10.1.0.2/24");
    insta::assert_snapshot!(with("10.1.0.0/24", "10.1.0.1/24"), @"3:27 server:eth0 cannot have 10.1.0.0/24 | -");
    insta::assert_snapshot!(with("server", "10.1.0.1/24"), @r#"3:27 "server" is no address | an address and its prefix length, such as "10.10.0.1/24""#);
}

#[test]
fn names_that_cannot_be() {
    insta::assert_snapshot!(problems(&GOOD.replace("server", "Web_1")), @r#"2:8 "Web_1" cannot be a host's name | at most 63 lower-case letters, digits and hyphens, no hyphen at either end"#);
    insta::assert_snapshot!(problems(&GOOD.replace("server:eth0", "server:a-name-too-long0")), @r#"5:14 "a-name-too-long0" is too long for an interface's name | Linux takes at most 15 bytes; this has 16"#);
    insta::assert_snapshot!(problems(&GOOD.replace("server:eth0", "server:lo")), @r#"5:14 an interface cannot be called "lo" | letters, digits, dots, hyphens and underscores; not lo, all or default"#);
    insta::assert_snapshot!(problems(&GOOD.replace("server:eth0", "server")), @r#"5:14 "server" is no endpoint | a host and its interface: "server:eth0""#);
    insta::assert_snapshot!(problems(&format!("name = \"no/slash\"\n{GOOD}")), @r#"1:8 "no/slash" cannot be a topology's name | at most 63 lower-case letters, digits and hyphens, no hyphen at either end"#);
}

#[test]
fn links_that_cannot_be() {
    insta::assert_snapshot!(problems(&format!("{GOOD}[[links]]\nendpoints = [\"server:eth0\", \"client:eth1\"]")), @"9:14 server:eth0 is an end of two links | each link needs an interface of its own");
    insta::assert_snapshot!(problems(&GOOD.replace("client:eth0", "server:eth1")), @r#"
    3:8 no link ends at the host "client" | name it in a link's endpoints: "client:eth0"
    5:29 a link from "server" to itself | a link joins two hosts
    "#);
    insta::assert_snapshot!(problems(&GOOD.replace("endpoints", "name = \"x\"\n#")), @r#"4:1 a link without endpoints | a link has two: endpoints = ["server:eth0", "client:eth0"]"#);
    insta::assert_snapshot!(problems(&GOOD.replace("\"client:eth0\"", "")), @r#"5:13 a link with 1 endpoints | a link has two: endpoints = ["server:eth0", "client:eth0"]"#);
    insta::assert_snapshot!(problems("[hosts.server]"), @r#"1:8 no link ends at the host "server" | name it in a link's endpoints: "server:eth0""#);
    insta::assert_snapshot!(problems(""), @"1:1 a topology without hosts | a table for each: [hosts.server]");
}

#[test]
fn impairments_that_cannot_be() {
    let with = |more: &str| problems(&format!("{GOOD}{more}\n"));
    insta::assert_snapshot!(with("queue = \"1 kB\""), @"8:9 a queue of 1 kB cannot hold one frame | a full frame of an mtu of 1500 has 1514 bytes");
    insta::assert_snapshot!(with("loss = 5"), @r#"8:8 a probability of 5 is impossible | a bare number is from 0 to 1; did you mean "5 %"?"#);
    insta::assert_snapshot!(with("jitter = \"26 ms\""), @"8:10 a jitter of 26 ms on a delay of 25 ms | no frame can arrive before it was sent");
    insta::assert_snapshot!(with("mtu = 100"), @"8:7 an mtu of 100 is impossible | from 576 to 65521 bytes");
    insta::assert_snapshot!(with("driver = \"netm\""), @r#"8:10 there is no driver "netm" | did you mean "netem"?"#);
    insta::assert_snapshot!(with("driver = \"veth\""), @r#"4:1 a veth link does nothing to frames, and this one should | leave out rate, delay and the others, or take the driver "auto""#);
    insta::assert_snapshot!(with("b_to_a = { rate = \"1 Tbit/s\" }"), @"8:19 1 Tbit/s over 25 ms cannot be emulated | at most 4294 MB");
    insta::assert_snapshot!(problems(&GOOD.replace("rate = \"10 Gbit/s\"", "queue = \"1 bdp\"")), @r#"6:9 a queue on a link without a rate | give the link a rate, such as rate = "10 Gbit/s""#);
    insta::assert_snapshot!(problems(&GOOD.replace("delay = \"25 ms\"", "reorder = 0.1")), @"7:11 reordering on a link without delay | a frame overtakes those that are under way: give the link a delay");
}

#[test]
fn broken_toml_is_shown_where_it_breaks() {
    insta::assert_snapshot!(problems("[hosts.server\n[hosts.client]\nx ="), @r"
    1:14 not TOML: unclosed table, expected `]` | -
    3:4 not TOML: string values must be quoted, expected literal string | -
    ");
    insta::assert_snapshot!(problems("[hosts]\nserver = 1"), @r#"2:10 "server" must be a table, not an integer | -"#);
    insta::assert_snapshot!(problems("links = 1\nhosts = []\nname = 2"), @r#"
    1:1 "links" must be a list: [[links]], not an integer | -
    2:9 "hosts" must be a table, not an array | -
    3:8 "name" must be a text, not an integer | -
    "#);
}

#[test]
fn settings_outside_of_the_namespace_are_refused() {
    let text = GOOD.replace("[hosts.server]", "[hosts.server]\nsysctls.\"kernel.hostname\" = \"x\"");
    insta::assert_snapshot!(problems(&text), @r#"3:9 "kernel.hostname" is no setting of a network namespace | only settings that begin with "net." belong to a host, such as net.ipv4.tcp_rmem"#);
}

#[test]
fn a_flood_of_problems_is_counted() {
    let text: String = (0..100).map(|i| format!("key{i} = 1\n")).collect();
    let error = Topology::parse("t.toml", &text).unwrap_err();
    assert_eq!(error.problems().len(), 20);
    assert!(error.to_string().ends_with("has 100 mistakes"), "{error}");
}
