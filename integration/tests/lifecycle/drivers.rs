//! How a container's output is kept: log drivers, bounds, and what becomes of output that can't be kept.

use std::{
    cell::RefCell,
    io::Write as _,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Stdio as Pipes,
    rc::Rc,
};

use cofferdam_client::{Container, LogOptions, LogStream, Output, Stdio, block_on, channel};
use cofferdam_integration::{Daemon, bounded, input, output, until, until_async};
use cofferdam_types::{Code, Timestamp};

use crate::{log::read, script, start, with};

/// The smallest files that there can be, two of them.
const SMALL: [(&str, &str); 2] = [("max-size", "256k"), ("max-file", "2")];

fn options(pairs: &[(&str, &str)]) -> cofferdam_types::Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn log_dir(daemon: &Daemon, id: &str) -> PathBuf {
    daemon.root().join("logs").join(daemon.namespace()).join(id)
}

/// The files of a log: names and sizes.
fn files(dir: &Path) -> Vec<(String, u64)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            // It may be rotated away meanwhile.
            Some((entry.file_name().into_string().unwrap(), entry.metadata().ok()?.len()))
        })
        .collect();
    all.sort();
    all
}

/// What of a log is asked for, and what is said to be missing.
async fn asked(container: &Container, options: LogOptions) -> (String, Vec<String>) {
    let kept = Rc::new(RefCell::new((Vec::new(), Vec::new())));
    let into = kept.clone();
    let take = move |record: cofferdam_client::LogRecord<'_>| {
        let mut into = into.borrow_mut();
        into.0.extend(record.bytes);
        into.1.extend((!record.lost.is_empty()).then(|| record.lost.to_owned()));
        Ok(())
    };
    container.logs_with(&options, take).await.unwrap();
    let (bytes, lost) = kept.take();
    (String::from_utf8(bytes).unwrap(), lost)
}

#[test]
fn each_driver_that_keeps_files_has_its_format_and_gives_it_all_back() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        for driver in ["local", "json-file", "cri"] {
            let mut request = script(&daemon, driver, "printf 'a \"b\"\\n'; printf 'err\\n' >&2; printf half");
            request.log = true;
            request.container.log_driver = driver.into();
            request.container.labels = options(&[("tier", "front")]);
            request.container.log_options =
                if driver == "json-file" { options(&[("labels", "tier,none")]) } else { options(&SMALL) };
            let run = client.run(request).unwrap();
            assert_eq!(run.wait().await.unwrap().status, 0);
            assert_eq!(read(&run.container(), false).await, (b"a \"b\"\nhalf".to_vec(), b"err\n".to_vec()), "{driver}");
            let info = run.container().info().await.unwrap();
            assert_eq!(info.log_driver, driver);
            assert_eq!(info.task.unwrap().log_lost, 0);
            let bytes = std::fs::read(log_dir(&daemon, driver).join("output.log")).unwrap();
            if driver == "local" {
                assert_eq!(info.log_options, options(&[("max-size", "262144"), ("max-file", "2")]));
                continue;
            }
            let text = String::from_utf8(bytes).unwrap();
            let of = |stream: &str| text.lines().filter(|line| line.contains(stream)).collect::<Vec<_>>();
            if driver == "cri" {
                let parts = |line: &str| line.split_once(' ').unwrap().1.to_owned();
                let out: Vec<String> = of(" stdout ").into_iter().map(parts).collect();
                assert_eq!(out, ["stdout F a \"b\"", "stdout P half"]);
                assert_eq!(of(" stderr ").into_iter().map(parts).collect::<Vec<_>>(), ["stderr F err"]);
            } else {
                let first: serde_json::Value = serde_json::from_str(of("\"stdout\"")[0]).unwrap();
                assert_eq!(
                    (first["log"].as_str(), &first["attrs"]),
                    (Some("a \"b\"\n"), &serde_json::json!({"tier": "front"}))
                );
                assert!(Timestamp::parse_rfc3339(first["time"].as_str().unwrap()).is_some(), "{first}");
            }
        }
    });
}

