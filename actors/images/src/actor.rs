//! The mailbox: hands the reading of documents to the pool.

use actix::{Actor, Context, Handler, Message, ResponseFuture};
use cofferdam_content::Content;
use cofferdam_kernel::{Pool, hosted};
use cofferdam_metadata::records::content;
use cofferdam_types::{Descriptor, Namespace, Result, Timestamp};

use crate::{
    Own,
    json::MAX_DOCUMENT,
    messages::{CheckContent, Decide, Documents, Frees, Platforms, Resolve, Size, States},
    prune, report, resolve,
};

/// The actor that reads documents.
pub struct ImagesActor {
    pub(crate) content: Content,
    pub(crate) pool: Pool,
}

hosted!(ImagesActor);

impl Actor for ImagesActor {
    type Context = Context<ImagesActor>;
}

/// The documents of a namespace, as far as they are an image's own.
struct Blobs<'a> {
    content: &'a Content,
    ns: &'a Namespace,
    own: &'a Own,
}

impl resolve::Blobs for Blobs<'_> {
    fn read(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if !self.own.is_all() && self.own.find(self.content, self.ns, &descriptor.digest)?.is_none() {
            return Err(content::missing(&descriptor.digest));
        }
        self.content.read_verified(self.ns, &descriptor.digest, MAX_DOCUMENT)
    }

    fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        let found = self.own.find(self.content, self.ns, &descriptor.digest)?;
        // Of another size than is said, it is not what the image needs.
        let fits = found.is_some_and(|link| link.size == descriptor.size);
        Ok(fits && self.content.is_whole(self.ns, &descriptor.digest)?)
    }
}

macro_rules! handle {
    ($($message:ty, $m:ident => $question:expr, $own:expr, |$blobs:ident| $answer:expr);* $(;)?) => {$(
        impl Handler<$message> for ImagesActor {
            type Result = ResponseFuture<<$message as Message>::Result>;
            fn handle(&mut self, $m: $message, _ctx: &mut Context<ImagesActor>) -> Self::Result {
                let (content, pool) = (self.content.clone(), self.pool.clone());
                Box::pin(async move {
                    pool.run(move || {
                        let $blobs = &Blobs { content: &content, ns: &$question, own: &$own };
                        $answer
                    })
                    .await
                })
            }
        }
    )*};
}

handle! {
    Resolve, m => m.namespace, m.own, |blobs| resolve::resolve(blobs, &m.target, &m.platform);
    Size, m => m.0.namespace, m.0.own, |blobs| resolve::size(blobs, &m.0.target, &m.0.platform);
    Platforms, m => m.namespace, Own::default(), |blobs| resolve::platforms(blobs, &m.target);
    Documents, m => m.namespace, Own::default(), |blobs| resolve::documents(blobs, &m.target);
    States, m => m.namespace, m.own, |blobs| report::states(blobs, &m.target);
    CheckContent, m => m.0.namespace, m.0.own, |blobs| resolve::check(blobs, &m.0.target, &m.0.platform);
}

impl Handler<Decide> for ImagesActor {
    type Result = ResponseFuture<<Decide as Message>::Result>;

    fn handle(&mut self, m: Decide, _ctx: &mut Context<ImagesActor>) -> Self::Result {
        let pool = self.pool.clone();
        let look = move || prune::decide(&m.view, &m.namespace, m.options, Timestamp::now(), &*m.chosen);
        Box::pin(async move { pool.run(look).await })
    }
}

impl Handler<Frees> for ImagesActor {
    type Result = ResponseFuture<<Frees as Message>::Result>;

    fn handle(&mut self, m: Frees, _ctx: &mut Context<ImagesActor>) -> Self::Result {
        let pool = self.pool.clone();
        Box::pin(async move { pool.run(move || prune::frees(&m.view, &m.namespace, &m.names)).await })
    }
}
