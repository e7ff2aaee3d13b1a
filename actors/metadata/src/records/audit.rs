//! Where the audit log begins and ends: one row, so that what is cut off of the log, or put in its place, doesn't lead to it.

use cofferdam_types::{Error, Result};

use crate::{Read, Tx, table::Table};

/// The row's key.
pub(crate) const KEY: &[u8] = b"audit";
const LEN: usize = 80;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The first record that is kept.
    pub first: u64,
    /// What the chain came to before that.
    pub before: [u8; 32],
    /// The last record.
    pub last: u64,
    /// What the chain comes to with that.
    pub hash: [u8; 32],
}

impl Head {
    fn encode(&self) -> Vec<u8> {
        [&self.first.to_be_bytes()[..], &self.before, &self.last.to_be_bytes(), &self.hash].concat()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Head> {
        let (first, rest) = bytes.split_first_chunk()?;
        let (before, rest) = rest.split_first_chunk()?;
        let (last, rest) = rest.split_first_chunk()?;
        let hash = rest.try_into().ok()?;
        let head = Head { first: u64::from_be_bytes(*first), before: *before, last: u64::from_be_bytes(*last), hash };
        // Before the first record there is none that is the last.
        (bytes.len() == LEN && head.first > 0 && head.last >= head.first - 1).then_some(head)
    }
}

/// The row, where there is one.
pub fn head(read: &dyn Read) -> Result<Option<Head>> {
    let Some(bytes) = read.get(Table::META, KEY)? else { return Ok(None) };
    let unreadable = || Error::data_loss("audit", "", "the row that says where the audit log ends is not readable");
    Head::decode(&bytes).map(Some).ok_or_else(unreadable)
}

/// Moves it.
pub fn set_head(tx: &mut Tx<'_>, head: &Head) -> Result<()> {
    tx.put(Table::META, KEY, &head.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let head = Head { first: 7, before: [1; 32], last: 9, hash: [2; 32] };
        let bytes = head.encode();
        assert_eq!((bytes.len(), Head::decode(&bytes)), (LEN, Some(head)));
        for bad in [&bytes[1..], &[&bytes[..], &[0]].concat(), &[0; 80]] {
            assert_eq!(Head::decode(bad), None);
        }
        assert_eq!(Head::decode(&Head { last: 5, ..head }.encode()), None);
    }
}
