//! What differs between two grants.

use std::collections::BTreeSet;

use cofferdam_client::GrantInfo;
use serde_json::{Map, Value, json};

use crate::{
    args::{Command, Positional, Times},
    cx::{Cx, line},
    failure::Failure,
};

/// `coffer grant diff`.
pub static DIFF: Command = Command {
    path: &["grant", "diff"],
    about: "show what differs between two grants",
    positionals: &[Positional { name: "GRANT", times: Times::Once }, Positional { name: "OTHER", times: Times::Once }],
    flags: &[],
    notes: "A line for each method that only one of them leaves (- GRANT, + OTHER), and one for each condition that differs. With\n\
            -o json an object: removed, added, changed. What they are called, and how they are held, is not compared.\n\
            exit code: 0 if nothing differs, 1 if something does",
    failure: 1,
    action: |cx| Box::pin(diff(cx)),
};

/// What they leave, but for what they are called.
fn conditions(info: &GrantInfo) -> Result<Map<String, Value>, Failure> {
    let options = serde_json::to_value(&info.options);
    let Ok(Value::Object(mut all)) = options else {
        return Err(Failure::usage("what the daemon says of a grant can't be compared"));
    };
    // What is asked for as rights and facets is told by what is left.
    all.remove("label");
    all.insert("rights".to_owned(), json!(info.rights));
    all.insert("namespace".to_owned(), json!(info.namespace));
    // Without it one that is used up looks as one without a bound.
    all.insert("usedUp".to_owned(), json!(info.used_up));
    Ok(all)
}

async fn diff(cx: Cx) -> Result<i32, Failure> {
    let grants = cx.namespace().await?.grants();
    let (one, other) = (grants.get(cx.args.at(0)), grants.get(cx.args.at(1)));
    let methods = [one.explain().await?, other.explain().await?].map(BTreeSet::from_iter);
    let [before, after] = [conditions(&one.info().await?)?, conditions(&other.info().await?)?];
    let removed: Vec<_> = methods[0].difference(&methods[1]).collect();
    let added: Vec<_> = methods[1].difference(&methods[0]).collect();
    let changed: Map<String, Value> = before
        .iter()
        .filter_map(|(name, value)| {
            let other = after.get(name).unwrap_or(&Value::Null);
            (value != other).then(|| (name.clone(), json!([value, other])))
        })
        .collect();
    if cx.json {
        cx.document(&json!({ "removed": removed, "added": added, "changed": changed }))?;
    } else {
        removed.iter().try_for_each(|method| line(&format!("- {method}")))?;
        added.iter().try_for_each(|method| line(&format!("+ {method}")))?;
        changed.iter().try_for_each(|(name, both)| line(&format!("{name}: {} -> {}", both[0], both[1])))?;
    }
    Ok(i32::from(!(removed.is_empty() && added.is_empty() && changed.is_empty())))
}
