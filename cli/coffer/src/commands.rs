//! All commands, and how one is chosen.

use std::ffi::OsString;

use crate::{
    args::{Args, Command, GLOBAL, closest},
    failure::Failure,
    help, nouns,
};

/// Every command, in the order of the help.
pub static ALL: &[&Command] = &[
    &nouns::run::RUN,
    &nouns::container::PS,
    &nouns::exec::EXEC,
    &nouns::attach::ATTACH,
    &nouns::logs::LOGS,
    &nouns::container::KILL,
    &nouns::container::STOP,
    &nouns::lifecycle::START,
    &nouns::lifecycle::RESTART,
    &nouns::lifecycle::PAUSE,
    &nouns::lifecycle::RESUME,
    &nouns::container::WAIT,
    &nouns::stats::STATS,
    &nouns::top::TOP,
    &nouns::update::UPDATE,
    &nouns::cp::CP,
    &nouns::lifecycle::RENAME,
    &nouns::lifecycle::LABEL,
    &nouns::container::RM,
    &nouns::container::INSPECT,
    &nouns::diff::DIFF,
    &nouns::commit::COMMIT,
    &nouns::checkpoint::CHECKPOINT,
    &nouns::checkpoint::RESTORE,
    &nouns::image::PULL,
    &nouns::image::PUSH,
    &nouns::image::IMPORT,
    &nouns::image::EXPORT,
    &nouns::image::LS,
    &nouns::image::RM,
    &nouns::image_route::EXPLAIN,
    &nouns::image_check::INSPECT,
    &nouns::image_check::CHECK,
    &nouns::image_tag::TAG,
    &nouns::image_tag::UNTAG,
    &nouns::image_tag::LABEL,
    &nouns::image_tag::UNPACK,
    &nouns::image_convert::CONVERT,
    &nouns::image_check::PRUNE,
    &nouns::login::LOGIN,
    &nouns::login::LOGOUT,
    &nouns::login::LS,
    &nouns::artifact::PUSH,
    &nouns::artifact::PULL,
    &nouns::artifact::LS,
    &nouns::artifact::ATTACH,
    &nouns::content::LS,
    &nouns::content::GET,
    &nouns::content::INGEST,
    &nouns::content::ACTIVE,
    &nouns::content::ABORT,
    &nouns::content::RM,
    &nouns::content::LABEL,
    &nouns::content::EDIT,
    &nouns::snapshot::LS,
    &nouns::snapshot::TREE,
    &nouns::snapshot::PREPARE,
    &nouns::snapshot::VIEW,
    &nouns::snapshot::COMMIT,
    &nouns::snapshot::MOUNTS,
    &nouns::snapshot::INFO,
    &nouns::diff::SNAPSHOT_DIFF,
    &nouns::diff::SNAPSHOT_UNPACK,
    &nouns::diff::SNAPSHOT_MOUNT,
    &nouns::snapshot::USAGE,
    &nouns::snapshot::SET,
    &nouns::snapshot::LIMIT,
    &nouns::snapshot::RM,
    &nouns::lease::CREATE,
    &nouns::lease::LS,
    &nouns::lease::RENEW,
    &nouns::lease::ADD,
    &nouns::lease::DROP,
    &nouns::lease::HELD,
    &nouns::gc::GC,
    &nouns::gc::EXPLAIN,
    &nouns::gc::DF,
    &nouns::lease::RM,
    &nouns::namespace::LS,
    &nouns::namespace::CREATE,
    &nouns::namespace::SET,
    &nouns::namespace::RM,
    &nouns::network::LS,
    &nouns::network::INSPECT,
    &nouns::grant::CREATE,
    &nouns::grant::LS,
    &nouns::grant::SHOW,
    &nouns::grant::EXPLAIN,
    &nouns::grant_diff::DIFF,
    &nouns::grant::SAVE,
    &nouns::grant::EXPORT,
    &nouns::grant::UNEXPORT,
    &nouns::grant::REVOKE,
    &nouns::audit::AUDIT,
    &nouns::audit::VERIFY,
    &nouns::events::EVENTS,
    &nouns::job::LS,
    &nouns::job::WATCH,
    &nouns::job::CANCEL,
    &nouns::shim::LS,
    &nouns::shim::STATE,
    &nouns::system::STATUS,
    &nouns::system::CHECK,
    &nouns::system::CRASH,
    &nouns::system::VERSION,
    &nouns::system::HELP,
];

