//! The protocol of the subsystem at a glance.

use actix::Message;
use cofferdam_net::{Network, Wish};
use cofferdam_types::{Authority, Error, Id, Namespace, Result};

use crate::Connected;

/// Makes a network namespace and connects it.
#[derive(Clone, Debug)]
pub struct Attach {
    /// Who asks.
    pub authority: Authority,
    /// That of the connection to be: no other task has it.
    pub id: Id,
    /// Of the container.
    pub namespace: Namespace,
    /// The container.
    pub container: Id,
    /// The network's name.
    pub network: String,
    /// What is asked of it.
    pub wish: Wish,
}

impl Message for Attach {
    type Result = Result<Connected>;
}

/// Undoes a connection that was given up. Answers after the first attempt; others follow.
#[derive(Debug)]
pub(crate) struct Release(pub Id);

impl Message for Release {
    type Result = Result<()>;
}

/// The networks that are configured, and what can't be read as one.
#[derive(Debug)]
pub(crate) struct List;

impl Message for List {
    type Result = Result<(Vec<Network>, Vec<Error>)>;
}
