//! What can be asked of the grants. Each says on behalf of which grant it is asked: only what comes from that one is there for
//! it. None: on behalf of who has everything.

use std::sync::Arc;

use actix::Message;
use cofferdam_metadata::records::grants::Grant;
use cofferdam_types::{Authority, Caveats, GrantId, Namespace, Result};

use crate::{Node, Token};

/// What a new grant is to be.
#[derive(Clone, Debug)]
pub struct NewGrant {
    /// Where it begins.
    pub namespace: Namespace,
    /// What people call it.
    pub label: String,
    /// What it leaves.
    pub caveats: Caveats,
    /// How often its token may be used; none: as often as one likes.
    pub uses: Option<u64>,
    /// Whether it reaches only containers that were made through it.
    pub own: bool,
}

/// Make one.
pub struct Create {
    /// Who asks.
    pub authority: Authority,
    /// What.
    pub new: NewGrant,
}

impl Message for Create {
    type Result = Result<Arc<Node>>;
}

/// Have a token made for one; an older one of it is worth nothing any more.
pub struct Save {
    /// Who asks.
    pub authority: Authority,
    /// Which.
    pub id: GrantId,
    /// The only user who may use it.
    pub sealed_to: Option<u32>,
}

impl Message for Save {
    type Result = Result<Token>;
}

/// Take one back, with all that come from it.
pub struct Revoke {
    /// Who asks.
    pub authority: Authority,
    /// Which.
    pub id: GrantId,
}

impl Message for Revoke {
    type Result = Result<()>;
}

/// Give a token's grant to a user.
pub struct Restore {
    /// The token.
    pub token: Token,
    /// The user who has it, as the kernel says.
    pub uid: u32,
}

impl Message for Restore {
    type Result = Result<Arc<Node>>;
}

/// Have a grant be a socket in a directory, or not any more.
pub struct Export {
    /// Who asks.
    pub authority: Authority,
    /// Which.
    pub id: GrantId,
    /// The directory.
    pub directory: Option<String>,
}

impl Message for Export {
    type Result = Result<(Arc<Node>, Grant)>;
}
