//! Flags are data: from one static table per command come its parser and its help.

use std::collections::BTreeMap;

use crate::{cx::Cx, failure::Failure};

/// What a command does. Its number is coffer's exit code.
pub type Action = fn(Cx) -> std::pin::Pin<Box<dyn Future<Output = Result<i32, Failure>>>>;

/// A flag.
pub struct Flag {
    /// The long name, without dashes.
    pub name: &'static str,
    /// The short name.
    pub short: Option<char>,
    /// What its value is called; `None` for a switch.
    pub value: Option<&'static str>,
    /// Whether it may come more than once.
    pub repeat: bool,
    /// One line.
    pub help: &'static str,
}

/// A switch.
pub const fn switch(name: &'static str, short: Option<char>, help: &'static str) -> Flag {
    Flag { name, short, value: None, repeat: false, help }
}

/// A flag with a value.
pub const fn value(name: &'static str, short: Option<char>, value: &'static str, help: &'static str) -> Flag {
    Flag { name, short, value: Some(value), repeat: false, help }
}

/// A flag with a value that may come more than once.
pub const fn many(name: &'static str, short: Option<char>, value: &'static str, help: &'static str) -> Flag {
    Flag { name, short, value: Some(value), repeat: true, help }
}

/// How often an argument that is not a flag comes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// Exactly once.
    Once,
    /// Once or not at all.
    Maybe,
    /// Once or more; the last of its command.
    Many,
    /// As often as it likes; the last of its command.
    Any,
    /// Everything that is left, flags of a foreign command included; the last of its command.
    Rest,
}

/// An argument that is not a flag.
pub struct Positional {
    /// What it is called.
    pub name: &'static str,
    /// How often it comes.
    pub times: Times,
}

/// A command.
pub struct Command {
    /// Noun and verb, or the verb alone.
    pub path: &'static [&'static str],
    /// One line.
    pub about: &'static str,
    /// Its arguments.
    pub positionals: &'static [Positional],
    /// Its flags, besides [`GLOBAL`].
    pub flags: &'static [Flag],
    /// What else its help says.
    pub notes: &'static str,
    /// coffer's exit code where coffer or the daemon fails.
    pub failure: i32,
    /// What it does.
    pub action: Action,
}

/// The flags that every command has.
pub const GLOBAL: &[Flag] = &[
    value("socket", None, "PATH", "the daemon's socket (COFFER_SOCKET; /run/cofferdam/cofferd.sock)"),
    value("as", None, "GRANT", "do it by a grant: its token, @FILE with that, or its socket or directory (COFFER_AS)"),
    value("namespace", Some('n'), "NAME", "where to work (COFFER_NAMESPACE; default)"),
    value("output", Some('o'), "FORMAT", "table for people, json for programs"),
    switch("help", Some('h'), "what this command does"),
];

impl Command {
    /// Noun and verb as one text.
    pub fn name(&self) -> String {
        self.path.join(" ")
    }

    fn flags(&self) -> impl Iterator<Item = &'static Flag> {
        self.flags.iter().chain(GLOBAL)
    }
}

/// What was given to a command.
pub struct Args {
    /// The command.
    pub command: &'static Command,
    flags: BTreeMap<&'static str, Vec<String>>,
    positionals: Vec<String>,
}

impl Args {
    /// Whether a flag was given.
    pub fn has(&self, name: &str) -> bool {
        debug_assert!(self.command.flags().any(|flag| flag.name == name), "no flag {name}");
        self.flags.contains_key(name)
    }

