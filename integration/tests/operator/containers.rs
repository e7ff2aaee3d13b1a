//! What is done with containers that are there.

use std::{fs::File, io::Read as _, process::Stdio};

use cofferdam_integration::{BUSYBOX, Daemon, until};

use crate::{Said, idle, json, ok, say, shell};

#[test]
fn a_container_from_run_to_rm() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    idle(&daemon, "box");
    let table = ok(&daemon, &["ps"]);
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[0], row[1]), ("box", "docker.io/test/busybox:latest"), "{table}");
    assert!(table.contains("up "), "{table}");
    let listed = json(&daemon, &["ps"]);
    assert_eq!((listed[0]["id"].as_str(), listed.as_array().unwrap().len()), (Some("box"), 1), "{listed}");
    assert_eq!(ok(&daemon, &["ps", "-q"]), "box\n");

    let inspected = json(&daemon, &["inspect", "box"]);
    let pid = inspected["task"]["pid"].as_u64().unwrap();
    assert!(std::fs::exists(format!("/proc/{pid}")).unwrap(), "{inspected}");

    // Running, it is not removed; nothing happens to it.
    let said = say(&daemon, &["rm", "box"]);
    assert!(said.code != 0 && said.err.contains("running") && said.err.contains("stop it first"), "{said:?}");
    assert_eq!(ok(&daemon, &["kill", "--signal", "KILL", "box"]), "box\n");
    let said = say(&daemon, &["wait", "box"]);
    assert_eq!((said.code, said.out.as_str()), (137, "137\n"), "{said:?}");
    assert_eq!(ok(&daemon, &["ps", "-q"]), "");
    assert!(ok(&daemon, &["ps", "-a"]).contains("exited (137)"));
    assert_eq!(ok(&daemon, &["rm", "box"]), "box\n");
    assert_eq!(ok(&daemon, &["ps", "-aq"]), "");
    daemon.settles(&before);
}

#[test]
fn stop_asks_first_and_kills_in_the_end() {
    let daemon = Daemon::with_busybox();
    let script = |name: &str, script: &str| {
        assert_eq!(shell(&daemon, &["-d", "--name", name], script).code, 0);
        // Its trap must be set before it is asked.
        until("it is ready", || ok(&daemon, &["logs", name]).contains("ready").then_some(()));
    };
    script("polite", "trap 'echo bye; exit 3' TERM; echo ready; while :; do usleep 5000; done");
    script("deaf", "trap '' TERM; echo ready; while :; do usleep 5000; done");
    assert_eq!(ok(&daemon, &["stop", "polite"]), "polite\n");
    assert_eq!(say(&daemon, &["wait", "polite"]).code, 3);
    assert_eq!(ok(&daemon, &["logs", "polite"]), "ready\nbye\n");
    assert_eq!(ok(&daemon, &["stop", "-t", "0", "deaf"]), "deaf\n");
    assert_eq!(say(&daemon, &["wait", "deaf"]).code, 137);
    ok(&daemon, &["rm", "polite", "deaf"]);
}