/// Reads a command line as it came from the system.
pub fn read(words: impl Iterator<Item = OsString>) -> Result<Args, Failure> {
    let mut foreign = None;
    let mut text = |word: OsString| {
        word.into_string().unwrap_or_else(|word| {
            let seen = word.to_string_lossy().into_owned();
            foreign.get_or_insert_with(|| seen.clone());
            seen
        })
    };
    let args = parse(words.map(&mut text).collect())?;
    match foreign {
        Some(word) => Err(Failure::usage(format!("{word:?} is not UTF-8")).or_code(args.command.failure)),
        None => Ok(args),
    }
}

/// Finds the command and reads its arguments. Global flags may stand in front of it.
pub fn parse(words: Vec<String>) -> Result<Args, Failure> {
    let of = |command: &'static Command, before, words| {
        Args::parse(command, before, words).map_err(|failure| failure.or_code(command.failure))
    };
    let mut words = words.into_iter().peekable();
    let mut before = Vec::new();
    while let Some(word) = words.next_if(|word| word.starts_with('-')) {
        let takes = GLOBAL.iter().any(|flag| {
            let long = word == format!("--{}", flag.name);
            let short = flag.short.is_some_and(|short| word == format!("-{short}"));
            flag.value.is_some() && (long || short)
        });
        before.push(word);
        if takes {
            before.extend(words.next());
        }
    }
    let help = || before.iter().any(|word| word == "--help" || word == "-h");
    let Some(first) = words.next() else {
        if help() {
            return Args::parse(&nouns::system::HELP, Vec::new(), Vec::new());
        }
        // No flag of any command: asked for where there is none.
        if before.iter().any(|word| word == "--version") {
            before.retain(|word| word != "--version");
            return of(&nouns::system::VERSION, before, Vec::new());
        }
        return Err(Failure::usage("what is to be done? \"coffer help\" lists the commands"));
    };
    // What has verbs may be a command itself: `audit`, `audit verify`.
    let both = words.peek().and_then(|second| ALL.iter().find(|command| command.path == [&*first, &**second]));
    if let Some(command) = both {
        return of(command, before, words.skip(1).collect());
    }
    if let Some(command) = ALL.iter().find(|command| command.path == [&*first]) {
        return of(command, before, words.collect());
    }
    let verbs = help::noun(&first);
    if verbs.is_empty() {
        let names = ALL.iter().map(|command| command.path[0]);
        let hint = closest(&first, names).map_or_else(String::new, |close| format!("; did you mean {close}?"));
        return Err(Failure::usage(format!("unknown command {first}{hint} (\"coffer help\" lists them)")));
    }
    let Some(second) = words.next() else {
        if help() {
            return Args::parse(&nouns::system::HELP, Vec::new(), vec![first]);
        }
        return Err(Failure::usage(format!("{first} what?\n{}", verbs.trim_end())));
    };
    if second == "--help" || second == "-h" {
        return Args::parse(&nouns::system::HELP, Vec::new(), vec![first]);
    }
    let names = ALL.iter().filter(|command| command.path.len() > 1 && command.path[0] == first);
    let close = closest(&second, names.map(|command| command.path[1]));
    let hint = close.map_or_else(String::new, |close| format!("; did you mean {first} {close}?"));
    Err(Failure::usage(format!("unknown command {first} {second}{hint}\n{}", verbs.trim_end())))
}