#[test]
fn lines_are_asked_for_by_time_stream_and_number() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (stdin, feed) = input();
        let mut request = script(&daemon, "box", "seq 1 5; read x; echo oops >&2; seq 6 9");
        request.stdio.stdin = stdin;
        request.log = true;
        request.container.log_driver = "json-file".into();
        let run = start(&client, request).await;
        let container = run.container();
        until_async("the first lines", async || {
            let (text, _) = asked(&container, LogOptions::default()).await;
            (text == "1\n2\n3\n4\n5\n").then_some(())
        })
        .await;
        let between = Timestamp::now();
        (&feed).write_all(b"\n").unwrap();
        assert_eq!(run.wait().await.unwrap().status, 0);
        let get = async |options: LogOptions| asked(&container, options).await.0;
        let all = LogOptions::default();
        assert_eq!(get(LogOptions { until: between, ..all }).await, "1\n2\n3\n4\n5\n");
        assert_eq!(get(LogOptions { until: between, tail: Some(2), ..all }).await, "4\n5\n");
        assert_eq!(get(LogOptions { since: between, stream: Some(LogStream::Stdout), ..all }).await, "6\n7\n8\n9\n");
        assert_eq!(get(LogOptions { stream: Some(LogStream::Stderr), ..all }).await, "oops\n");
        assert_eq!(get(LogOptions { tail: Some(3), stream: Some(LogStream::Stdout), ..all }).await, "7\n8\n9\n");
        assert_eq!(get(LogOptions { tail: Some(0), ..all }).await, "");
        assert_eq!(get(LogOptions { tail: Some(0), follow: true, ..all }).await, "");
    });
}

/// A log that is followed through rotations and a restart of the daemon.
#[test]
fn who_follows_loses_nothing_over_rotations_and_a_restart() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (stdin, feed) = input();
        let mut request = script(&daemon, "box", "while read from to; do seq $from $to; done");
        request.stdio.stdin = stdin;
        request.log = true;
        request.container.log_driver = "cri".into();
        request.container.log_options = options(&[("max-size", "256k"), ("max-file", "50")]);
        let run = start(&client, request).await;
        let mut follow = daemon.command();
        follow.args(["logs", "-f", "box"]).stdout(Pipes::piped()).stderr(Pipes::piped());
        let mut follow = follow.spawn().unwrap();
        let seen = cofferdam_integration::Arrivals::new(follow.stdout.take().unwrap().into());
        (&feed).write_all(b"1 20000\n").unwrap();
        seen.contains("\n20000\n").await;
        daemon.kill9();
        (&feed).write_all(b"20001 40000\n").unwrap();
        until("it is rotated while no daemon runs", || (files(&log_dir(&daemon, "box")).len() > 6).then_some(()));
        daemon.restart();
        (&feed).write_all(b"40001 50000\n").unwrap();
        drop(feed);
        let expected: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
        let text = seen.text().await;
        assert!(text == expected, "{} of {} bytes", text.len(), expected.len());
        let ended = follow.wait_with_output().unwrap();
        assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
        assert_eq!(run.wait().await.unwrap().status, 0);
        assert!(asked(&run.container(), LogOptions::default()).await == (expected, vec![]));
    });
}

/// A writer without an end, against readers who don't read: memory and disk have their bounds.
#[test]
fn a_runaway_writer_is_bounded_everywhere() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (stdin, feed) = input();
        let mut request = script(&daemon, "box", "read x; exec yes 0123456789abcde");
        request.stdio.stdin = stdin;
        request.log = true;
        request.container.log_options = options(&SMALL);
        let run = start(&client, request).await;
        let shim = parent(run.task().state().await.unwrap().pid);
        let quiet = memory(shim, "VmRSS");
        // One attached to what is not read, one that follows the log and hangs.
        let (sink, _unread) = channel();
        let attachment = run.task().attach(Stdio { stdout: Output::Stream(sink), ..Stdio::default() });
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (told, hangs) = std::sync::mpsc::channel::<()>();
        let (socket, namespace) = (daemon.socket(), daemon.namespace().to_owned());
        let follower = std::thread::spawn(move || {
            block_on(async {
                let client = cofferdam_client::Client::connect(&socket).await.unwrap();
                let container = client.namespace(&namespace).containers().get("box");
                let mut hung = false;
                let take = move |_: cofferdam_client::LogRecord<'_>| {
                    if !std::mem::replace(&mut hung, true) {
                        told.send(()).unwrap();
                        let _ = wait.recv();
                    }
                    Ok(())
                };
                let _ = container.logs(true, take).await;
            })
            .unwrap();
        });
        (&feed).write_all(b"\n").unwrap();
        hangs.recv().unwrap();
        let daemon_before = memory(daemon.pid(), "VmRSS");
        let dir = log_dir(&daemon, "box");
        let newest = || {
            let numbers = files(&dir).into_iter().filter_map(|(name, _)| name.split('.').nth(1)?.parse::<u64>().ok());
            numbers.max().unwrap_or(0)
        };
        until("forty files were written", || (newest() > 40).then_some(()));
        for _ in 0..20 {
            let all = files(&dir);
            // A third one is there for a moment while the oldest goes.
            assert!(all.len() <= 3 && all.iter().all(|(_, size)| *size <= 256 << 10), "{all:?}");
        }
        assert_eq!(attachment.wait().await.unwrap(), "overflow");
        let (peak, daemon_after) = (memory(shim, "VmHWM"), memory(daemon.pid(), "VmRSS"));
        assert!(peak < quiet + 1024, "the shim had {quiet} KiB, and {peak} KiB at most");
        assert!(
            daemon_after < daemon_before + (24 << 10),
            "the daemon had {daemon_before} KiB, and has {daemon_after}"
        );
        run.kill(9).await.unwrap();
        assert_eq!(run.wait().await.unwrap().status, 137);
        drop(go);
        follower.join().unwrap();
    });
}