#[test]
fn exec_is_a_command_beside_it() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "box");
    let said = say(
        &daemon,
        &["exec", "-e", "WHO=me", "-w", "/tmp", "-u", "app", "box", "sh", "-c", "echo $WHO $(pwd) $(id -u); exit 4"],
    );
    assert_eq!((said.code, said.out.as_str()), (4, "me /tmp 1000\n"), "{said:?}");
    let said = say(&daemon, &["exec", "box", "/no/such"]);
    assert_eq!((said.code, said.out.as_str()), (127, ""), "{said:?}");
    assert!(said.err.contains("/no/such"), "{said:?}");
    let said = say(&daemon, &["exec", "nobody", "true"]);
    assert!(said.code == 1 && said.err.contains("nobody") && said.err.contains("does not exist"), "{said:?}");
    ok(&daemon, &["exec", "-d", "box", "sh", "-c", "echo there > /tmp/made"]);
    until("it has run", || (say(&daemon, &["exec", "box", "cat", "/tmp/made"]).out == "there\n").then_some(()));
    // What was left running is known by the id that was printed.
    let id = ok(&daemon, &["exec", "-d", "box", "sleep", "1000"]);
    let id = id.trim();
    assert_eq!(ok(&daemon, &["kill", "--exec", id, "-s", "TERM", "box"]), "box\n");
    let said = say(&daemon, &["wait", "--exec", id, "box"]);
    assert_eq!((said.code, &*said.out), (143, "143\n"), "{said:?}");
    let said = say(&daemon, &["attach", "--exec", id, "box"]);
    assert!(said.code == 1 && said.err.contains("has ended"), "{said:?}");
    for args in [["wait", "--exec", id, "box", "other"], ["kill", "--exec", id, "--all", "box"]] {
        let said = say(&daemon, &args);
        assert!(said.code == 1 && said.err.contains("--exec"), "{said:?}");
    }
    assert_eq!(say(&daemon, &["wait", "--exec", "nothing", "box"]).code, 1);
    ok(&daemon, &["rm", "-f", "box"]);
    let said = say(&daemon, &["exec", "box", "true"]);
    assert!(said.code == 1 && said.err.contains("does not exist"), "{said:?}");
}

#[test]
fn logs_follow_to_the_end() {
    let daemon = Daemon::with_busybox();
    assert_eq!(
        shell(&daemon, &["-d", "--name", "box"], "echo one; echo two >&2; read x < /dev/zero; sleep 1000").code,
        0
    );
    let follow =
        daemon.command().args(["logs", "-f", "box"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("both lines are there", || {
        let said = say(&daemon, &["logs", "box"]);
        (said.out == "one\n" && said.err == "two\n").then_some(())
    });
    ok(&daemon, &["kill", "box"]);
    let said = Said::from(follow.wait_with_output().unwrap());
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "one\n", "two\n"));
    let stamped = ok(&daemon, &["logs", "--timestamps", "box"]);
    assert!(stamped.ends_with("Z one\n") && stamped.starts_with("20"), "{stamped}");
    let lines = ok(&daemon, &["logs", "-o", "json", "box"]);
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((first["stream"].as_str(), first["text"].as_str()), (Some("stdout"), Some("one\n")), "{lines}");
    ok(&daemon, &["rm", "box"]);
}

#[test]
fn over_several_names_it_goes_on_after_one_that_fails() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "one");
    idle(&daemon, "two");
    let said = say(&daemon, &["rm", "-f", "one", "missing", "two"]);
    assert_eq!((said.code, said.out.as_str()), (1, "one\ntwo\n"), "{said:?}");
    assert!(said.err.contains("missing"), "{said:?}");
}

#[test]
fn namespaces_are_apart() {
    let daemon = Daemon::with_busybox();
    ok(&daemon, &["namespace", "create", "shop"]);
    assert!(ok(&daemon, &["namespace", "ls"]).contains("shop"));
    let said = say(&daemon, &["-n", "shop", "run", "--rm", "--pull", "never", BUSYBOX, "true"]);
    assert!(said.code == 125 && said.err.contains("is not here"), "{said:?}");
    assert_eq!(json(&daemon, &["-n", "shop", "image", "ls"]), serde_json::json!([]));
    let said = say(&daemon, &["-n", "nowhere", "ps"]);
    assert!(said.code == 1 && said.err.contains("coffer namespace create nowhere"), "{said:?}");
    let said = say(&daemon, &["namespace", "rm", daemon.namespace()]);
    assert!(said.code == 1 && said.err.contains("must be empty"), "{said:?}");
    ok(&daemon, &["namespace", "rm", "shop"]);
    assert!(!ok(&daemon, &["namespace", "ls"]).contains("shop"));
}

