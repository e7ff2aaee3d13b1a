//! A zstd stream, frame by frame (RFC 8878): what a frame needs to be read is looked at before it is allocated.

use std::{
    io::{self, BufRead, Read},
    sync::atomic::{AtomicBool, Ordering},
};

use cofferdam_types::{Error, Result};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use crate::{
    Limits,
    budget::{Budget, Share},
    header::exhausted,
    stream::cancelled,
};

/// The longest header of a frame.
const HEADER: usize = 18;
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The largest window that the decoder has (`ZSTD_WINDOWLOG_MAX`).
const WINDOW_LOG: u32 = 31;

/// What is inflated.
pub(crate) struct Frames<'a, R> {
    source: R,
    decoder: Decoder<'static>,
    /// The beginning of a frame, looked at and not yet given to the decoder.
    head: Vec<u8>,
    /// How much of it has been given.
    given: usize,
    between: bool,
    most: u64,
    budget: Option<Budget>,
    cancel: &'a AtomicBool,
    /// What is held for the largest window so far, and how much that is.
    held: Option<Share>,
    window: u64,
}

impl<'a, R: BufRead> Frames<'a, R> {
    pub(crate) fn new(source: R, limits: &Limits, cancel: &'a AtomicBool) -> io::Result<Frames<'a, R>> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        let (most, budget) = (limits.max_window, limits.budget.clone());
        let head = Vec::with_capacity(HEADER);
        Ok(Frames { source, decoder, head, given: 0, between: true, most, budget, cancel, held: None, window: 0 })
    }

    /// Makes ready for the next frame; false where there is none.
    fn begin(&mut self) -> io::Result<bool> {
        self.head.drain(..self.given);
        self.given = 0;
        let missing = (HEADER - self.head.len()) as u64;
        (&mut self.source).take(missing).read_to_end(&mut self.head)?;
        if self.head.is_empty() {
            return Ok(false);
        }
        let window = window(&self.head);
        if window > self.window {
            self.hold(window).map_err(io::Error::other)?;
        }
        self.decoder.reinit()?;
        self.between = false;
        Ok(true)
    }

    fn hold(&mut self, window: u64) -> Result<()> {
        if window > self.most {
            let (mib, most) = (window.div_ceil(1 << 20), self.most >> 20);
            let why = format!(
                "its zstd window of {mib} MiB is more than the {most} MiB that are allowed: allow more by name"
            );
            return Err(exhausted(b"", why));
        }
        // First the smaller one back: who holds some and waits for more could wait for himself.
        self.held = None;
        let check = || if self.cancel.load(Ordering::Relaxed) { Err(cancelled()) } else { Ok(()) };
        self.held = self.budget.as_ref().map(|budget| budget.take(window, check)).transpose()?;
        self.window = window;
        Ok(())
    }
}

impl<R: BufRead> Read for Frames<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if self.between && !self.begin()? {
                return Ok(0);
            }
            let from_head = self.given < self.head.len();
            let input = if from_head { &self.head[self.given..] } else { self.source.fill_buf()? };
            let ended = input.is_empty();
            let mut src = InBuffer::around(input);
            let mut dst = OutBuffer::around(&mut *into);
            let left = self.decoder.run(&mut src, &mut dst)?;
            let (taken, written) = (src.pos(), dst.pos());
            match from_head {
                true => self.given += taken,
                false => self.source.consume(taken),
            }
            self.between = left == 0;
            if written > 0 {
                return Ok(written);
            }
            if ended && left > 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the last frame is cut off"));
            }
        }
    }
}

/// The window that a frame's header asks for, as far as it is one: what isn't is for the decoder to refuse.
fn window(head: &[u8]) -> u64 {
    let Some((MAGIC, [descriptor, rest @ ..])) = head.split_first_chunk::<4>().map(|(magic, rest)| (*magic, rest))
    else {
        return 0;
    };
    let single = descriptor & 0x20 != 0;
    if !single {
        let Some(byte) = rest.first() else { return 0 };
        let base = 1u64 << (10 + (byte >> 3));
        return base + base / 8 * u64::from(byte & 7);
    }
    // A frame in one segment needs room for all of its content, which it tells behind the number of its dictionary.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let (length, more) = [(1, 0), (2, 256), (4, 0), (8, 0)][usize::from(descriptor >> 6)];
    let Some(size) = rest.get(dictionary..dictionary + length) else { return 0 };
    let size = size.iter().rev().fold(0u64, |size, byte| size << 8 | u64::from(*byte));
    size.saturating_add(more)
}

/// What came out of the decoder as one of our own errors.
pub(crate) fn own(error: &io::Error) -> Option<Error> {
    error.get_ref()?.downcast_ref::<Error>().cloned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use cofferdam_types::Code;

    use super::*;

    fn packed(bytes: &[u8], log: u32) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8], limits: &Limits) -> io::Result<Vec<u8>> {
        let go = AtomicBool::new(false);
        let mut all = Vec::new();
        Frames::new(bytes, limits, &go)?.read_to_end(&mut all).map(|_| all)
    }

    #[test]
    fn frames_of_all_kinds_are_one_stream() {
        let bytes = b"some bytes that repeat ".repeat(10_000);
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let empty = zstd::encode_all(&b""[..], 1).unwrap();
        let known = zstd::bulk::compress(&bytes, 1).unwrap();
        let stream = [packed(&bytes, 20), skipped.clone(), empty, known.clone(), packed(&bytes, 24), skipped].concat();
        assert!(read(&stream, &Limits::default()).unwrap() == bytes.repeat(3));
        // Cut anywhere it is an error, or the end of a frame.
        for cut in 1..known.len() {
            assert!(read(&known[..cut], &Limits::default()).is_err(), "{cut}");
        }
        assert!(read(&[&known[..], b"garbage"].concat(), &Limits::default()).is_err());
        assert!(read(&[], &Limits::default()).unwrap().is_empty());
    }

    #[test]
    fn a_window_is_taken_from_the_budget_and_held_to_the_limit() {
        let bytes = vec![7; 100_000];
        let budget = Budget::new(200 << 20);
        let limits = Limits { budget: Some(budget.clone()), ..Limits::default() };
        let go = AtomicBool::new(false);
        let (small, large) = (packed(&bytes, 20), packed(&bytes, 25));
        let stream = [small, large].concat();
        let mut frames = Frames::new(&stream[..], &limits, &go).unwrap();
        assert_eq!(budget.used(), 0);
        frames.read_exact(&mut vec![0; bytes.len()]).unwrap();
        assert_eq!(budget.used(), 1 << 20);
        frames.read_exact(&mut vec![0; bytes.len()]).unwrap();
        assert_eq!(budget.used(), 32 << 20);
        drop(frames);
        assert_eq!(budget.used(), 0);

        let more = packed(&bytes, 26);
        let error = own(&read(&more, &limits).unwrap_err()).unwrap();
        assert!(error.code == Code::ResourceExhausted && error.message.contains("64 MiB"), "{error}");
        let allowed = Limits { max_window: 64 << 20, ..limits };
        assert!(read(&more, &allowed).unwrap() == bytes);
        // In one segment the content is the window.
        let single = [&MAGIC[..], &[0xe0, 0, 0, 0, 0x10, 0, 0, 0, 0]].concat();
        assert_eq!(window(&single), 0x1000_0000);
        assert_eq!(own(&read(&single, &allowed).unwrap_err()).unwrap().code, Code::ResourceExhausted);
    }
}
