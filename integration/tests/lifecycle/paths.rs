//! Streams that are FIFOs and files of the host.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use cofferdam_client::{Input, Output, ProcessOptions, Stdio};
use cofferdam_integration::{Arrivals, Daemon, bounded, until};
use cofferdam_types::Code;

use crate::{idle, script, start};

fn fifo(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn fifos_outlive_their_readers_and_writers() {
    let daemon = Daemon::with_busybox();
    let dir = tempfile::tempdir().unwrap();
    bounded(async {
        let client = daemon.client().await;
        for log in [false, true] {
            let (stdin, stdout) = (fifo(dir.path(), &format!("in-{log}")), fifo(dir.path(), &format!("out-{log}")));
            // Nobody has opened either yet.
            let mut request = script(&daemon, &format!("box-{log}"), "echo early; cat; echo end");
            request.stdio.stdin = Input::Fifo(stdin.clone());
            request.stdio.stdout = Output::Fifo(stdout.clone());
            request.log = log;
            let run = start(&client, request).await;
            let mut one = File::open(&stdout).unwrap();
            let mut buffer = [0; 6];
            one.read_exact(&mut buffer).unwrap();
            assert_eq!(&buffer, b"early\n");
            drop(one);
            // Writers come and go; so do readers.
            for word in ["one", "two"] {
                let mut writer = File::options().write(true).open(&stdin).unwrap();
                writeln!(writer, "{word}").unwrap();
            }
            let mut two = File::open(&stdout).unwrap();
            let mut buffer = [0; 8];
            two.read_exact(&mut buffer).unwrap();
            assert_eq!(&buffer, b"one\ntwo\n");
            let rest = Arrivals::new(two.into());
            run.task().close_stdin().await.unwrap();
            assert_eq!(rest.text().await, "end\n", "log {log}");
            assert_eq!(run.wait().await.unwrap().status, 0);
            if log {
                assert_eq!(crate::log::read(&run.container(), false).await.0, b"early\none\ntwo\nend\n");
            }
        }
    });
}

#[test]
fn another_process_and_who_attaches_have_them_too() {
    let daemon = Daemon::with_busybox();
    let dir = tempfile::tempdir().unwrap();
    bounded(async {
        let (_, task) = idle(&daemon.open().await, "home").await;
        let (stdin, stdout) = (fifo(dir.path(), "in"), fifo(dir.path(), "out"));
        let options = ProcessOptions { args: vec!["cat".into()], ..ProcessOptions::default() };
        let streams =
            Stdio { stdin: Input::Fifo(stdin.clone()), stdout: Output::Fifo(stdout.clone()), ..Stdio::default() };
        let exec = task.exec("cat", &options, streams);
        exec.start().await.unwrap();
        // The shim opened it when the process was made.
        let out = Arrivals::new(File::open(&stdout).unwrap().into());
        File::options().write(true).open(&stdin).unwrap().write_all(b"through\n").unwrap();
        out.contains("through").await;
        exec.close_stdin().await.unwrap();
        assert_eq!(exec.wait().await.unwrap().status, 0);
        assert_eq!(out.text().await, "through\n");

        let client = daemon.client().await;
        let mut request = script(&daemon, "box", "cat");
        request.stdio.stdin = Input::Stream;
        request.log = true;
        let run = start(&client, request).await;
        let (watched, fed) = (fifo(dir.path(), "watched"), fifo(dir.path(), "fed"));
        // Open for both: nobody writes yet, and that is not its end.
        let out = Arrivals::new(File::options().read(true).write(true).open(&watched).unwrap().into());
        let attachment = run.task().attach(Stdio {
            stdin: Input::Fifo(fed.clone()),
            stdout: Output::Fifo(watched),
            ..Stdio::default()
        });
        run.task().state().await.unwrap();
        let mut feed = until("the shim has opened it", || {
            File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&fed).ok()
        });
        feed.write_all(b"from afar\n").unwrap();
        drop(feed);
        out.contains("from afar").await;
        run.task().close_stdin().await.unwrap();
        assert_eq!(run.wait().await.unwrap().status, 0);
        assert_eq!(attachment.wait().await.unwrap(), "exit");
    });
}

#[test]
fn files_are_read_and_appended_to() {
    let daemon = Daemon::with_busybox();
    let dir = tempfile::tempdir().unwrap();
    bounded(async {
        let client = daemon.client().await;
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("in"), "given\n").unwrap();
        for (log, kept) in [(false, "given\n"), (true, "given\ngiven\n")] {
            let mut request = script(&daemon, &format!("box-{log}"), "cat; echo oops >&2");
            request.stdio = Stdio {
                stdin: Input::File(path("in")),
                stdout: Output::File(path("out")),
                stderr: Output::File(path("err")),
                size: (0, 0),
            };
            request.log = log;
            let run = client.run(request).unwrap();
            assert_eq!(run.wait().await.unwrap().status, 0);
            assert_eq!(std::fs::read_to_string(path("out")).unwrap(), kept);
        }
        assert_eq!(std::fs::read_to_string(path("err")).unwrap(), "oops\noops\n");
        assert_eq!(std::fs::metadata(path("out")).unwrap().permissions().mode() & 0o777, 0o600);
    });
}

#[test]
fn what_is_none_is_refused_and_leaves_nothing() {
    let daemon = Daemon::with_busybox();
    let dir = tempfile::tempdir().unwrap();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let pipe = fifo(dir.path(), "fifo");
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("file"), "").unwrap();
        for (stdout, code) in [
            (Output::Fifo(path("file")), Code::InvalidArgument),
            (Output::Fifo(path("missing")), Code::NotFound),
            (Output::Fifo("relative".into()), Code::InvalidArgument),
            (Output::File(pipe), Code::InvalidArgument),
            (Output::File("/dev/null".into()), Code::InvalidArgument),
            (Output::File(path("")), Code::InvalidArgument),
            (Output::File("../relative".into()), Code::InvalidArgument),
        ] {
            let mut request = script(&daemon, "box", "true");
            request.stdio.stdout = stdout;
            let error = client.run(request).unwrap().started().await.unwrap_err();
            assert_eq!(error.code, code, "{error}");
        }
        let mut request = script(&daemon, "box", "true");
        request.stdio.stdin = Input::File(path("missing"));
        let error = client.run(request).unwrap().started().await.unwrap_err();
        assert_eq!((error.code, error.id.as_str()), (Code::NotFound, path("missing").as_str()), "{error}");
    });
    daemon.settles(&before);
}
