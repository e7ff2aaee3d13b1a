//! What a client makes the RPC system keep in its tables, which have no bound of their own.
//!
//! - An answer lies there until the client says that it is done with it, with its results where they hold objects. Each use of
//!   one that is still to come (a call on it, or it as an argument) leaves an entry there until it comes, even where what
//!   used it was given up. And what is on an answer that is on an answer, and so on, is let go of one inside the other: a thousand of them
//!   end the stack.
//! - A promise of the client's may turn out to be another promise of his, and by and by itself: who follows that never
//!   comes back. Or an answer that is to come, and so be on a tower of these without telling. It stays a promise instead, as the protocol has it for who doesn't follow: calls on it go to its owner.
//! - Results that are to stay here for a call of ours (`sendResultsTo.yourself`) would be kept unseen: no call of ours
//!   asks for any.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use capnp::struct_list;
use capnp_rpc::rpc_capnp::{
    call::send_results_to, cap_descriptor, message, message_target, payload, promised_answer, resolve, return_,
};

/// What keeping anything costs beside its bytes.
pub const OVERHEAD: usize = 512;
/// Objects and promises that a message may name: none of ours names more than a handful.
const NAMED: usize = 256;
/// Answers to come that a call may be on, one on the other. A way through our objects has ten.
const DEPTH: usize = 64;

/// What is to become of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on to the RPC system, which keeps so many capabilities for it.
    Taken(usize),
    /// It is a `Resolve` that is not followed: it goes back.
    NotFollowed,
    /// It is a call that is answered with this.
    Refused(&'static str),
    /// It is a call on an answer to come, on which it is on one, and so on: too far.
    Deep,
    /// The connection is over its budget.
    Over,
}

/// An answer that the client has not finished.
#[derive(Default)]
struct Answer {
    returned: bool,
    bytes: usize,
    /// On how many others it was, itself included.
    depth: usize,
}

/// Those of one connection.
#[derive(Default)]
pub struct Tables {
    answers: HashMap<u32, Answer>,
    /// What all of these cost.
    bytes: usize,
    /// Promises of the client's that the RPC system has.
    promises: HashSet<u32>,
}

impl Tables {
    /// What the answers cost that the client has not finished.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A message that came in. Whoever refuses it, for whatever reason, ends the connection.
    pub fn comes(&mut self, message: message::Reader<'_>) -> capnp::Result<Fate> {
        // What the schema doesn't know the RPC system sends back.
        let Ok(message) = message.which() else { return Ok(Fate::Taken(0)) };
        match message {
            message::Bootstrap(bootstrap) => {
                self.open(bootstrap?.get_question_id(), Answer { returned: true, ..Answer::default() });
                Ok(Fate::Taken(0))
            }
            message::Call(call) => {
                let call = call?;
                match call.get_send_results_to().which()? {
                    send_results_to::Caller(()) => {}
                    _ => return Ok(Fate::Refused("wants its results to be kept here, which is not done")),
                }
                let mut depth = match call.get_target()?.which()? {
                    message_target::PromisedAnswer(on) => self.used(on?)?,
                    message_target::ImportedCap(_) => 0,
                };
                let fate = self.named(call.get_params()?, &mut depth)?;
                if depth >= DEPTH {
                    return Ok(Fate::Deep);
                }
                self.open(call.get_question_id(), Answer { depth: depth + 1, ..Answer::default() });
                Ok(fate)
            }
            message::Return(answer) => match answer?.which()? {
                return_::Results(results) => self.named(results?, &mut 0),
                _ => Ok(Fate::Taken(0)),
            },
            message::Finish(finish) => {
                if let Some(answer) = self.answers.remove(&finish?.get_question_id()) {
                    self.bytes -= answer.bytes;
                }
                Ok(Fate::Taken(0))
            }
            message::Resolve(resolve) => match resolve?.which()? {
                resolve::Exception(_) => Ok(Fate::Taken(0)),
                resolve::Cap(cap) => {
                    let cap = cap?;
                    Ok(match cap.which()? {
                        cap_descriptor::SenderPromise(_) => Fate::NotFollowed,
                        // The second time that a promise is named it may be called an object.
                        cap_descriptor::SenderHosted(id) if self.promises.contains(&id) => Fate::NotFollowed,
                        cap_descriptor::ReceiverAnswer(answer) => match self.is_to_come(answer?) {
                            true => Fate::NotFollowed,
                            false => Fate::Taken(1),
                        },
                        _ => Fate::Taken(self.cap(cap, &mut 0)?),
                    })
                }
            },
            _ => Ok(Fate::Taken(0)),
        }
    }

    /// A message that goes out.
    pub fn goes(&mut self, message: message::Reader<'_>, size: usize) -> capnp::Result<()> {
        match message.which()? {
            message::Return(answer) => {
                let answer = answer?;
                let Some(open) = self.answers.get_mut(&answer.get_answer_id()) else { return Ok(()) };
                self.bytes -= open.bytes;
                if answer.get_no_finish_needed() {
                    self.answers.remove(&answer.get_answer_id());
                } else {
                    // What waited for it has it now.
                    *open = Answer { returned: true, bytes: OVERHEAD + size, depth: 0 };
                    self.bytes += open.bytes;
                }
            }
            message::Release(release) => {
                self.promises.remove(&release?.get_id());
            }
            _ => {}
        }
        Ok(())
    }

    fn open(&mut self, question: u32, answer: Answer) {
        // One that is open already ends the connection, elsewhere.
        if let Entry::Vacant(free) = self.answers.entry(question) {
            free.insert(Answer { bytes: OVERHEAD, ..answer });
            self.bytes += OVERHEAD;
        }
    }

    fn is_to_come(&self, answer: promised_answer::Reader<'_>) -> bool {
        self.answers.get(&answer.get_question_id()).is_some_and(|open| !open.returned)
    }

    /// On how many answers to come somebody is who is on this one.
    fn used(&mut self, answer: promised_answer::Reader<'_>) -> capnp::Result<usize> {
        let way = answer.get_transform()?.len() as usize;
        let Some(open) = self.answers.get_mut(&answer.get_question_id()).filter(|open| !open.returned) else {
            return Ok(0);
        };
        let cost = OVERHEAD + 8 * way;
        open.bytes += cost;
        self.bytes += cost;
        Ok(open.depth)
    }

    fn named(&mut self, payload: payload::Reader<'_>, depth: &mut usize) -> capnp::Result<Fate> {
        let table: struct_list::Reader<'_, cap_descriptor::Owned> = payload.get_cap_table()?;
        if table.len() as usize > NAMED {
            return Ok(Fate::Over);
        }
        let mut kept = 0;
        for cap in table {
            kept += self.cap(cap, depth)?;
        }
        Ok(Fate::Taken(kept))
    }

    /// How many capabilities are kept for one that is named.
    fn cap(&mut self, cap: cap_descriptor::Reader<'_>, depth: &mut usize) -> capnp::Result<usize> {
        match cap.which()? {
            cap_descriptor::None(()) => return Ok(0),
            cap_descriptor::SenderPromise(id) => drop(self.promises.insert(id)),
            cap_descriptor::ReceiverAnswer(answer) => *depth = self.used(answer?)?.max(*depth),
            _ => {}
        }
        Ok(1)
    }
}

#[cfg(test)]
mod tests;
