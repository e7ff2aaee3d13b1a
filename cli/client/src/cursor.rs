//! Lists of the daemon's, fetched block by block.

use std::{collections::VecDeque, rc::Rc};

use capnp::{
    capability::{FromTypelessPipeline, Request},
    struct_list,
    traits::{Owned, OwnedStruct, Pipelined},
};
use cofferdam_types::Result;
use cofferdam_wire::{
    common_capnp::descriptor,
    container_capnp::{container_cursor, container_info, network_cursor, network_info},
    content_capnp::{blob_cursor, blob_info, ingest_cursor, ingest_info},
    credential_capnp::{credential_cursor, credential_info},
    error::malformed,
    gate_capnp::namespace_cursor,
    gc_capnp::{byte_owner, byte_owner_cursor, collected, collected_cursor},
    grant_capnp::{grant_cursor, grant_info},
    image_capnp::{descriptor_cursor, image_cursor, image_info, pruned_image, pruned_image_cursor},
    job_capnp::{job_cursor, job_info},
    lease_capnp::{lease_cursor, lease_info, resource, resource_cursor},
    namespace_capnp::namespace_info,
    snapshot_capnp::{change, change_cursor, snapshot_cursor, snapshot_info},
    system_capnp::{finding, finding_cursor, shim_cursor, shim_info},
};

use crate::{
    call::{Reply, reply},
    connect::Link,
};

/// How many items a block of a list has: the most that the daemon gives.
pub(crate) const BLOCK: u16 = 100;

/// What the places in lists have in common: the schema says it of each by itself.
pub(crate) trait Place: 'static {
    type Item: OwnedStruct;
    type Asked;
    type Answer: Owned + Pipelined<Pipeline: FromTypelessPipeline> + Unpin + 'static;

    /// Asks for the next block.
    fn ask(&self) -> Request<Self::Asked, Self::Answer>;

    /// What it has, and whether it is the last.
    fn block<'a>(
        answer: <Self::Answer as Owned>::Reader<'a>,
    ) -> capnp::Result<(struct_list::Reader<'a, Self::Item>, bool)>;
}

macro_rules! places {
    ($($place:ident of $item:ident,)*) => {$(
        impl Place for $place::Client {
            type Item = $item::Owned;
            type Asked = $place::next_params::Owned;
            type Answer = $place::next_results::Owned;

            fn ask(&self) -> Request<Self::Asked, Self::Answer> {
                let mut request = self.next_request();
                request.get().set_max(BLOCK);
                request
            }

            fn block<'a>(
                answer: <Self::Answer as Owned>::Reader<'a>,
            ) -> capnp::Result<(struct_list::Reader<'a, Self::Item>, bool)> {
                Ok((answer.get_items()?, answer.get_end()))
            }
        }
    )*};
}

places! {
    blob_cursor of blob_info,
    byte_owner_cursor of byte_owner,
    change_cursor of change,
    collected_cursor of collected,
    container_cursor of container_info,
    credential_cursor of credential_info,
    descriptor_cursor of descriptor,
    finding_cursor of finding,
    grant_cursor of grant_info,
    image_cursor of image_info,
    ingest_cursor of ingest_info,
    job_cursor of job_info,
    lease_cursor of lease_info,
    namespace_cursor of namespace_info,
    network_cursor of network_info,
    pruned_image_cursor of pruned_image,
    resource_cursor of resource,
    shim_cursor of shim_info,
    snapshot_cursor of snapshot_info,
}

/// A list, fetched block by block.
pub struct Cursor<T> {
    fetch: Box<dyn Fn() -> Reply<(Vec<T>, bool)>>,
    ready: VecDeque<T>,
    /// Whoever has read one block whole reads on: then the one after the next is on its way too. What is here when a caller
    /// of [`Cursor::next`] gives up is the next one's.
    coming: VecDeque<Reply<(Vec<T>, bool)>>,
    ahead: usize,
    /// How many may be on their way at once.
    most: usize,
    end: bool,
}

impl<T: 'static> Cursor<T> {
    /// From a place in a list, each item of which is read by `item`.
    pub(crate) fn of<P: Place>(
        link: &Rc<Link>,
        place: P,
        item: impl for<'a> Fn(<P::Item as OwnedStruct>::Reader<'a>) -> Result<T> + Copy + 'static,
    ) -> Cursor<T> {
        let link = link.clone();
        let fetch = move || {
            reply(&link, place.ask(), move |answer| {
                let (items, end) = P::block(answer).map_err(malformed)?;
                Ok((items.iter().map(item).collect::<Result<_>>()?, end))
            })
        };
        Cursor {
            fetch: Box::new(fetch),
            ready: VecDeque::new(),
            coming: VecDeque::new(),
            ahead: 1,
            most: 1,
            end: false,
        }
    }

    /// The same over what lies there: the daemon has each block at hand, and gives them in the order of the calls.
    pub(crate) fn over_records<P: Place>(
        link: &Rc<Link>,
        place: P,
        item: impl for<'a> Fn(<P::Item as OwnedStruct>::Reader<'a>) -> Result<T> + Copy + 'static,
    ) -> Cursor<T> {
        Cursor { most: 2, ..Cursor::of(link, place, item) }
    }

    /// The next item; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<T>> {
        while self.ready.is_empty() && !self.end {
            while self.coming.len() < self.ahead {
                self.coming.push_back((self.fetch)());
            }
            let Some(reply) = self.coming.front_mut() else { break };
            let answer = reply.await;
            self.coming.pop_front();
            let (items, end) = answer?;
            self.ready.extend(items);
            (self.ahead, self.end) = (self.most, end);
        }
        Ok(self.ready.pop_front())
    }

    /// Everything that is left. Memory grows with the list: take [`Cursor::next`] where it may be long.
    pub async fn all(mut self) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while let Some(item) = self.next().await? {
            items.push(item);
            items.extend(self.ready.drain(..));
        }
        Ok(items)
    }
}
