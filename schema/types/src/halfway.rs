//! A BLAKE3 that can be left half way. The crate's own hasher can't be written down; but the hash is a tree over the bytes, and what
//! it comes to on the left needs no bytes any more: a value for each whole subtree, and what lies behind the last of them.

use blake3::{
    Hash, Hasher,
    hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root},
};

/// The bytes of the smallest subtree that a value is kept of: as many as the widest processors hash at once.
const GROUP: usize = 16 << 10;
const VALUE: usize = size_of::<ChainingValue>();

/// The hash of what was added so far.
#[derive(Clone, Default)]
pub(crate) struct Halfway {
    /// How many whole groups there were, behind which more came: what is the last may be the root.
    groups: u64,
    /// Of the subtrees that they make, the leftmost first: one for each bit of `groups`, of as many groups as that says.
    left: Vec<ChainingValue>,
    /// What comes behind them: at most a group, and something as soon as there is one.
    open: Vec<u8>,
}

impl Halfway {
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.open.len() == GROUP {
                let mut open = std::mem::take(&mut self.open);
                self.fold(&open);
                open.clear();
                self.open = open;
            }
            let direct = self.open.is_empty() && bytes.len() > GROUP;
            let (now, rest) = bytes.split_at(bytes.len().min(GROUP - self.open.len()));
            if direct {
                self.fold(now)
            } else {
                self.open.extend_from_slice(now)
            }
            bytes = rest;
        }
    }

    fn fold(&mut self, group: &[u8]) {
        let mut value = self.value(group);
        self.groups += 1;
        for _ in 0..self.groups.trailing_zeros() {
            let Some(left) = self.left.pop() else { break };
            value = merge_subtrees_non_root(&left, &value, Mode::Hash);
        }
        self.left.push(value);
    }

    /// Of what comes next, where it isn't all.
    fn value(&self, bytes: &[u8]) -> ChainingValue {
        Hasher::new().set_input_offset(self.groups * GROUP as u64).update(bytes).finalize_non_root()
    }

    pub(crate) fn finish(&self) -> Hash {
        let Some((root, left)) = self.left.split_first() else { return blake3::hash(&self.open) };
        let right = left
            .iter()
            .rev()
            .fold(self.value(&self.open), |right, left| merge_subtrees_non_root(left, &right, Mode::Hash));
        merge_subtrees_root(root, &right, Mode::Hash)
    }

    pub(crate) fn state(&self) -> Vec<u8> {
        [&self.groups.to_le_bytes()[..], self.left.as_flattened(), &self.open].concat()
    }

    /// `None`: it is no state.
    pub(crate) fn resume(state: &[u8]) -> Option<Halfway> {
        let (groups, rest) = state.split_first_chunk()?;
        let groups = u64::from_le_bytes(*groups);
        let (left, open) = rest.split_at_checked(groups.count_ones() as usize * VALUE)?;
        if open.len() > GROUP || groups > 0 && open.is_empty() || groups.checked_mul(GROUP as u64).is_none() {
            return None;
        }
        let (left, _) = left.as_chunks();
        Some(Halfway { groups, left: left.to_vec(), open: open.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_hash_that_everybody_knows_whatever_comes_at_once() {
        let bytes: Vec<u8> = (0..GROUP as u32 * 9).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for size in (0..=8).flat_map(|n| [n * GROUP, n * GROUP + 1, n * GROUP + 5000, (n + 1) * GROUP - 1]) {
            for step in [1000, 1024, GROUP - 1, GROUP, GROUP + 1, 5 * GROUP + 3] {
                let mut hash = Halfway::default();
                for piece in bytes[..size].chunks(step) {
                    hash.update(piece);
                    hash = Halfway::resume(&hash.state()).unwrap();
                }
                assert_eq!(hash.finish(), blake3::hash(&bytes[..size]), "{size} bytes by {step}");
            }
        }
    }
}
