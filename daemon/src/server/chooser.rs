//! A client that chooses what of an image is fetched: its answers, brought to the job that asks.

use std::time::Duration;

use cofferdam_transfer::{Questions, Verdict};
use cofferdam_types::{Error, Result};
use cofferdam_wire::{
    convert::set_descriptor,
    error::from_rpc,
    image_capnp::{self as wire, chooser},
};

/// The job gives up first, and says so; then the call isn't kept either.
const PATIENCE: Duration = Duration::from_secs(11);

/// Asks the client until there are no more questions. One at a time: what a client leaves unanswered is one call.
pub async fn ask(mut questions: Questions, client: chooser::Client) {
    while let Some(question) = questions.next().await {
        let mut request = client.look_request();
        set_descriptor(request.get().init_descriptor(), &question.descriptor);
        request.get().set_depth(question.depth);
        let answer = tokio::time::timeout(PATIENCE, request.send().promise).await;
        let Ok(answer) = answer else { return };
        question.answer(verdict(answer));
    }
}

fn verdict(answer: capnp::Result<capnp::capability::Response<chooser::look_results::Owned>>) -> Result<Verdict> {
    let refused = |error| {
        let error: Error = from_rpc(error);
        error.context("the client that chooses what is fetched")
    };
    let answer = answer.map_err(refused)?;
    let verdict = answer.get().and_then(|answer| Ok(answer.get_verdict()?)).map_err(refused)?;
    Ok(match verdict {
        wire::Verdict::Take => Verdict::Take,
        wire::Verdict::Skip => Verdict::Skip,
        wire::Verdict::Stop => Verdict::Stop,
    })
}
