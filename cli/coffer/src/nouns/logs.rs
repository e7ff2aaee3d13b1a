//! `logs`: what a container wrote.

use std::io::Write as _;

use cofferdam_client::{LogRecord, LogStream};
use cofferdam_types::{Error, Result, Timestamp};

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
    let container = cx.namespace().await?.containers().get(cx.args.at(0));
    let (json, stamps) = (cx.json, cx.args.has("timestamps"));
    let mut lines = [Lines::default(), Lines::default()];
    let take = move |record: LogRecord<'_>| {
        let written = if json {
            let stream = if record.stream == LogStream::Stdout { "stdout" } else { "stderr" };
            let text = String::from_utf8_lossy(record.bytes);
            let line = serde_json::json!({ "time": record.time.to_rfc3339(), "stream": stream, "text": text });
            writeln!(std::io::stdout().lock(), "{line}")
        } else {
            let bytes = if stamps {
                &lines[usize::from(record.stream == LogStream::Stderr)].stamp(record.time, record.bytes)
            } else {
                record.bytes
            };
            match record.stream {
                LogStream::Stdout => std::io::stdout().lock().write_all(bytes).and_then(|()| std::io::stdout().flush()),
                LogStream::Stderr => std::io::stderr().write_all(bytes),
            }
        };
        written.map_err(|e| Error::io("output", "", "can't be written", &e))
    };
    container.logs(cx.args.has("follow"), take).await?;
    Ok(0)
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
