//! How many calls are under way through a grant that bounds them, and through what comes from it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use cofferdam_types::{Error, GrantId, Result};

/// One grant's bound.
#[derive(Clone, Debug)]
struct Bound {
    id: GrantId,
    most: u64,
    under_way: Arc<AtomicU64>,
}

/// Those of a grant and of all that it comes from; of most grants none.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<[Bound]>);

impl Calls {
    /// With that of one grant more.
    pub(crate) fn below(&self, id: GrantId, most: Option<u64>) -> Calls {
        let Some(most) = most else { return self.clone() };
        let bound = Bound { id, most, under_way: Arc::default() };
        Calls(self.0.iter().cloned().chain([bound]).collect())
    }

    /// Whether nothing bounds them.
    pub fn is_free(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are of the grant itself, where it bounds them.
    pub fn of(&self, id: GrantId) -> u64 {
        let own = self.0.iter().find(|bound| bound.id == id);
        own.map_or(0, |bound| bound.under_way.load(Ordering::Relaxed))
    }

    /// One more, for as long as the answer lives.
    pub fn begin(&self) -> Result<UnderWay> {
        let mut under_way = UnderWay { calls: self.clone(), counted: 0 };
        for bound in &*self.0 {
            under_way.counted += 1;
            if bound.under_way.fetch_add(1, Ordering::AcqRel) >= bound.most {
                let why = format!(
                    "may have {} calls under way at once, those that wait included, and has as many: wait for one to end, or ask \
                     whoever gave it for more",
                    bound.most
                );
                return Err(Error::resource_exhausted("grant", bound.id, why));
            }
        }
        Ok(under_way)
    }
}

/// A call that counts.
#[derive(Debug)]
pub struct UnderWay {
    calls: Calls,
    /// At so many of the bounds.
    counted: usize,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        for bound in &self.calls.0[..self.counted] {
            bound.under_way.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;

    use super::*;

    #[test]
    fn calls_count_for_a_grant_and_all_that_it_comes_from() {
        let top = Calls::default().below(GrantId(1), Some(3));
        let (one, two) = (top.below(GrantId(2), None).below(GrantId(3), Some(2)), top.below(GrantId(4), Some(9)));
        let held = [one.begin().unwrap(), one.begin().unwrap()];
        let refused = one.begin().unwrap_err();
        assert_eq!((refused.code, refused.id), (Code::ResourceExhausted, GrantId(3).to_string()));
        let other = two.begin().unwrap();
        // There is room below, and none above.
        assert_eq!(two.begin().unwrap_err().id, GrantId(1).to_string());
        assert_eq!((top.of(GrantId(1)), one.of(GrantId(3)), two.of(GrantId(4)), one.of(GrantId(2))), (3, 2, 1, 0));
        drop((held, other));
        assert_eq!(
            (top.of(GrantId(1)), one.of(GrantId(3)), two.of(GrantId(4))),
            (0, 0, 0),
            "what was refused counts for nothing"
        );
        assert!(Calls::default().is_free() && !top.is_free());
    }
}