#[test]
fn a_namespace_goes_with_what_its_images_left() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let blobs = || std::fs::read_dir(daemon.root().join("content/blobs/sha256")).unwrap().count();
    let had = blobs();
    ok(&daemon, &["namespace", "create", "shop"]);
    let own = daemon.path().join("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("file"), "of this image alone").unwrap();
    ok(&daemon, &["-n", "shop", "image", "import", "--rootfs", own.to_str().unwrap(), "own:1"]);
    let shared = cofferdam_integration::images().join("rootfs/busybox");
    ok(&daemon, &["-n", "shop", "image", "import", "--rootfs", shared.to_str().unwrap(), BUSYBOX]);
    assert!(blobs() > had);
    let said = say(&daemon, &["namespace", "rm", "shop"]);
    assert!(said.code == 1 && said.err.contains("holds images"), "{said:?}");
    ok(&daemon, &["-n", "shop", "image", "rm", "own:1", BUSYBOX]);
    ok(&daemon, &["-n", "shop", "snapshot", "prepare", "mine"]);
    let said = say(&daemon, &["namespace", "rm", "shop"]);
    assert!(said.code == 1 && said.err.contains("holds snapshots"), "{said:?}");
    ok(&daemon, &["-n", "shop", "snapshot", "rm", "mine"]);
    let file = own.join("file");
    let digest = ok(&daemon, &["-n", "shop", "content", "ingest", "mine", file.to_str().unwrap()]);
    let wrong = say(&daemon, &["-n", "shop", "content", "ingest", "part", file.to_str().unwrap(), "--size", "1000"]);
    assert_eq!(wrong.code, 1, "{wrong:?}");
    let said = say(&daemon, &["namespace", "rm", "shop"]);
    assert!(said.code == 1 && said.err.contains(&format!("a blob made by hand, {}", digest.trim_end())), "{said:?}");
    ok(&daemon, &["-n", "shop", "content", "rm", digest.trim_end()]);
    let said = say(&daemon, &["namespace", "rm", "shop"]);
    assert!(said.code == 1 && said.err.contains("an ingest that is under way, part"), "{said:?}");
    ok(&daemon, &["-n", "shop", "content", "abort", "part"]);

    ok(&daemon, &["namespace", "rm", "shop"]);
    daemon.settles(&before);
    until("its blobs are gone", || (blobs() == had).then_some(()));
    // What both had the other one still has.
    assert_eq!(shell(&daemon, &["--rm"], "exit 3").code, 3);
}

#[test]
fn events_are_a_line_each() {
    let daemon = Daemon::with_busybox();
    assert_eq!(shell(&daemon, &["--rm", "--name", "box"], "exit 5").code, 5);
    let mut follow = daemon
        .command()
        .args(["events", "--after", "0", "--filter", "event.container_id==box", "-o", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = std::io::BufReader::new(follow.stdout.take().unwrap());
    let mut topics = Vec::new();
    for line in std::io::BufRead::lines(out) {
        let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["topic"] == "/tasks/exit" {
            assert_eq!(event["event"]["exit_status"], 5, "{event}");
        }
        topics.push(event["topic"].as_str().unwrap().to_owned());
        if topics.last().unwrap() == "/tasks/delete" {
            break;
        }
    }
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    follow.kill().unwrap();
    follow.wait().unwrap();
}

#[test]
fn programs_get_json_of_everything() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "one");
    idle(&daemon, "two");
    let mut names = json(&daemon, &["ps", "-aq"]);
    names.as_array_mut().unwrap().sort_by_key(|name| name.to_string());
    assert_eq!(names, serde_json::json!(["one", "two"]));
    assert!(json(&daemon, &["ps"])[0].get("spec").is_none(), "a list doesn't have it");
    assert!(json(&daemon, &["inspect", "one"])["spec"]["process"].is_object());
    assert_eq!(json(&daemon, &["stop", "-t", "0", "one", "two"]), serde_json::json!(["one", "two"]));
    let said = say(&daemon, &["rm", "one", "missing", "-o", "json"]);
    assert_eq!((said.code, said.out.as_str()), (1, "[\"one\"]\n"), "{said:?}");
    assert_eq!(json(&daemon, &["rm", "two"]), serde_json::json!(["two"]));
    assert_eq!(json(&daemon, &["namespace", "create", "shop"])["name"], "shop");
    assert_eq!(json(&daemon, &["namespace", "rm", "shop"]), serde_json::json!(["shop"]));

    assert_eq!(json(&daemon, &["image", "ls", "-q"]), serde_json::json!(["docker.io/test/busybox:latest"]));
    let image = &json(&daemon, &["image", "ls"])[0];
    assert!(image["platform"]["os"] == "linux" && image["size"].as_u64() > Some(0), "{image}");
    assert_eq!(image["unpacked"], true, "{image}");
    let snapshot = &json(&daemon, &["snapshot", "ls", "-u"])[0];
    assert!(snapshot["size"].as_u64() > Some(0) && snapshot["inodes"].as_u64() > Some(0), "{snapshot}");
    assert!(json(&daemon, &["snapshot", "ls"])[0].get("size").is_none(), "it was not asked for");
    for job in json(&daemon, &["job", "ls"]).as_array().unwrap() {
        let items = job["items"].as_array().unwrap();
        assert!(!items.is_empty() && items.iter().all(|item| item["phase"] == "done"), "{job}");
    }
}

