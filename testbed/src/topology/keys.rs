//! The keys of a topology file, as data: what is accepted, what is suggested for a slip, and the JSON Schema all come
//! from here.

use serde_json::{Map, Value, json};

/// The keys of one kind of table.
pub(super) struct Keys {
    /// What such a table is called in a message.
    pub(super) what: &'static str,
    pub(super) keys: &'static [Key],
}

pub(super) struct Key {
    pub(super) name: &'static str,
    doc: &'static str,
    shape: Shape,
}

enum Shape {
    Text,
    /// A quantity, with the pattern of its text.
    Quantity(&'static str),
    Probability,
    Integer(u32, u32),
    OneOf(&'static [&'static str]),
    Endpoints,
    /// A table of settings.
    Settings,
    Table(&'static Keys),
    /// A table whose keys are names.
    Named(&'static Keys),
    List(&'static Keys),
}

const fn key(name: &'static str, shape: Shape, doc: &'static str) -> Key {
    Key { name, doc, shape }
}

const RATE: Shape = Shape::Quantity(r"^(unlimited|[0-9][0-9._]* *[kKmMgGtT]?[bB]it(/s)?)$");
const TIME: Shape = Shape::Quantity(r"^[0-9][0-9._]* *(ns|us|µs|ms|s)$");
const QUEUE: Shape = Shape::Quantity(r"^(unlimited|[0-9][0-9._]* *(bdp|BDP|B|[kKMG]B|[KMG]iB))$");

/// What a link does to frames; the same keys in `defaults`, in a link and in one direction of it.
macro_rules! with_impairments {
    ($($more:expr),* $(,)?) => {
        &[
            $($more,)*
            key("delay", TIME, "added to every frame, one way: \"25 ms\""),
            key("jitter", TIME, "standard deviation of the delay"),
            key("rate", RATE, "\"10 Gbit/s\" or \"unlimited\""),
            key("queue", QUEUE, "what may wait for the rate: \"1 bdp\", \"8 MiB\" or \"unlimited\""),
            key("loss", Shape::Probability, "chance of a frame being lost"),
            key("reorder", Shape::Probability, "chance of a frame overtaking those before it"),
            key("duplicate", Shape::Probability, "chance of a frame arriving twice"),
            key("corrupt", Shape::Probability, "chance of a frame having one bit flipped"),
        ]
    };
}

pub(super) const DRIVERS: &[&str] = &["auto", "relay", "netem", "veth"];
/// What an interface may be told to carry. Below the least, IPv4 hosts need not even reassemble (RFC 791, section 3.1).
pub(super) const MTU: std::ops::RangeInclusive<u32> = 576..=65_521;

const DRIVER_KEY: Key = key("driver", Shape::OneOf(DRIVERS), "who carries the frames");
const MTU_KEY: Key =
    key("mtu", Shape::Integer(*MTU.start(), *MTU.end()), "bytes of the largest IP packet; 1500");

pub(super) const FILE: Keys = Keys {
    what: "a topology",
    keys: &[
        key("name", Shape::Text, "also the lab's name; the file's name by default"),
        key("description", Shape::Text, "one line for people"),
        key("defaults", Shape::Table(&DEFAULTS), "for every link that does not say otherwise"),
        key("hosts", Shape::Named(&HOST), "the hosts, by name"),
        key("links", Shape::List(&LINK), "the links"),
    ],
};

pub(super) const DEFAULTS: Keys = Keys { what: "[defaults]", keys: with_impairments!(DRIVER_KEY, MTU_KEY) };

pub(super) const HOST: Keys = Keys {
    what: "a host",
    keys: &[
        key(
            "interfaces",
            Shape::Named(&INTERFACE),
            "addresses of its interfaces, by name; the links make them",
        ),
        key("sysctls", Shape::Settings, "\"net.*\" settings of its network namespace"),
    ],
};

pub(super) const INTERFACE: Keys = Keys {
    what: "an interface",
    keys: &[key("address", Shape::Text, "with its prefix length: \"10.10.0.1/24\"")],
};

pub(super) const LINK: Keys = Keys {
    what: "a link",
    keys: with_impairments!(
        key("endpoints", Shape::Endpoints, "its two ends: [\"server:eth0\", \"client:eth0\"]"),
        key("name", Shape::Text, "what to call it; its endpoints by default"),
        DRIVER_KEY,
        MTU_KEY,
        key("a_to_b", Shape::Table(&DIRECTION), "what differs from the first endpoint to the second"),
        key("b_to_a", Shape::Table(&DIRECTION), "what differs from the second endpoint to the first"),
    ),
};

pub(super) const DIRECTION: Keys = Keys { what: "a direction of a link", keys: with_impairments!() };

/// The JSON Schema (2020-12) of a topology file, for editors.
pub fn json_schema() -> Value {
    let mut schema = table(&FILE);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("testbed topology");
    schema["required"] = json!(["hosts", "links"]);
    schema
}

fn table(keys: &Keys) -> Value {
    let properties: Map<String, Value> =
        keys.keys.iter().map(|key| (key.name.to_owned(), property(key))).collect();
    let mut table = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if keys.keys.iter().any(|key| matches!(key.shape, Shape::Endpoints)) {
        table["required"] = json!(["endpoints"]);
    }
    table
}

fn property(key: &Key) -> Value {
    let mut property = match &key.shape {
        Shape::Text => json!({ "type": "string" }),
        Shape::Quantity(pattern) => json!({ "type": "string", "pattern": pattern }),
        Shape::Probability => json!({ "anyOf": [
            { "type": "number", "minimum": 0, "maximum": 1 },
            { "type": "string", "pattern": r"^[0-9.]+ *%?$" },
        ]}),
        Shape::Integer(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Shape::OneOf(words) => json!({ "enum": words }),
        Shape::Endpoints => json!({
            "type": "array", "minItems": 2, "maxItems": 2,
            "items": { "type": "string", "pattern": "^[^:]+:[^:]+$" },
        }),
        Shape::Settings => json!({
            "type": "object", "propertyNames": { "pattern": r"^net\." },
            "additionalProperties": { "type": ["string", "integer"] },
        }),
        Shape::Table(keys) => table(keys),
        Shape::Named(keys) => json!({ "type": "object", "additionalProperties": table(keys) }),
        Shape::List(keys) => json!({ "type": "array", "items": table(keys) }),
    };
    property["description"] = json!(key.doc);
    property
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_knows_every_key_and_no_other() {
        let schema = json_schema();
        let link = &schema["properties"]["links"]["items"];
        assert_eq!(link["additionalProperties"], json!(false));
        assert_eq!(link["required"], json!(["endpoints"]));
        for key in LINK.keys {
            assert!(link["properties"][key.name]["description"].is_string(), "{}", key.name);
        }
        assert_eq!(link["properties"]["a_to_b"]["properties"]["delay"]["type"], "string");
    }
}
