//! Help, made from the tables.

use std::fmt::Write as _;

use crate::{
    args::{Command, Flag, GLOBAL, Positional, Times},
    commands::ALL,
};

/// The overview.
pub fn overview() -> String {
    let mut text = String::from("coffer: images, containers and what belongs to them, in Cofferdam\n\n");
    text.push_str("usage: coffer [FLAGS] COMMAND ...\n\ncommands:\n");
    let width = ALL.iter().map(|command| command.name().len()).max().unwrap_or_default();
    for command in ALL {
        let _ = writeln!(text, "  {:width$}  {}", command.name(), command.about);
    }
    text.push_str("\nflags of every command:\n");
    flags(&mut text, GLOBAL);
    text.push_str("\n\"coffer COMMAND --help\" says more about each.\n");
    text
}

/// The verbs of a noun.
pub fn noun(noun: &str) -> String {
    let mut text = String::new();
    for command in ALL.iter().filter(|command| command.path.len() > 1 && command.path[0] == noun) {
        let _ = writeln!(text, "  coffer {}: {}", command.name(), command.about);
    }
    text
}

/// The help of one command.
pub fn command(command: &Command) -> String {
    let mut text = format!("{}\n\nusage: coffer {} [FLAGS]", command.about, command.name());
    for positional in command.positionals {
        let _ = write!(text, " {}", usage(positional));
    }
    text.push('\n');
    if !command.flags.is_empty() {
        text.push_str("\nflags:\n");
        flags(&mut text, command.flags);
    }
    text.push_str("\nflags of every command:\n");
    flags(&mut text, GLOBAL);
    if !command.notes.is_empty() {
        let _ = write!(text, "\n{}\n", command.notes.trim_end());
    }
    text
}

fn usage(positional: &Positional) -> String {
    match positional.times {
        Times::Once => positional.name.to_owned(),
        Times::Maybe => format!("[{}]", positional.name),
        Times::Many => format!("{}...", positional.name),
        Times::Any | Times::Rest => format!("[{}...]", positional.name),
    }
}

fn form(flag: &Flag) -> String {
    let short = flag.short.map_or_else(|| "    ".to_owned(), |short| format!("-{short}, "));
    let value = flag.value.map_or_else(String::new, |value| format!(" {value}"));
    format!("{short}--{}{value}", flag.name)
}

fn flags(text: &mut String, flags: &[Flag]) {
    let width = flags.iter().map(|flag| form(flag).len()).max().unwrap_or_default();
    for flag in flags {
        let again = if flag.repeat { " (may come again)" } else { "" };
        let _ = writeln!(text, "  {:width$}  {}{again}", form(flag), flag.help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_everything() {
        let all = overview();
        for c in ALL {
            assert!(all.contains(c.about), "{}", c.name());
            let help = command(c);
            for flag in c.flags.iter().chain(GLOBAL) {
                assert!(help.contains(&format!("--{}", flag.name)), "{} {}", c.name(), flag.name);
            }
            for positional in c.positionals {
                assert!(help.contains(positional.name));
            }
        }
        assert!(noun("image").contains("coffer image pull"));
    }
}