#[test]
fn a_filter_that_asks_for_nothing_that_is_there_is_an_error() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "box");
    assert_eq!(ok(&daemon, &["ps", "-q", "--filter", "image~=busybox"]), "box\n");
    assert_eq!(ok(&daemon, &["ps", "-q", "--filter", "labels.tier==db"]), "");
    for (args, words) in [
        (vec!["ps", "--filter", "foo"], vec![">|f|<", "id, image, runtime.name, labels.KEY"]),
        (vec!["ps", "--filter", "nosuch==x"], vec![">|n|<", "\"nosuch\""]),
        (vec!["ps", "--filter", "id=="], vec!["expected value"]),
        (vec!["image", "ls", "--filter", "name~=["], vec![">|[|<", "not a regular expression"]),
        (vec!["snapshot", "ls", "--filter", "size==1"], vec!["key, name, parent, kind, labels.KEY"]),
        (vec!["content", "ls", "--filter", "size==1"], vec!["digest, labels.KEY"]),
        (vec!["events", "--filter", "container==box"], vec!["namespace, topic, event.KEY"]),
    ] {
        let said = say(&daemon, &args);
        assert!(said.code == 1 && said.out.is_empty(), "{args:?}: {said:?}");
        assert!(words.iter().all(|word| said.err.contains(word)), "{args:?}: {said:?} should say {words:?}");
    }
    ok(&daemon, &["rm", "-f", "box"]);
}

#[test]
fn a_name_that_is_taken_is_said_once() {
    let daemon = Daemon::with_busybox();
    let taken = |args: &[&str], sentence: &str| {
        let said = say(&daemon, args);
        assert_eq!((said.code, said.err.as_str()), (if args[0] == "run" { 125 } else { 1 }, sentence), "{args:?}");
    };
    ok(&daemon, &["namespace", "create", "shop"]);
    let sentence = "coffer: namespace shop: is there already: choose another name, or work in it\n";
    taken(&["namespace", "create", "shop"], sentence);
    ok(&daemon, &["namespace", "rm", "shop"]);
    // Both ask at once: whichever comes second is told the same, however far the first has come.
    let sentence = "coffer: container rc: is there already: choose another name or remove it\n";
    for _ in 0..8 {
        let args = ["run", "-d", "--name", "rc", BUSYBOX, "sleep", "1000"];
        let start = || daemon.command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let both = [start(), start()].map(|child| Said::from(child.wait_with_output().unwrap()));
        let mut codes = both.each_ref().map(|said| said.code);
        codes.sort_unstable();
        assert_eq!(codes, [0, 125], "{both:?}");
        let second = both.iter().find(|said| said.code != 0).unwrap();
        assert_eq!(second.err, sentence, "{both:?}");
        ok(&daemon, &["rm", "-f", "rc"]);
    }
}

/// A program whose standard output, or error, takes nothing.
fn deaf(daemon: &Daemon, args: &[&str], error: bool, to: impl Into<Stdio>) -> Said {
    let mut command = daemon.command();
    command.args(args);
    if error {
        command.stderr(to)
    } else {
        command.stdout(to)
    };
    command.output().unwrap().into()
}

