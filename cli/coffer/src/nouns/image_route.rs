//! The way to an image.

use cofferdam_client::RouteReport;

use crate::{
    args::{Command, Positional, Times},
    cx::{Cx, line},
    failure::Failure,
    nouns::login::{NO_DOCKER, USER, dockers},
};

/// `coffer image explain-route`.
pub static EXPLAIN: Command = Command {
    path: &["image", "explain-route"],
    about: "say which hosts would be asked for an image, and how",
    positionals: &[Positional { name: "REFERENCE", times: Times::Once }],
    flags: &[USER, NO_DOCKER],
    notes: "Nobody is asked. The daemon's table of hosts says it, and what \"coffer login\" has stored, as a \"coffer image pull\" with the same\n\
            flags would use them. Secrets aren't shown.",
    failure: 1,
    action: |cx| Box::pin(explain(cx)),
};

async fn explain(cx: Cx) -> Result<i32, Failure> {
    let name = cx.args.at(0);
    // What a call has comes before what is stored, for the registry itself.
    let own = match cx.args.value("user") {
        Some(_) => Some("call"),
        None => dockers(&cx.args, name)?.map(|_| "docker-config"),
    };
    let mut report = cx.namespace().await?.images().explain_route(name).await?;
    for step in report.steps.iter_mut().filter(|step| step.own) {
        if let Some(own) = own {
            step.credential = own.into();
        }
    }
    if cx.json {
        cx.document(&report)?
    } else {
        line(&text(&report))?
    }
    Ok(0)
}

fn text(report: &RouteReport) -> String {
    let clean = |text: &str| text.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
    let mut lines = vec![report.reference.clone()];
    for (n, step) in report.steps.iter().enumerate() {
        lines.push(format!("{}. {}: {}", n + 1, step.host, step.when));
        lines.push(format!("   may: {}", step.capabilities.join(", ")));
        if !step.source.is_empty() {
            lines.push(format!("   says: {}", step.source));
        }
        lines.push(format!(
            "   is shown: {}",
            match step.credential.as_str() {
                "none" => "nothing",
                "stored" => "what is stored for it (stored)",
                "file" => "a header of that file (file)",
                "call" => "the call's user and secret (call)",
                "docker-config" => "what docker's config file has for it (docker-config)",
                other => other,
            }
        ));
        lines.push(format!(
            "   is believed: {}",
            match (step.host.starts_with("https:"), step.unverified) {
                (false, _) => "whoever answers: it is plain http".to_owned(),
                (true, true) => "whoever answers: its certificate is not verified".to_owned(),
                (true, false) if step.tls.is_empty() => "by TLS, as the host trusts".to_owned(),
                (true, false) => format!("by TLS, as the host trusts, and with {}", step.tls.join(", ")),
            }
        ));
        if !step.proxy.is_empty() {
            lines.push(format!("   by the proxy: {}", step.proxy));
        }
    }
    if !report.trust.is_empty() {
        lines.push(format!("trust: {}", report.trust));
    }
    lines.extend(report.files.iter().map(|file| format!("looked at: {file}")));
    lines.iter().map(|line| clean(line)).collect::<Vec<_>>().join("\n")
}
