//! Events.

use std::cell::Cell;

use cofferdam_client::{Client, Gap};
use cofferdam_types::Event;
use serde_json::json;

use crate::{
    args::{Command, many, value},
    cx::{Cx, line, say},
    failure::Failure,
    units::number,
};

/// `coffer events`.
pub static EVENTS: Command = Command {
    path: &["events"],
    about: "show what happens",
    positionals: &[],
    flags: &[
        value("after", None, "SEQUENCE", "begin behind that event of the journal; 0 is its beginning"),
        many("filter", None, "FILTER", "such as topic==\"/tasks/exit\" or event.container_id==NAME"),
    ],
    notes: "A line for each: sequence, time, namespace, topic, and its fields as JSON. With -o json: a JSON object on each\n\
            line. Where events were dropped because coffer was too slow, a line says which: on standard error, or with\n\
            -o json {\"gap\": {\"from\", \"to\"}}.",
    failure: 1,
    action: |cx| Box::pin(events(cx)),
};

async fn events(cx: Cx) -> Result<i32, Failure> {
    let client = cx.client().await?;
    let after = match cx.args.read("after", number)? {
        Some(after) => after,
        // A number instead of "from now on": behind it nothing is missed, whenever the connection is made anew.
        None => client.namespace(&cx.namespace).events().last().await?,
    };
    let seen = Cell::new(after);
    let follow = async |client: Client| {
        let events = client.namespace(&cx.namespace).events();
        let mut subscription = events.subscribe(seen.get(), cx.args.all("filter"));
        loop {
            let next = subscription.next().await?;
            seen.set(next.as_ref().map_or_else(|gap| gap.to, |event| event.sequence));
            if let Err(failure) = show(next, cx.json) {
                return Ok(failure);
            }
        }
    };
    Err(client.persist(follow).await?)
}

fn show(next: Result<Event, Gap>, json: bool) -> Result<(), Failure> {
    match (next, json) {
        (Ok(event), false) => {
            let time = event.timestamp.to_rfc3339();
            line(&format!("{} {time} {} {} {}", event.sequence, event.namespace, event.topic, event.payload))
        }
        (Ok(event), true) => {
            let event = json!({
                "sequence": event.sequence,
                "time": event.timestamp.to_rfc3339(),
                "namespace": event.namespace,
                "topic": event.topic,
                "event": event.payload,
            });
            line(&event.to_string())
        }
        (Err(gap), false) => {
            say(&format!("events {} to {} were dropped", gap.from, gap.to));
            Ok(())
        }
        (Err(gap), true) => line(&json!({ "gap": { "from": gap.from, "to": gap.to } }).to_string()),
    }
}