fn parent(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A small file system over a directory, for as long as this lives.
struct Disk(PathBuf);

impl Disk {
    fn new(at: PathBuf) -> Disk {
        let options = "size=128k,mode=0700";
        nix::mount::mount(Some("tmpfs"), &at, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options)).unwrap();
        Disk(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_costs_records_that_are_counted_and_shown_and_nothing_else() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let disk = Disk::new(daemon.root().join("logs"));
        let client = daemon.client().await;
        for driver in ["local", "json-file", "cri"] {
            let (stdin, feed) = input();
            let (stdout, seen) = output();
            let mut request =
                script(&daemon, driver, "echo first; read x; seq 1 20000; echo done; read x; echo last; exit 3");
            request.stdio = Stdio { stdin, stdout, ..Stdio::default() };
            request.log = true;
            request.container.log_driver = driver.into();
            let run = start(&client, request).await;
            seen.contains("first").await;
            let ballast = disk.0.join("ballast");
            let mut file = std::fs::File::create(&ballast).unwrap();
            while file.write_all(&[1; 4096]).is_ok() {}
            (&feed).write_all(b"\n").unwrap();
            seen.contains("done").await;
            let lost = run.container().info().await.unwrap().task.unwrap().log_lost;
            assert!(lost > 50_000, "{driver}: {lost}");
            std::fs::remove_file(&ballast).unwrap();
            (&feed).write_all(b"\n").unwrap();
            assert_eq!(run.wait().await.unwrap().status, 3, "{driver}");
            let (text, said) = asked(&run.container(), LogOptions::default()).await;
            assert!(text.starts_with("first\n") && text.ends_with("last\n"), "{driver}: {text:?}");
            let number = |said: &String| {
                assert!(said.ends_with(" bytes could not be written: was the disk full?"), "{said}");
                said.split(' ').next().unwrap().parse::<u64>().unwrap()
            };
            assert_eq!(said.iter().map(number).sum::<u64>(), lost, "{driver}: {said:?}");
            run.container().remove(false).await.unwrap();
        }
    });
}

#[test]
fn what_a_crash_left_half_written_is_not_shown() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        for driver in ["local", "json-file", "cri"] {
            let container = with(&namespace, driver, "echo told", |request| request.log_driver = driver.into());
            for turn in 0..2 {
                let task = container.create_task(Stdio::default(), true);
                task.start().await.unwrap();
                task.wait().await.unwrap();
                task.delete().await.unwrap();
                if turn == 0 {
                    let path = log_dir(&daemon, driver).join("output.log");
                    let record = std::fs::read(&path).unwrap();
                    let mut file = std::fs::File::options().append(true).open(&path).unwrap();
                    file.write_all(&record[..record.len() - 2]).unwrap();
                    assert_eq!(asked(&container, LogOptions::default()).await, ("told\n".into(), vec![]), "{driver}");
                }
            }
            let torn = vec!["a record was only half written".to_owned()];
            assert_eq!(asked(&container, LogOptions::default()).await, ("told\ntold\n".into(), torn), "{driver}");
        }
    });
}