#[test]
fn what_can_not_be_said_changes_no_exit_code() {
    let daemon = Daemon::with_busybox();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(deaf(&daemon, &["inspect", "nosuch"], true, full()).code, 1);
    assert_eq!(deaf(&daemon, &["rm", "nosuch", "neither"], true, full()).code, 1);
    assert_eq!(deaf(&daemon, &["run", "nosuch", "--pull", "never"], true, full()).code, 125);
    let said = deaf(&daemon, &["image", "ls"], false, full());
    assert!(said.code == 1 && said.err.contains("standard output: No space left"), "{said:?}");
    // A reader who has left is nobody to tell anything: as a shell has it for `... | head`.
    let (read, write) = cofferdam_integration::pipe();
    drop(read);
    let said = deaf(&daemon, &["image", "ls"], false, write);
    assert_eq!((said.code, said.err.as_str()), (141, ""));
}

#[test]
fn who_attaches_to_a_container_without_input_sees_its_output() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let script = "while [ ! -e /end ]; do echo tick; sleep 0.02; done; exit 4";
    ok(&daemon, &["run", "-d", "--name", "box", BUSYBOX, "sh", "-c", script]);
    let mut command = daemon.command();
    let mut program = command.args(["attach", "box"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut tick = [0; 5];
    program.stdout.as_mut().unwrap().read_exact(&mut tick).unwrap();
    assert_eq!(&tick, b"tick\n");
    // Output that can't be written is no leaving.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let said = deaf(&daemon, &["attach", "--no-stdin", "box"], false, full);
    assert!(said.code == 1 && said.err.contains("can't be written"), "{said:?}");

    ok(&daemon, &["exec", "box", "touch", "/end"]);
    let said = Said::from(program.wait_with_output().unwrap());
    assert_eq!((said.code, said.err.as_str()), (4, ""));
    let said = say(&daemon, &["attach", "box"]);
    assert!(said.code == 1 && said.err.contains("has ended") && said.err.contains("coffer logs box"), "{said:?}");
    ok(&daemon, &["rm", "box"]);
    daemon.settles(&before);
}

/// Whether a process has a socket that is connected to another.
fn connected(pid: u32) -> bool {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets: Vec<_> = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect();
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    table.lines().any(|line| {
        // Num RefCount Protocol Flags Type St Inode
        let fields: Vec<&str> = line.split_whitespace().collect();
        let socket = std::path::PathBuf::from(format!("socket:[{}]", fields[6]));
        fields[5] == "03" && targets.contains(&socket)
    })
}

#[test]
fn an_exec_that_the_daemons_end_met_is_made_by_the_next_one() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    idle(&daemon, "box");
    // It takes connections and reads nothing.
    let pid = nix::unistd::Pid::from_raw(daemon.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    let mut command = daemon.command();
    let args = ["exec", "box", "sh", "-c", "echo made; exit 6"];
    let program = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it is connected", || connected(program.id()).then_some(()));
    daemon.restart();
    let said = Said::from(program.wait_with_output().unwrap());
    assert_eq!((said.code, said.out.as_str()), (6, "made\n"), "{said:?}");
    ok(&daemon, &["rm", "-f", "box"]);
    daemon.settles(&before);
}

#[test]
fn a_command_that_could_not_be_executed_leaves_no_trace() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "box");
    for flags in [&[][..], &["-d"]] {
        let said = say(&daemon, &[&["exec"], flags, &["box", "/no/such/program"]].concat());
        assert_eq!(said.code, 127, "{said:?}");
    }
    // What is deleted is there until its end is written down.
    cofferdam_integration::until("there is the container's own record alone", || {
        let records = std::fs::read_dir(daemon.state().join("shims")).unwrap().flat_map(|shim| {
            let files = std::fs::read_dir(shim.unwrap().path()).unwrap();
            files.map(|file| file.unwrap().file_name().into_string().unwrap())
        });
        let records: Vec<_> = records.filter(|name| name.ends_with(".life")).collect();
        (records == ["box.life"]).then_some(())
    });
    ok(&daemon, &["rm", "-f", "box"]);
}
