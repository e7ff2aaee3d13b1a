//! The operator's tool, on the public client library alone.
//!
//! `args` has the tables from which command lines are read and help is written, `nouns` one file per noun with its
//! tables and what they do. Exit codes: the container's own for run, exec, attach and wait; 127 and 126 where its
//! command is not there or can't be executed; 125 where `run` or `restore` fails otherwise; 1 for any other failure.
#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic where nothing can be written: `cx` has what doesn't"
)]

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
mod screen;
mod signals;
mod target;
mod terminal;
mod units;

fn main() -> ExitCode {
    let (code, failure) = match commands::read(std::env::args_os().skip(1)) {
        Err(failure) => (1, Some(failure)),
        Ok(args) => run_command(args),
    };
    let Some(failure) = failure else { return exit(code) };
    if !failure.text.is_empty() {
        cx::say(&failure.text);
    }
    exit(failure.code.unwrap_or(code))
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
