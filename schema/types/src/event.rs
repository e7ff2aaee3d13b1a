//! Events: what happened, in order.

use serde::{Deserialize, Serialize};

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
    pub payload: serde_json::Value,
}

impl Event {
    /// An event that happens now. The topic is one of ours and needs no check.
    pub fn new(namespace: &Namespace, topic: &str, payload: serde_json::Value) -> Event {
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
