//! Messages that lie about how deep, how large or how many they are (W3, W6 of SECURITY.md), to a connection as the daemon has it:
//! an answer or an end, and nothing that is read for ever or taken for less than it is.

// All of this is test code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{rc::Rc, time::Duration};

use capnp::{
    message::{Builder, HeapAllocator, ReaderOptions},
    serialize, text_list,
};
use capnp_rpc::{RpcSystem, rpc_capnp::message, rpc_twoparty_capnp::Side};
use cofferdam_wire::{
    connect::{MESSAGE, network},
    gate_capnp::gate,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

struct Served;

impl gate::Server for Served {
    async fn hello(self: Rc<Self>, params: gate::HelloParams, mut results: gate::HelloResults) -> capnp::Result<()> {
        results.get().set_version(params.get()?.get_name()?.len() as u32);
        Ok(())
    }
}

fn said(fill: impl FnOnce(message::Builder<'_>)) -> Vec<u8> {
    // In one segment, so that a pointer is where it is looked for.
    let mut built = Builder::new(HeapAllocator::new().first_segment_words(MESSAGE as u32 / 8));
    fill(built.init_root());
    serialize::write_message_to_words(&built)
}

fn bootstrap(question: u32) -> Vec<u8> {
    said(|root| root.init_bootstrap().set_question_id(question))
}

/// A question that no daemon knows: what is in it comes back, and is read for that.
fn echoed(fill: impl FnOnce(capnp::any_pointer::Builder<'_>)) -> Vec<u8> {
    said(|root| fill(root.init_provide().init_recipient()))
}

/// What came back of these bytes, whole messages and no others, until question 1000 was answered; none if the connection ended
/// before that.
fn answers(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let talk = async {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (network, _) = network(ours, Side::Server, MESSAGE);
        let served: gate::Client = capnp_rpc::new_client(Served);
        let system = tokio::task::spawn_local(RpcSystem::new(Box::new(network), Some(served.client)));
        // It may be cut while this is written.
        let _ = theirs.write_all(&[bytes, &bootstrap(1000)].concat()).await;
        let (mut all, mut came) = (Vec::new(), Vec::new());
        loop {
            let mut rest = &came[..];
            loop {
                let mut behind = rest;
                let Ok(answer) = serialize::read_message_from_flat_slice(&mut behind, ReaderOptions::new()) else {
                    break;
                };
                let root: message::Reader<'_> = answer.get_root().unwrap();
                let last = matches!(root.which(), Ok(message::Return(Ok(found))) if found.get_answer_id() == 1000);
                all.push(rest[..rest.len() - behind.len()].to_vec());
                rest = behind;
                if last {
                    return Some(all);
                }
            }
            came = rest.to_vec();
            if theirs.read_buf(&mut came).await.unwrap_or(0) == 0 {
                let _ = system.await;
                return None;
            }
        }
    };
    let talk = async { tokio::time::timeout(Duration::from_secs(20), talk).await.expect("an answer or an end") };
    tokio::task::LocalSet::new().block_on(&runtime, talk)
}

#[test]
fn w3_what_is_deeper_than_a_message_may_be_ends_its_connection() {
    let deep = |levels: u32| {
        echoed(|recipient| {
            let mut at: message::Builder<'_> = recipient.init_as();
            for _ in 0..levels {
                at = at.init_unimplemented();
            }
        })
    };
    assert!(answers(&deep(50)).is_some());
    // As deep as a message has room for: who followed it would have no stack left.
    for levels in [65, 1000, 60_000] {
        let message = deep(levels);
        assert!(message.len() < MESSAGE, "{}", message.len());
        assert!(answers(&message).is_none(), "{levels} levels");
    }
}

#[test]
fn w3_what_is_in_a_message_once_is_not_read_without_end() {
    // A list of texts that are all one and the same: so many bytes each time that one is read.
    let (text, room) = ("x".repeat(8000), MESSAGE / 8000);
    let many = |texts: u32| {
        let mut bytes = echoed(|recipient| {
            let mut list: text_list::Builder<'_> = recipient.initn_as(texts);
            list.set(0, &text[..]);
        });
        let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap());
        let is_text = |word: &u64| word & 3 == 1 && word >> 32 == ((text.len() as u64 + 1) << 3 | 2);
        let first = (0..bytes.len() / 8).find(|at| is_text(&word(&bytes, *at))).expect("the first text");
        for n in 1..u64::from(texts) {
            let pointer = word(&bytes, first) - (n << 2);
            let at = (first + n as usize) * 8;
            bytes[at..at + 8].copy_from_slice(&pointer.to_le_bytes());
        }
        bytes
    };
    let some = many(room as u32 / 2);
    assert!(some.len() < 10_000);
    let came = answers(&some).expect("it is no more than a message may have");
    assert!(came.iter().any(|answer| answer.len() > MESSAGE / 3), "it came back as what it says it is");
    assert!(answers(&many(room as u32 * 2)).is_none());
}

#[test]
fn w6_lengths_at_the_edge_of_a_word_are_what_they_say_or_the_end() {
    // Of a text: all of it arrives.
    for length in [(1 << 16) - 1, 1 << 16, (1 << 16) + 1] {
        let hello = said(|root| {
            let mut call = root.init_call();
            call.set_question_id(1);
            call.set_interface_id(<gate::Client as capnp::traits::HasTypeId>::TYPE_ID);
            call.reborrow().init_target().init_promised_answer().set_question_id(0);
            let mut params: gate::hello_params::Builder<'_> = call.init_params().init_content().init_as();
            params.set_name("x".repeat(length));
        });
        let came = answers(&[bootstrap(0), hello].concat()).expect("it is answered");
        let told = came.iter().find_map(|answer| {
            let read = serialize::read_message_from_flat_slice(&mut &answer[..], ReaderOptions::new()).unwrap();
            let message::Return(Ok(found)) = read.get_root::<message::Reader<'_>>().unwrap().which().unwrap() else {
                return None;
            };
            let capnp_rpc::rpc_capnp::return_::Results(Ok(payload)) = found.which().unwrap() else { return None };
            let results = payload.get_content().get_as::<gate::hello_results::Reader<'_>>().ok()?;
            (found.get_answer_id() == 1).then(|| results.get_version())
        });
        assert_eq!(told, Some(length as u32));
    }
    // Of a segment table: how many, and how long each is. None of it follows, so who believed it would wait, or take all memory.
    let table = |count: u32, sizes: &[u32]| {
        let words: Vec<u32> = [&[count.wrapping_sub(1)], sizes].concat();
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let (edge, half) = (u32::MAX, 1 << 31);
    for (count, sizes) in [
        ((1 << 16) - 1, &[1; 8][..]),
        (1 << 16, &[1; 8]),
        ((1 << 16) + 1, &[1; 8]),
        (0, &[1; 8]),
        (edge, &[1; 8]),
        (1, &[edge]),
        (1, &[edge - 1]),
        // Sums that are 0 and 1 in 32 bits, as words and as bytes.
        (2, &[edge, 1]),
        (2, &[edge, 2]),
        (2, &[half, half]),
        (3, &[half, half, 1]),
        (1, &[1 << 29]),
        (2, &[1 << 29, 1]),
    ] {
        assert!(answers(&table(count, sizes)).is_none(), "{count} segments of {sizes:?}");
    }
    // Of a list: as many as a pointer can say, of each size, in a message that has one word of them.
    for size in 0..8_u32 {
        let mut bytes = echoed(|recipient| {
            let _: text_list::Builder<'_> = recipient.initn_as(1);
        });
        let at = (0..bytes.len() / 8)
            .rfind(|at| u32::from_le_bytes(bytes[at * 8 + 4..at * 8 + 8].try_into().unwrap()) == 1 << 3 | 6)
            .expect("the list");
        bytes[at * 8 + 4..at * 8 + 8].copy_from_slice(&(((1 << 29) - 1) << 3 | size).to_le_bytes());
        assert!(answers(&bytes).is_none(), "a list of size {size}");
    }
}
