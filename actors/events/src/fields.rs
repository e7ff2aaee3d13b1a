//! What filters can ask of an event (reference, section 4.5).

use std::borrow::Cow;

use cofferdam_types::Event;
use serde_json::Value;

/// The field of a path: `namespace`, `topic`, or `event.` and a field of the payload. Texts and booleans can be asked
/// for; numbers and lists count as absent.
pub(crate) fn field<'e>(event: &'e Event, path: &[&str]) -> Option<Cow<'e, str>> {
    match path {
        ["namespace"] => Some(Cow::Borrowed(event.namespace.as_str())),
        ["topic"] => Some(Cow::Borrowed(event.topic.as_str())),
        ["event", rest @ ..] => payload(&event.payload, rest),
        _ => None,
    }
}

fn payload<'e>(value: &'e Value, path: &[&str]) -> Option<Cow<'e, str>> {
    match (value, path) {
        (Value::String(text), []) => Some(Cow::Borrowed(text)),
        (Value::Bool(value), []) => Some(Cow::Borrowed(if *value { "true" } else { "false" })),
        (Value::Object(fields), [first, rest @ ..]) => {
            let nested = fields.get(*first).and_then(|value| payload(value, rest));
            // The keys of a map of labels have dots of their own.
            nested.or_else(|| fields.get(path.join(".").as_str()).and_then(|value| payload(value, &[])))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Namespace;

    use super::*;

    #[test]
    fn paths() {
        let payload = serde_json::json!({
            "id": "redis", "pid": 7, "on": true, "list": ["x"],
            "runtime": {"name": "native"}, "labels": {"a.b/c": "x", "plain": "y"},
        });
        let event = Event::new(&Namespace::default_namespace(), "/tasks/start", payload);
        for (path, wanted) in [
            (&["topic"][..], Some("/tasks/start")),
            (&["namespace"], Some("default")),
            (&["event", "id"], Some("redis")),
            (&["event", "on"], Some("true")),
            (&["event", "runtime", "name"], Some("native")),
            (&["event", "labels", "a", "b/c"], Some("x")),
            (&["event", "labels", "plain"], Some("y")),
            (&["event", "pid"], None),
            (&["event", "list"], None),
            (&["event", "runtime"], None),
            (&["event", "id", "more"], None),
            (&["event"], None),
            (&["timestamp"], None),
        ] {
            assert_eq!(field(&event, path).as_deref(), wanted, "{path:?}");
        }
    }
}
