//! Events: what happened, in order.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::{Error, Id, Namespace, Result, Timestamp};

/// One event. `payload` is a JSON object: filters reach its fields as `event.<field>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Position in the journal; grows by one. 0 until the journal has given it one.
    pub sequence: u64,
    /// When it happened.
    pub timestamp: Timestamp,
    /// Where.
    pub namespace: Namespace,
    /// What, such as `/tasks/exit` (the topics of the reference, section 14.2).
    pub topic: String,
    /// The details.
    #[serde(serialize_with = "whole")]
    pub payload: Value,
}

impl Event {
    /// An event that happens now. The topic is one of ours and needs no check.
    pub fn new(namespace: &Namespace, topic: &str, payload: Value) -> Event {
        Event {
            sequence: 0,
            timestamp: Timestamp::now(),
            namespace: namespace.clone(),
            topic: topic.to_owned(),
            payload,
        }
    }

    /// Checks a topic that a client gave: `/` and then identifiers between slashes.
    pub fn validate_topic(topic: &str) -> Result<()> {
        let bad = |why: &str| Error::invalid("topic", topic, format!("{why}; a topic looks like /tasks/exit"));
        let rest = topic.strip_prefix('/').ok_or_else(|| bad("does not start with '/'"))?;
        for part in rest.split('/') {
            Id::new(part).map_err(|e| bad(&e.message))?;
        }
        Ok(())
    }
}

/// JSON's null is no value. Serde calls it a unit by itself, which CBOR has not: it would come back as an empty list.
fn whole<S: Serializer>(value: &Value, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    struct Whole<'v>(&'v Value);
    impl Serialize for Whole<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            whole(self.0, serializer)
        }
    }
    match value {
        Value::Null => serializer.serialize_none(),
        Value::Array(values) => serializer.collect_seq(values.iter().map(Whole)),
        Value::Object(fields) => serializer.collect_map(fields.iter().map(|(key, value)| (key, Whole(value)))),
        other => other.serialize(serializer),
    }
}
