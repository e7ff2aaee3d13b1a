//! `logs`: what a container wrote.

use std::{
    cell::{Cell, RefCell},
    io::Write as _,
    rc::Rc,
};

use cofferdam_client::{Client, LogRecord, LogStream};
use cofferdam_types::{Error, Timestamp};

use crate::{
    args::{Command, Positional, Times, switch},
    cx::Cx,
    failure::Failure,
};

/// `coffer logs`.
pub static LOGS: Command = Command {
    path: &["logs"],
    about: "show what a container wrote",
    positionals: &[Positional { name: "CONTAINER", times: Times::Once }],
    flags: &[
        switch("follow", Some('f'), "go on until the container has ended"),
        switch("timestamps", None, "begin each line with its time"),
    ],
    notes: "What it wrote to standard output and standard error comes out of coffer's. With -o json: a line for each piece\n\
            as it was written, {\"time\", \"stream\", \"text\"}, on standard output.",
    failure: 1,
    action: |cx| Box::pin(logs(cx)),
};

async fn logs(cx: Cx) -> Result<i32, Failure> {
    let follow = cx.args.has("follow");
    let show =
        Rc::new(RefCell::new(Show { json: cx.json, stamps: cx.args.has("timestamps"), lines: Default::default() }));
    // After a restart of the daemon the log is read anew: what was shown already is passed over.
    let shown = Rc::new(Cell::new(0u64));
    let read = async |client: Client| {
        let container = client.namespace(&cx.namespace).containers().get(cx.args.at(0));
        let (show, shown, mut at) = (show.clone(), shown.clone(), 0);
        let take = move |record: LogRecord<'_>| {
            at += 1;
            if at <= shown.get() {
                return Ok(());
            }
            shown.set(at);
            show.borrow_mut().record(record).map_err(|e| Error::io("output", "", "can't be written", &e))
        };
        container.logs(follow, take).await
    };
    let client = cx.client().await?;
    if follow {
        client.persist(read).await?
    } else {
        read(client).await?
    }
    Ok(0)
}

/// How records are shown.
struct Show {
    json: bool,
    stamps: bool,
    /// Of standard output and standard error.
    lines: [Lines; 2],
}

impl Show {
    fn record(&mut self, record: LogRecord<'_>) -> std::io::Result<()> {
        let out = record.stream == LogStream::Stdout;
        if self.json {
            let stream = if out { "stdout" } else { "stderr" };
            let text = String::from_utf8_lossy(record.bytes);
            let line = serde_json::json!({ "time": record.time.to_rfc3339(), "stream": stream, "text": text });
            return writeln!(std::io::stdout().lock(), "{line}");
        }
        let stamped;
        let mut bytes = record.bytes;
        if self.stamps {
            stamped = self.lines[usize::from(!out)].stamp(record.time, record.bytes);
            bytes = &stamped;
        }
        if !out {
            return std::io::stderr().write_all(bytes);
        }
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }
}

/// Finds the beginnings of lines in pieces that are not lines.
#[derive(Default)]
struct Lines {
    within: bool,
}

impl Lines {
    fn stamp(&mut self, time: Timestamp, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 32);
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            if !self.within {
                out.extend_from_slice(time.to_rfc3339().as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(line);
            self.within = !line.ends_with(b"\n");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_the_time_of_its_beginning() {
        let mut lines = Lines::default();
        let mut text = lines.stamp(Timestamp(0), b"a\nb");
        text.extend(lines.stamp(Timestamp(1_000_000_000), b"c\n\nd\n"));
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "1970-01-01T00:00:00.000000000Z a\n1970-01-01T00:00:00.000000000Z bc\n\
             1970-01-01T00:00:01.000000000Z \n1970-01-01T00:00:01.000000000Z d\n"
        );
    }
}
