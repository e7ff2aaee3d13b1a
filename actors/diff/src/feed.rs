//! A bounded pipe between whoever receives a layer and the job that extracts it, so that the bytes are used while they
//! arrive.

use std::{
    io::{self, Read, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

/// Large enough that a hand-over between threads is rare beside the work on what is handed over.
const CHUNK: usize = 64 << 10;
/// How many chunks may wait: the writer blocks behind them, which is how a slow disk slows a fast network.
const WAITING: usize = 8;

/// Both ends of a pipe.
pub fn pipe() -> (Sender, Source) {
    let (full, filled) = sync_channel(WAITING);
    // As many as can be under way: giving one back never blocks.
    let (empty, emptied) = sync_channel(WAITING + 2);
    (Sender { chunk: Vec::new(), full, emptied }, Source { chunk: Vec::new(), at: 0, filled, empty, end: false })
}

/// The writing end. Dropped without [`Sender::finish`], the reader gets an error: a stream that was cut off can never
/// pass for a whole one (A16).
pub struct Sender {
    chunk: Vec<u8>,
    full: SyncSender<Option<Vec<u8>>>,
    emptied: Receiver<Vec<u8>>,
}

impl Sender {
    /// Sends what is left, and that this was all.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.full.send(None).map_err(|_| gone())
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the layer's extraction has ended")
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.capacity() == 0 {
            self.chunk = self.emptied.try_recv().unwrap_or_else(|_| Vec::with_capacity(CHUNK));
        }
        let room = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..room]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(room)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.full.send(Some(std::mem::take(&mut self.chunk))).map_err(|_| gone())
    }
}

/// The reading end.
pub struct Source {
    chunk: Vec<u8>,
    at: usize,
    filled: Receiver<Option<Vec<u8>>>,
    empty: SyncSender<Vec<u8>>,
    end: bool,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            if self.end {
                return Ok(0);
            }
            let mut spent = std::mem::take(&mut self.chunk);
            if spent.capacity() > 0 {
                spent.clear();
                // A writer that is gone needs no more of them.
                let _ = self.empty.try_send(spent);
            }
            self.at = 0;
            match self.filled.recv() {
                Ok(Some(chunk)) => self.chunk = chunk,
                Ok(None) => self.end = true,
                Err(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the layer's bytes stopped before their end",
                    ));
                }
            }
        }
        let length = buffer.len().min(self.chunk.len() - self.at);
        buffer[..length].copy_from_slice(&self.chunk[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn bytes_arrive_in_order_and_end() {
        let (mut sender, mut source) = pipe();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let copy = sent.clone();
        let writer = thread::spawn(move || {
            for part in copy.chunks(100_001) {
                sender.write_all(part).unwrap();
            }
            sender.finish().unwrap();
        });
        let mut got = Vec::new();
        source.read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        assert!(got == sent);
    }

    #[test]
    fn a16_a_stream_that_is_cut_off_is_an_error() {
        let (mut sender, mut source) = pipe();
        sender.write_all(b"half").unwrap();
        sender.flush().unwrap();
        drop(sender);
        let mut got = Vec::new();
        assert_eq!(source.read_to_end(&mut got).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_waits_is_bounded_and_a_writer_learns_that_nobody_reads() {
        let (mut sender, source) = pipe();
        let writer = thread::spawn(move || {
            loop {
                if let Err(error) = sender.write_all(&[0; CHUNK]) {
                    return error.kind();
                }
            }
        });
        drop(source);
        assert_eq!(writer.join().unwrap(), io::ErrorKind::BrokenPipe);
    }
}