    /// The value of a flag.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.all(name).last().map(String::as_str)
    }

    /// The value of a flag, or an empty text.
    pub fn text(&self, name: &str) -> String {
        self.value(name).unwrap_or_default().to_owned()
    }

    /// Every value of a flag, in the order given.
    pub fn all(&self, name: &str) -> &[String] {
        debug_assert!(self.command.flags().any(|flag| flag.name == name), "no flag {name}");
        self.flags.get(name).map_or(&[], Vec::as_slice)
    }

    /// The value of a flag, read by `read`; the error names the flag.
    pub fn read<T>(&self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Failure> {
        self.value(name).map(|text| read(text).map_err(|why| self.bad(name, text, &why))).transpose()
    }

    /// Every value of a flag, read by `read`.
    pub fn read_all<T>(&self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Failure> {
        self.all(name).iter().map(|text| read(text).map_err(|why| self.bad(name, text, &why))).collect()
    }

    /// That no flag is empty whose empty value would be taken for none.
    pub fn filled(&self) -> Result<(), Failure> {
        const MAY_BE_EMPTY: [&str; 2] = ["entrypoint", "detach-keys"];
        let flags = self.flags.iter().filter(|(name, _)| !MAY_BE_EMPTY.contains(name));
        let valued = |name: &str| self.command.flags().any(|flag| flag.name == name && flag.value.is_some());
        match flags.into_iter().find(|(name, given)| valued(name) && given.iter().any(String::is_empty)) {
            Some((name, _)) => Err(self.wrong(&format!("--{name} is empty: give a value, or leave it out"))),
            None => Ok(()),
        }
    }

    fn bad(&self, name: &str, text: &str, why: &str) -> Failure {
        Failure::usage(format!("{}: --{name} {text:?}: {why}", self.command.name()))
    }

    /// The argument at a place; empty where it was not given.
    pub fn at(&self, place: usize) -> &str {
        self.positionals.get(place).map_or("", String::as_str)
    }

    /// The arguments from a place on.
    pub fn from(&self, place: usize) -> &[String] {
        self.positionals.get(place..).unwrap_or_default()
    }

    /// Reads what follows the command's name. `before` are the global flags that came in front of it.
    pub fn parse(command: &'static Command, before: Vec<String>, words: Vec<String>) -> Result<Args, Failure> {
        let mut args = Args { command, flags: BTreeMap::new(), positionals: Vec::new() };
        let mut words = before.into_iter().chain(words);
        let mut only_positionals = false;
        while let Some(word) = words.next() {
            // Behind the first argument of such a command everything belongs to the container.
            let rest = command.positionals.last().is_some_and(|p| p.times == Times::Rest);
            let verbatim = only_positionals || rest && !args.positionals.is_empty();
            if verbatim || word == "-" || !word.starts_with('-') {
                args.positionals.push(word);
            } else if word == "--" {
                only_positionals = true;
            } else if let Some(long) = word.strip_prefix("--") {
                args.long(long, &mut words)?;
            } else {
                args.short(&word[1..], &mut words)?;
            }
        }
        if !args.has("help") {
            args.count()?;
        }
        Ok(args)
    }

    fn long(&mut self, word: &str, words: &mut impl Iterator<Item = String>) -> Result<(), Failure> {
        let (name, given) = match word.split_once('=') {
            Some((name, given)) => (name, Some(given.to_owned())),
            None => (word, None),
        };
        let flag = self.command.flags().find(|flag| flag.name == name).ok_or_else(|| self.unknown(name))?;
        match (flag.value, given) {
            (None, Some(_)) => Err(self.wrong(&format!("--{name} is a switch and takes no value"))),
            (None, None) => self.put(flag, String::new()),
            (Some(_), Some(given)) => self.put(flag, given),
            (Some(_), None) => self.next(flag, words),
        }
    }

    fn short(&mut self, letters: &str, words: &mut impl Iterator<Item = String>) -> Result<(), Failure> {
        let mut rest = letters.chars();
        while let Some(letter) = rest.next() {
            let flag = self.command.flags().find(|flag| flag.short == Some(letter));
            let flag = flag.ok_or_else(|| self.wrong(&format!("unknown flag -{letter}")))?;
            if flag.value.is_none() {
                self.put(flag, String::new())?;
                continue;
            }
            let given = rest.as_str();
            let given = given.strip_prefix('=').unwrap_or(given);
            return if given.is_empty() { self.next(flag, words) } else { self.put(flag, given.to_owned()) };
        }
        Ok(())
    }

    fn next(&mut self, flag: &'static Flag, words: &mut impl Iterator<Item = String>) -> Result<(), Failure> {
        let name = flag.value.unwrap_or_default();
        let given = words.next().ok_or_else(|| self.wrong(&format!("--{} needs a value: {name}", flag.name)))?;
        self.put(flag, given)
    }

    fn put(&mut self, flag: &'static Flag, given: String) -> Result<(), Failure> {
        if self.flags.contains_key(flag.name) && !flag.repeat && flag.value.is_some() {
            return Err(self.wrong(&format!("--{} is given twice", flag.name)));
        }
        self.flags.entry(flag.name).or_default().push(given);
        Ok(())
    }

    fn count(&self) -> Result<(), Failure> {
        let given = self.positionals.len();
        let least = self.command.positionals.iter().filter(|p| matches!(p.times, Times::Once | Times::Many)).count();
        if given < least {
            let missing = self.command.positionals.iter().filter(|p| matches!(p.times, Times::Once | Times::Many));
            let missing = missing.map(|p| p.name).nth(given).unwrap_or_default();
            return Err(self.wrong(&format!("{missing} is missing")));
        }
        let open =
            self.command.positionals.last().is_some_and(|p| matches!(p.times, Times::Many | Times::Any | Times::Rest));
        if !open && given > self.command.positionals.len() {
            return Err(self.wrong(&format!("{:?} is one argument too many", self.at(self.command.positionals.len()))));
        }
        Ok(())
    }

    fn unknown(&self, name: &str) -> Failure {
        let close = closest(name, self.command.flags().map(|flag| flag.name));
        let hint = close.map_or_else(String::new, |close| format!("; did you mean --{close}?"));
        self.wrong(&format!("unknown flag --{name}{hint}"))
    }

    fn wrong(&self, why: &str) -> Failure {
        let name = self.command.name();
        Failure::usage(format!("{name}: {why} (\"coffer {name} --help\" says more)"))
    }
}

/// The name that is most like `word`, if one is.
pub fn closest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).clamp(1, 3);
    names.map(|name| (distance(word, name), name)).filter(|(d, _)| *d <= limit).min().map(|(_, name)| name)
}

