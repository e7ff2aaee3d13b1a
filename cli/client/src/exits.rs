//! The end of a container that is gone, among the events of its id.

use cofferdam_types::{Error, Event, Result, Timestamp};

use crate::process::Exit;

const CREATED: &str = "/containers/create";

/// Which events a [`Search`] is to be shown.
pub(crate) fn filters(id: &str) -> [String; 2] {
    [
        format!("topic==\"{CREATED}\",event.id==\"{id}\""),
        format!("topic==\"/tasks/exit\",event.container_id==\"{id}\",event.id==\"{id}\""),
    ]
}

/// Looks for the end of a run that began at a time. What counts is the time of the container's creation, which comes just
/// behind that: the clock may have been set back before the end.
pub(crate) struct Search {
    began: Timestamp,
    /// Whether the container that the events speak of is the run's, if its creation was seen.
    ours: Option<bool>,
    /// The last end that may be another's by its time.
    other: Option<Exit>,
}

impl Search {
    pub fn new(began: Timestamp) -> Search {
        Search { began, ours: None, other: None }
    }

    /// Takes in the next event; gives the end, if that is it.
    pub fn take(&mut self, event: &Event) -> Result<Option<Exit>> {
        let since = event.timestamp >= self.began;
        if event.topic == CREATED {
            (self.ours, self.other) = (Some(since), None);
            return Ok(None);
        }
        let number = |field: &str| event.payload.get(field).and_then(serde_json::Value::as_u64);
        let status = number("exit_status").and_then(|status| u32::try_from(status).ok());
        let status = status.ok_or_else(|| Error::internal("event", event.sequence, "has no exit status"))?;
        let reason = event.payload.get("reason").and_then(|reason| reason.as_str()).unwrap_or_default();
        let at = event.payload.get("exited_at").and_then(|at| at.as_str()).and_then(Timestamp::parse_rfc3339);
        let exit = Exit { status, at: at.unwrap_or(event.timestamp), reason: reason.to_owned() };
        if self.ours.unwrap_or(since) {
            return Ok(Some(exit));
        }
        self.other = Some(exit);
        Ok(None)
    }

    /// For who knows that the run's container was there and is gone: there is no later end than its own.
    pub fn last(self) -> Option<Exit> {
        self.other
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Namespace;

    use super::*;

    fn event(topic: &str, time: u64, status: u32) -> Event {
        let payload = serde_json::json!({ "id": "box", "container_id": "box", "exit_status": status });
        let event = Event::new(&Namespace::default_namespace(), topic, payload);
        Event { timestamp: Timestamp(time), ..event }
    }

    /// The status that is found at once, and the one that is left.
    fn found(events: &[(&str, u64, u32)]) -> (Option<u32>, Option<u32>) {
        let mut search = Search::new(Timestamp(100));
        for (topic, time, status) in events {
            if let Some(exit) = search.take(&event(topic, *time, *status)).unwrap() {
                return (Some(exit.status), None);
            }
        }
        (None, search.last().map(|exit| exit.status))
    }

    #[test]
    fn r8_an_end_is_found_though_the_clock_was_set_back() {
        let (create, exit) = (CREATED, "/tasks/exit");
        let before = [(create, 50, 0), (exit, 60, 1)];
        let then = |events: &[(&'static str, u64, u32)]| found(&[&before[..], events].concat());
        assert_eq!(then(&[(create, 101, 0), (exit, 200, 7)]), (Some(7), None));
        assert_eq!(then(&[(create, 101, 0), (exit, 3, 7)]), (Some(7), None), "set back while it ran");
        assert_eq!(found(&[(exit, 200, 7)]), (Some(7), None), "its creation is too old for the journal");
        assert_eq!(found(&[(create, 50, 0), (exit, 200, 1)]), (None, Some(1)), "set back before the run began");
        assert_eq!(then(&[(create, 20, 0), (exit, 30, 7)]), (None, Some(7)), "set back before its creation");
        assert_eq!(then(&[]), (None, Some(1)), "which is another's, unless the run's own was seen");
        assert_eq!(then(&[(create, 20, 0)]), (None, None), "of the last of that name there is no end");
    }

    #[test]
    fn an_end_without_a_status_is_an_error() {
        let mut event = event("/tasks/exit", 200, 0);
        event.payload = serde_json::json!({});
        assert!(Search::new(Timestamp(1)).take(&event).is_err());
    }
}
