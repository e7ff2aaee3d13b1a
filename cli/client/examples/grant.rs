//! Hands out the log of a container, looks at what its holder can do, and takes it back.
//!
//!     cargo run --example grant -- /run/cofferdam/cofferd.sock default web
//!
//! The tests run it too (`integration/tests/lifecycle/examples.rs`).

use std::{cell::RefCell, path::Path, rc::Rc};

use cofferdam_client::{Client, Code, Error, GrantOptions, Result};

/// The container's log as the holder of a grant reads it, and the codes of what is refused to him: to end the container,
/// another container, and the log once the grant was taken back.
pub async fn example(socket: &Path, namespace: &str, container: &str) -> Result<(String, [Code; 3])> {
    let operator = Client::connect_as(socket, "example").await?;
    let grant = operator.namespace(namespace).grants().create(&GrantOptions {
        label: "for an example".into(),
        facets: vec!["logs".into()],
        containers: vec![container.into()],
        ..GrantOptions::default()
    });
    let token = grant.save(None).await?;

    // Whoever has the token is somebody else from here on: a connection that has the grant and nothing else.
    let holder = Client::restore(socket, &token).await?;
    let theirs = holder.namespace("").containers();
    let web = theirs.get(container);
    let text = Rc::new(RefCell::new(Vec::new()));
    let take = {
        let text = text.clone();
        move |record: cofferdam_client::LogRecord<'_>| {
            text.borrow_mut().extend_from_slice(record.bytes);
            Ok(())
        }
    };
    web.logs(false, take).await?;

    // An error has a code to act on, and a sentence to show.
    let removal = refusal(web.remove(true).await)?;
    let other = refusal(theirs.get("another").logs(false, |_| Ok(())).await)?;
    grant.revoke().await?;
    let later = refusal(web.logs(false, |_| Ok(())).await)?;

    let text = String::from_utf8_lossy(&text.borrow()).into_owned();
    Ok((text, [removal, other, later]))
}

fn refusal(answer: Result<()>) -> Result<Code> {
    match answer {
        Err(error) if matches!(error.code, Code::Denied | Code::NotFound | Code::Revoked) => {
            println!("{error}");
            Ok(error.code)
        }
        Err(error) => Err(error),
        Ok(()) => Err(Error::internal("grant", "", "lets through what it should not")),
    }
}

#[allow(dead_code, reason = "a test has it as a module")]
fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, namespace, container] = &arguments[..] else {
        return Err(Error::invalid("arguments", "", "give the daemon's socket, a namespace and a container"));
    };
    let (text, codes) = cofferdam_client::block_on(example(socket.as_ref(), namespace, container))??;
    println!("{text}{codes:?}");
    Ok(())
}
