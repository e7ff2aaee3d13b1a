//! The operator's tool, on the public client library alone.
//!
//! `args` has the tables from which command lines are read and help is written, `nouns` one file per noun with its
//! tables and what they do. Exit codes: the container's own for run, exec, attach and wait; 127 and 126 where its
//! command is not there or can't be executed; 125 where `run` fails otherwise; 1 for any other failure.

use std::process::ExitCode;

use crate::{args::Args, cx::Cx, failure::Failure};

mod args;
mod commands;
mod cx;
mod failure;
mod help;
mod keys;
mod nouns;
mod progress;
mod signals;
mod terminal;
mod units;

fn main() -> ExitCode {
    // SAFETY: SIG_DFL is no handler; nothing runs yet that could rely on the disposition.
    // A reader that goes away, as in `coffer logs x | head`, ends coffer quietly.
    let _ =
        unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGPIPE, nix::sys::signal::SigHandler::SigDfl) };
    let words: Result<Vec<String>, _> = std::env::args_os().skip(1).map(std::ffi::OsString::into_string).collect();
    let (code, failure) = match words {
        Err(word) => (1, Some(Failure::usage(format!("{} is not UTF-8", word.display())))),
        Ok(words) => {
            // Whose exit code a wrong command line has is known by its first word alone.
            let run = words.iter().find(|word| !word.starts_with('-')).is_some_and(|word| word == "run");
            match commands::parse(words) {
                Err(failure) => (if run { 125 } else { 1 }, Some(failure)),
                Ok(args) => run_command(args),
            }
        }
    };
    if let Some(failure) = failure {
        eprintln!("coffer: {}", failure.text);
        return exit(failure.code.unwrap_or(code));
    }
    exit(code)
}

fn run_command(args: Args) -> (i32, Option<Failure>) {
    let command = args.command;
    let ended = if args.has("help") {
        cx::line(help::command(command).trim_end()).map(|()| 0)
    } else {
        Cx::new(args).and_then(|cx| cofferdam_client::block_on((command.action)(cx))?)
    };
    match ended {
        Ok(code) => (code, None),
        Err(failure) => (command.failure, Some(failure)),
    }
}

fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
}
