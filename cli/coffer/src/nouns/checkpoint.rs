//! `checkpoint` and `restore`: what runs in a container becomes an image, and goes on from it.

use cofferdam_client::CheckpointOptions;

use crate::{
    args::{Command, Positional, Times, switch},
    cx::Cx,
    failure::Failure,
    nouns::run,
    progress,
};

/// `coffer restore`.
pub static RESTORE: Command = Command {
    path: &["restore"],
    about: "make a container from a checkpoint, and go on with what ran in it",
    positionals: &[Positional { name: "NAME", times: Times::Once }],
    flags: run::FLAGS,
    notes: "The same as \"coffer run --checkpoint NAME\". Command, environment, user and directory are those of the container\n\
            that was checkpointed, and its changed files are there. All else is as the flags say: give the mounts and\n\
            the network that it had, and -t if it had a terminal. A network is connected anew; connections are gone.",
    failure: 125,
    action: |cx| Box::pin(run::run(cx)),
};

/// `coffer checkpoint`.
pub static CHECKPOINT: Command = Command {
    path: &["checkpoint"],
    about: "make an image of what runs in a container, and end it",
    positionals: &[
        Positional { name: "CONTAINER", times: Times::Once },
        Positional { name: "NAME", times: Times::Once },
    ],
    flags: &[
        switch("leave-running", None, "don't end it: it goes on"),
        switch("tcp-established", None, "keep established TCP connections"),
        switch("ext-unix-sk", None, "keep unix sockets whose other end is outside"),
    ],
    notes: "NAME is that of the image. It holds the memory of the processes, and the files that were changed. \"coffer restore\"\n\
            goes on with it, here or, after \"coffer image export\" and \"coffer image import\", elsewhere. Needs criu on the\n\
            daemon's host. ctrl-c cancels: then the container goes on.",
    failure: 1,
    action: |cx| Box::pin(checkpoint(cx)),
};

async fn checkpoint(cx: Cx) -> Result<i32, Failure> {
    let options = CheckpointOptions {
        name: cx.args.at(1).to_owned(),
        leave_running: cx.args.has("leave-running"),
        tcp_established: cx.args.has("tcp-established"),
        unix_sockets: cx.args.has("ext-unix-sk"),
    };
    let job = cx.namespace().await?.containers().get(cx.args.at(0)).task().checkpoint(&options);
    let names = progress::follow(&job).await?;
    cx.names(names.iter().map(String::as_str))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use cofferdam_client::{PullPolicy, RunRequest};

    use super::*;
    use crate::commands;

    fn read(line: &[&str]) -> Result<RunRequest, Failure> {
        let words = line.iter().map(|word| (*word).to_owned()).collect();
        run::request(&commands::parse(words)?, "default")
    }

    #[test]
    fn a_checkpoint_is_restored_by_either_word() {
        for line in [&["restore", "--name", "web", "cp"][..], &["run", "--checkpoint", "--name", "web", "cp"]] {
            let request = read(line).unwrap();
            assert!(request.container.checkpoint && request.pull == PullPolicy::Never);
            assert_eq!((&*request.image.reference, &*request.container.id), ("cp", "web"));
        }
        assert!(!read(&["run", "x"]).unwrap().container.checkpoint);
        let both = read(&["run", "--checkpoint", "x", "ls"]).err().unwrap();
        assert!(both.text.contains("leave out the command"));
    }
}
