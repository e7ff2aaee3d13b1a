//! Follows the log of a container to its end, by the token of a grant, whatever becomes of the daemon meanwhile.
//!
//!     cargo run --example follow -- /run/cofferdam/cofferd.sock TOKEN web
//!
//! The tests run it too (`integration/tests/lifecycle/examples.rs`).

use std::{
    cell::{Cell, RefCell},
    path::Path,
    rc::Rc,
};

use cofferdam_client::{Client, Error, LogOptions, Result};

/// Gives what the container writes to `take`, each byte once. Returns when its task has ended.
pub async fn example(
    socket: &Path,
    token: &str,
    container: &str,
    take: impl FnMut(&[u8]) -> Result<()> + 'static,
) -> Result<()> {
    // What is saved is the token. The connection is made anew by it, and the handle is found again there.
    let holder = Client::restore(socket, token).await?.reconnecting();
    let id = container.to_owned();
    let web = holder.sturdy(move |client| client.namespace("").containers().get(&id));

    let (place, take) = (Rc::new(Cell::new(None)), Rc::new(RefCell::new(take)));
    let follow = async |web: cofferdam_client::Container| {
        // Each record names the place behind it: the next connection goes on from there.
        let options = LogOptions { follow: true, after: place.get(), ..LogOptions::default() };
        let (place, take) = (place.clone(), take.clone());
        web.logs_with(&options, move |record| {
            (take.borrow_mut())(record.bytes)?;
            place.set(Some(record.position));
            Ok(())
        })
        .await
    };
    web.ask(follow).await
}

#[allow(dead_code, reason = "a test has it as a module")]
fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, token, container] = &arguments[..] else {
        return Err(Error::invalid("arguments", "", "give the daemon's socket, a token and a container"));
    };
    let print = |bytes: &[u8]| {
        print!("{}", String::from_utf8_lossy(bytes));
        Ok(())
    };
    cofferdam_client::block_on(example(socket.as_ref(), token, container, print))?
}
