//! `logs`: what a container wrote.

use std::{
    cell::{Cell, RefCell},
    io::Write as _,
    rc::Rc,
};

use cofferdam_client::{Client, LogOptions, LogRecord, LogStream};
use cofferdam_types::{Error, Timestamp};

use crate::{
    args::{Args, Command, Positional, Times, switch, value},
    cx::{Cx, say},
    failure::Failure,
    units,
};

/// `coffer logs`.
pub static LOGS: Command = Command {
    path: &["logs"],
    about: "show what a container wrote",
    positionals: &[Positional { name: "CONTAINER", times: Times::Once }],
    flags: &[
        switch("follow", Some('f'), "go on until the container has ended"),
        switch("timestamps", Some('t'), "begin each line with its time"),
        value(
            "since",
            None,
            "TIME",
            "nothing older: a time such as 2026-11-25T03:40:17Z, or an age such as 10m or 1h30m",
        ),
        value("until", None, "TIME", "nothing newer"),
        value("tail", None, "LINES", "so many lines from the end; all otherwise"),
        value("stream", None, "stdout|stderr", "one stream alone"),
    ],
    notes: "What it wrote to standard output and standard error comes out of coffer's. What is missing, because it was\n\
            rotated away or could not be written, is said on standard error. With -o json: a line for each piece as it was\n\
            written, {\"time\", \"stream\", \"text\"} or {\"time\", \"lost\"}, on standard output.",
    failure: 1,
    action: |cx| Box::pin(logs(cx)),
};

async fn logs(cx: Cx) -> Result<i32, Failure> {
    let wanted = options(&cx.args)?;
    let show =
        Rc::new(RefCell::new(Show { json: cx.json, stamps: cx.args.has("timestamps"), lines: Default::default() }));
    let unwritten = Rc::new(RefCell::new(None));
    // After a restart of the daemon it goes on behind what was shown.
    let shown = Rc::new(Cell::new(None));
    let read = async |client: Client| {
        let container = client.namespace(&cx.namespace).containers().get(cx.args.at(0));
        let options = LogOptions { after: shown.get(), ..wanted };
        let (show, shown, unwritten) = (show.clone(), shown.clone(), unwritten.clone());
        let take = move |record: LogRecord<'_>| {
            shown.set(Some(record.position));
            show.borrow_mut().record(record).map_err(|e| {
                let error = Error::io("output", "", "can't be written", &e);
                *unwritten.borrow_mut() = Some(Failure::output(e));
                error
            })
        };
        container.logs_with(&options, take).await
    };
    let client = cx.client().await?;
    let done = if wanted.follow { client.persist(read).await } else { read(client).await };
    if let Some(failure) = unwritten.take() {
        return Err(failure);
    }
    Ok(done.map(|()| 0)?)
}

fn options(args: &Args) -> Result<LogOptions, Failure> {
    Ok(LogOptions {
        follow: args.has("follow"),
        since: args.read("since", units::moment)?.unwrap_or_default(),
        until: args.read("until", units::moment)?.unwrap_or_default(),
        tail: args.read("tail", units::number)?,
        stream: match args.value("stream") {
            None => None,
            Some("stdout") => Some(LogStream::Stdout),
            Some("stderr") => Some(LogStream::Stderr),
            Some(other) => {
                return Err(Failure::usage(format!("logs: --stream {other:?}: give stdout or stderr")));
            }
        },
        after: None,
    })
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
        if !record.lost.is_empty() {
            if self.json {
                let time = (record.time != Timestamp(0)).then(|| record.time.to_rfc3339());
                return writeln!(
                    std::io::stdout().lock(),
                    "{}",
                    serde_json::json!({ "time": time, "lost": record.lost })
                );
            }
            say(&format!("the log lacks something here: {}", record.lost));
            return Ok(());
        }
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
