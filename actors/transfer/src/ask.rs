//! Whoever chooses what of an image is fetched: asked by the job, answering from wherever it lives. It can hold up nothing
//! but its own job, and that not for long.

use std::{
    fmt,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use cofferdam_types::{Descriptor, Error, Result};
use tokio::sync::mpsc;

use crate::Cancel;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A waiter looks for a cancellation this often.
const LOOK: Duration = Duration::from_millis(100);

/// What becomes of a part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is fetched, and what it leads to is asked about.
    Take,
    /// Neither it nor what it leads to.
    Skip,
    /// Nor anything after it.
    Stop,
}

/// The asking end.
#[derive(Clone)]
pub struct Chooser {
    ask: mpsc::Sender<Question>,
    patience: Duration,
}

/// The answering end.
pub struct Questions(mpsc::Receiver<Question>);

/// Whether to take something.
pub struct Question {
    /// What.
    pub descriptor: Descriptor,
    /// How many documents it lies behind.
    pub depth: u16,
    answer: SyncSender<Result<Verdict>>,
}

impl Question {
    /// Dropped without one, the job fails.
    pub fn answer(self, verdict: Result<Verdict>) {
        // One that came too late is not heard.
        let _ = self.answer.send(verdict);
    }
}

impl Questions {
    /// The next; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Question> {
        self.0.recv().await
    }
}

impl Chooser {
    /// Both ends.
    pub fn new() -> (Chooser, Questions) {
        Chooser::patient(PATIENCE)
    }

    fn patient(patience: Duration) -> (Chooser, Questions) {
        let (ask, asked) = mpsc::channel(1);
        (Chooser { ask, patience }, Questions(asked))
    }

    /// Asks, on a thread of the job's.
    pub(crate) fn look(&self, descriptor: &Descriptor, depth: u16, word: &Cancel) -> Result<Verdict> {
        let gone = || Error::unavailable("chooser", &descriptor.digest, "is gone: who chooses must stay until the end");
        let (answer, answered) = sync_channel(1);
        let question = Question { descriptor: descriptor.clone(), depth, answer };
        // There is one question at a time: the only one before this was answered, or ended the job.
        self.ask.try_send(question).map_err(|_| gone())?;
        self.wait(&answered, word, &descriptor.digest.to_string())
            .and_then(|answer| answer.unwrap_or_else(|| Err(gone())))
    }

    fn wait(&self, answered: &Receiver<Result<Verdict>>, word: &Cancel, what: &str) -> Result<Option<Result<Verdict>>> {
        let until = Instant::now() + self.patience;
        loop {
            word.check()?;
            let left = until.saturating_duration_since(Instant::now());
            match answered.recv_timeout(left.min(LOOK)) {
                Ok(answer) => return Ok(Some(answer)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    let why = format!("did not answer within {:?}", self.patience);
                    return Err(Error::deadline_exceeded("chooser", what, why));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chooser")
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::{Algorithm, Code, Digest};

    use super::*;

    #[test]
    fn an_answer_comes_or_the_job_ends() {
        let what = Descriptor::new("text/plain", Digest::of(Algorithm::Sha256, b"x"), 1);
        let word = Cancel::new();
        let (chooser, mut questions) = Chooser::patient(Duration::from_millis(200));
        let answering = std::thread::spawn(move || {
            let question = questions.0.blocking_recv().unwrap();
            assert_eq!((question.depth, question.descriptor.size), (3, 1));
            question.answer(Ok(Verdict::Skip));
            // The next is let go, the one after it is never answered.
            drop(questions.0.blocking_recv().unwrap());
            let kept = questions.0.blocking_recv().unwrap();
            (questions, kept)
        });
        assert_eq!(chooser.look(&what, 3, &word).unwrap(), Verdict::Skip);
        assert_eq!(chooser.look(&what, 0, &word).unwrap_err().code, Code::Unavailable);
        let error = chooser.look(&what, 0, &word).unwrap_err();
        assert!(error.code == Code::DeadlineExceeded && error.message.contains("200ms"), "{error}");
        drop(answering.join().unwrap());
        assert_eq!(chooser.look(&what, 0, &word).unwrap_err().code, Code::Unavailable);
        word.cancel();
        let (chooser, _questions) = Chooser::new();
        assert_eq!(chooser.look(&what, 0, &word).unwrap_err().code, Code::Cancelled);
    }
}