#[test]
fn the_journal_gets_lines_with_their_container() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let text: &'static str = path.to_str().unwrap().to_owned().leak();
    let daemon = Daemon::with_flags(vec!["--journal", text].leak());
    daemon.import_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let request = |id: &str| {
            let mut request = script(&daemon, id, "echo hello; echo oops >&2");
            request.log = true;
            request.container.log_driver = "journald".into();
            request
        };
        // Nobody listens yet.
        let run = client.run(request("none")).unwrap();
        let error = run.started().await.unwrap_err();
        assert_eq!((error.code, error.kind.as_ref()), (Code::FailedPrecondition, "journal"), "{error}");
        assert!(error.message.contains("choose another log driver"), "{error}");

        let journal = UnixDatagram::bind(&path).unwrap();
        journal.set_read_timeout(Some(cofferdam_integration::DEADLINE)).unwrap();
        let run = client.run(request("box")).unwrap();
        assert_eq!(run.wait().await.unwrap().status, 0);
        let mut entries = Vec::new();
        for _ in 0..2 {
            let mut buffer = vec![0; 64 << 10];
            let n = journal.recv(&mut buffer).unwrap();
            entries.push(buffer[..n].to_vec());
        }
        for (priority, message) in [("6", "hello"), ("3", "oops")] {
            let has = |entry: &[u8], name: &str, value: &str| {
                let mut field = format!("{name}\n").into_bytes();
                field.extend((value.len() as u64).to_le_bytes());
                field.extend(value.bytes());
                entry.windows(field.len()).any(|window| window == field)
            };
            let found = entries.iter().any(|entry| {
                let facts = [("MESSAGE", message), ("PRIORITY", priority), ("CONTAINER_ID", "box")];
                facts.iter().all(|(name, value)| has(entry, name, value))
            });
            assert!(found, "{message}: {entries:?}");
        }
        let error = run.container().logs(false, |_| Ok(())).await.unwrap_err();
        assert!(error.code == Code::FailedPrecondition && error.message.contains("journalctl"), "{error}");
        run.container().remove(false).await.unwrap();
    });
    daemon.settles(&before);
}

/// It is slow and not stuck: who writes much to it is answered for as ever, and so is who shares his shim.
#[test]
fn a_journal_that_is_slow_holds_up_no_shim() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let text: &'static str = path.to_str().unwrap().to_owned().leak();
    let daemon = Daemon::with_flags(vec!["--journal", text].leak());
    daemon.import_busybox();
    let journal = UnixDatagram::bind(&path).unwrap();
    journal.set_read_timeout(Some(cofferdam_integration::DEADLINE)).unwrap();
    let (over, goes_on) = std::sync::mpsc::channel::<()>();
    let reader = std::thread::spawn(move || {
        use std::sync::mpsc::RecvTimeoutError::Timeout;
        while goes_on.recv_timeout(std::time::Duration::from_millis(100)) == Err(Timeout) {
            let _ = journal.recv(&mut [0; 1024]);
        }
    });
    bounded(async {
        let namespace = daemon.open().await;
        let mut tasks = Vec::new();
        for (id, script) in [("loud", "exec yes"), ("still", "exec sleep 1000")] {
            let container = with(&namespace, id, script, |request| {
                request.group = "pod".into();
                request.log_driver = "journald".into();
            });
            let task = container.create_task(Stdio::default(), true);
            task.start().await.unwrap();
            tasks.push(task);
        }
        until_async("lines are lost", async || {
            let info = namespace.containers().get("loud").info().await.unwrap();
            (info.task.unwrap().log_lost > 0).then_some(())
        })
        .await;
        // The daemon would give up on a shim after five seconds.
        for task in tasks.iter().rev() {
            assert_eq!(task.state().await.unwrap().status, cofferdam_client::Status::Running);
            let began = std::time::Instant::now();
            task.kill(9, false).await.unwrap();
            assert_eq!(task.wait().await.unwrap().status, 137);
            assert!(began.elapsed() < std::time::Duration::from_secs(4), "{:?}", began.elapsed());
        }
    });
    drop(over);
    reader.join().unwrap();
}

#[test]
fn what_is_not_kept_can_still_be_attached_to() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        let (stdin, feed) = input();
        let mut request = script(&daemon, "box", "read x; echo heard $x");
        request.stdio.stdin = stdin;
        request.log = true;
        request.container.log_driver = "none".into();
        let run = start(&client, request).await;
        let (stdout, seen) = output();
        let attachment = run.task().attach(Stdio { stdout, ..Stdio::default() });
        attachment.made().await.unwrap();
        (&feed).write_all(b"you\n").unwrap();
        assert_eq!(seen.text().await, "heard you\n");
        assert_eq!(run.wait().await.unwrap().status, 0);
        assert!(!log_dir(&daemon, "box").exists());
        let error = run.container().logs(false, |_| Ok(())).await.unwrap_err();
        assert!(error.code == Code::FailedPrecondition && error.message.contains("is not kept"), "{error}");
    });
}

#[test]
fn a_driver_or_an_option_that_is_not_there_is_refused_by_name() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        for (driver, pairs, named) in [
            ("syslog", options(&[]), "syslog"),
            ("local", options(&[("max-size", "1")]), "max-size"),
            ("none", options(&SMALL), "max-file"),
            ("json-file", options(&[("tag", "x")]), "tag"),
        ] {
            let container = with(&namespace, "box", "true", |request| {
                request.log_driver = driver.into();
                request.log_options = pairs;
            });
            let error = container.info().await.unwrap_err();
            assert_eq!((error.code, error.id.as_str()), (Code::InvalidArgument, named), "{error}");
        }
    });
    daemon.settles(&before);
}
