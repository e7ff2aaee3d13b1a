//! Cursors: lists in blocks, so that no answer grows with the number of things.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use cofferdam_types::{Error, Result};

/// The most that one block holds.
const BLOCK: usize = 100;
/// The most that are looked at for one block when a filter lets few through: the next call goes on there.
const LOOK: usize = 10_000;
/// And for so long at most: others are served on the same thread.
const TIME: Duration = Duration::from_millis(20);

/// Where a list is, and how it goes on.
pub struct Cursor<T> {
    after: RefCell<Option<String>>,
    page: Page<T>,
    key: fn(&T) -> String,
    keep: Box<dyn Fn(&T) -> bool>,
}

/// Reads at most so many behind the given key.
pub type Page<T> = Box<dyn Fn(Option<&str>, usize) -> Result<Vec<T>>>;

impl<T> Cursor<T> {
    /// A cursor at the beginning.
    pub fn new(page: Page<T>, key: fn(&T) -> String, keep: impl Fn(&T) -> bool + 'static) -> Cursor<T> {
        Cursor { after: RefCell::new(None), page, key, keep: Box::new(keep) }
    }

    /// The next block, and whether it is the last.
    pub fn next(&self, max: u16) -> Result<(Vec<T>, bool)> {
        if max == 0 {
            return Err(Error::invalid("cursor", "", "was asked for a block of 0: ask for 1 to 100"));
        }
        let max = usize::from(max).min(BLOCK);
        let mut block = Vec::new();
        let mut looked = 0;
        let began = Instant::now();
        while looked < LOOK {
            let after = self.after.borrow().clone();
            let page = (self.page)(after.as_deref(), max)?;
            looked += page.len();
            let end = page.len() < max;
            for item in page {
                if block.len() == max {
                    return Ok((block, false));
                }
                *self.after.borrow_mut() = Some((self.key)(&item));
                if (self.keep)(&item) {
                    block.push(item);
                }
                if began.elapsed() > TIME {
                    return Ok((block, false));
                }
            }
            if end {
                return Ok((block, true));
            }
        }
        Ok((block, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(keep: impl Fn(&u32) -> bool + 'static) -> Cursor<u32> {
        let page: Page<u32> = Box::new(|after, max| {
            let from = after.map_or(0, |a| a.parse::<u32>().unwrap() + 1);
            Ok((from..1000).take(max).collect())
        });
        Cursor::new(page, |n| format!("{n:04}"), keep)
    }

    // A filter that takes its time, over many things of which it lets few through.
    #[test]
    fn a_slow_filter_has_its_turns() {
        let cursor = numbers(|n| {
            let until = Instant::now() + Duration::from_millis(5);
            while Instant::now() < until {}
            *n == 99
        });
        let (mut all, mut longest) = (Vec::new(), Duration::ZERO);
        loop {
            let began = Instant::now();
            let (block, end) = cursor.next(100).unwrap();
            longest = longest.max(began.elapsed());
            all.extend(block);
            if end || !all.is_empty() {
                break;
            }
        }
        assert_eq!(all, [99]);
        assert!(longest < Duration::from_millis(400), "{longest:?}: all hundred of a page take 500 ms");
    }

    #[test]
    fn every_item_comes_once_and_the_last_block_says_so() {
        for max in [1, 7, 100, 1000] {
            let cursor = numbers(|n| n % 3 == 0);
            let mut all = Vec::new();
            loop {
                let (block, end) = cursor.next(max).unwrap();
                assert!(block.len() <= 100);
                all.extend(block);
                if end {
                    break;
                }
            }
            assert_eq!(all, (0..1000).filter(|n| n % 3 == 0).collect::<Vec<_>>());
        }
        assert!(numbers(|_| true).next(0).is_err());
    }
}