/// How many letters are to be put in, taken out, replaced or swapped with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let mut best = (rows[i - 1][j] + 1)
                    .min(rows[i][j - 1] + 1)
                    .min(rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]));
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands;

    fn parse(line: &[&str]) -> Result<Args, Failure> {
        let words: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        commands::parse(words)
    }

    fn error(line: &[&str]) -> String {
        parse(line).err().unwrap_or_else(|| panic!("{line:?} is taken")).text
    }

    #[test]
    fn flags_end_where_the_command_of_the_container_begins() {
        let args =
            parse(&["run", "-it", "--rm", "-e", "A=1", "--env=B=2", "-eC=3", "busybox", "ls", "-l", "--", "--rm"]);
        let args = args.unwrap();
        assert!(args.has("interactive") && args.has("tty") && args.has("rm") && !args.has("detach"));
        assert_eq!(args.all("env"), ["A=1", "B=2", "C=3"]);
        assert_eq!(args.at(0), "busybox");
        assert_eq!(args.from(1), ["ls", "-l", "--", "--rm"]);
        let args = parse(&["run", "--", "busybox", "--", "-x"]).unwrap();
        assert_eq!((args.at(0), args.from(1)), ("busybox", ["--".to_owned(), "-x".to_owned()].as_slice()));
    }

    #[test]
    fn global_flags_stand_anywhere_before_that() {
        for line in [
            ["-n", "shop", "-ojson", "run", "busybox", "true"],
            ["run", "-n", "shop", "--output=json", "busybox", "true"],
            ["-nshop", "run", "-o", "json", "busybox", "true"],
        ] {
            let args = parse(&line).unwrap();
            assert_eq!((args.value("namespace"), args.value("output")), (Some("shop"), Some("json")), "{line:?}");
            assert_eq!(args.from(0), ["busybox", "true"]);
        }
        assert!(!parse(&["run", "busybox", "-n", "x"]).unwrap().has("namespace"));
    }

    #[test]
    fn the_version_is_asked_for_as_of_any_program() {
        for line in [&["--version"][..], &["--socket", "/x", "--version"]] {
            assert_eq!(parse(line).unwrap().command.path, ["version"]);
        }
        assert!(error(&["--version", "ps"]).contains("unknown flag --version"));
    }

    #[test]
    fn arguments_and_flags_mix_where_nothing_foreign_follows() {
        let args = parse(&["rm", "a", "-f", "b"]).unwrap();
        assert!(args.has("force"));
        assert_eq!(args.from(0), ["a", "b"]);
        let args = parse(&["image", "import", "--rootfs", "/srv/root", "demo:latest"]).unwrap();
        assert_eq!(args.from(0), ["/srv/root", "demo:latest"]);
        assert_eq!(parse(&["image", "import", "-"]).unwrap().at(0), "-");
    }

    #[test]
    fn mistakes_are_named() {
        assert!(error(&["run", "--memroy", "1", "x"]).contains("did you mean --memory?"));
        assert!(error(&["run", "--frobnicate", "x"]).contains("unknown flag --frobnicate (\"coffer run --help\""));
        assert!(error(&["run", "-z", "x"]).contains("unknown flag -z"));
        assert!(error(&["run", "--rm=yes", "x"]).contains("takes no value"));
        assert!(error(&["run", "--name"]).contains("--name needs a value: NAME"));
        assert!(error(&["run", "--name", "a", "--name", "b", "x"]).contains("given twice"));
        assert!(error(&["inspect"]).contains("CONTAINER is missing"));
        assert!(error(&["ps", "x"]).contains("\"x\" is one argument too many"));
        assert!(error(&["rnu"]).contains("did you mean run?"));
        assert!(error(&["image", "plul", "x"]).contains("did you mean image pull?"));
        assert!(error(&["image"]).contains("import"));
        assert!(error(&[]).contains("coffer help"));
    }

    #[test]
    fn a_wrong_command_line_has_the_code_of_its_command() {
        let code = |line: &[&str]| parse(line).err().unwrap_or_else(|| panic!("{line:?} is taken")).code;
        for line in [
            &["run", "--bogus", "x"][..],
            &["-n", "default", "run", "--bogus", "x"],
            &["--socket", "S", "run", "--rm=1"],
            &["restore", "--bogus", "x"],
            &["restore"],
        ] {
            assert_eq!(code(line), Some(125), "{line:?}");
        }
        assert_eq!(code(&["-n", "run", "rm", "--bogus", "x"]), Some(1));
        assert_eq!(code(&["-n", "run", "nonsense"]), None);
        use std::os::unix::ffi::OsStringExt as _;
        let words = ["run", "x"].map(std::ffi::OsString::from).into_iter();
        let foreign = std::ffi::OsString::from_vec(b"\xff".to_vec());
        let failure = commands::read(words.chain([foreign])).err().unwrap();
        assert_eq!((failure.code, failure.text.contains("is not UTF-8")), (Some(125), true));
    }

    #[test]
    fn a_noun_has_help_too() {
        for line in [&["image", "--help"][..], &["image", "-h"], &["--help", "image"]] {
            let args = parse(line).unwrap();
            assert_eq!((args.command.path, args.from(0)), (&["help"][..], &["image".to_owned()][..]), "{line:?}");
        }
        assert!(error(&["image"]).contains("image what?"));
    }

    #[test]
    fn every_flag_of_every_command_is_taken() {
        for command in commands::ALL {
            let mut names: Vec<&str> = command.flags().map(|flag| flag.name).collect();
            let mut shorts: Vec<char> = command.flags().filter_map(|flag| flag.short).collect();
            let (count, short_count) = (names.len(), shorts.len());
            names.sort_unstable();
            names.dedup();
            shorts.sort_unstable();
            shorts.dedup();
            assert_eq!((names.len(), shorts.len()), (count, short_count), "{}: a name is used twice", command.name());
            for flag in command.flags() {
                for form in ["long", "equals", "short"] {
                    let mut line: Vec<String> = command.path.iter().map(|&word| word.to_owned()).collect();
                    match (form, flag.value, flag.short) {
                        ("long", None, _) => line.push(format!("--{}", flag.name)),
                        ("long", Some(_), _) => line.extend([format!("--{}", flag.name), "v".into()]),
                        ("equals", Some(_), _) => line.push(format!("--{}=v", flag.name)),
                        ("short", None, Some(short)) => line.push(format!("-{short}")),
                        ("short", Some(_), Some(short)) => line.push(format!("-{short}v")),
                        _ => continue,
                    }
                    line.extend(command.positionals.iter().map(|p| p.name.to_lowercase()));
                    let args = commands::parse(line)
                        .unwrap_or_else(|e| panic!("{} --{}: {}", command.name(), flag.name, e.text));
                    assert_eq!(args.all(flag.name), [if flag.value.is_some() { "v" } else { "" }]);
                    assert!(!flag.help.is_empty());
                }
            }
        }
    }
}
