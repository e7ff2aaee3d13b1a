//! `coffer cp`: files out of containers and into them, whether they run or not, and whatever they put in the way.

use std::{
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Stdio,
};

use cofferdam_integration::{BUSYBOX, Daemon};

use crate::{Said, idle, ok, say, shell};

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// A container that runs, and one that has ended, with the same files.
fn both(daemon: &Daemon) {
    let script =
        "mkdir -p /d/sub && echo one > /d/f && chmod 640 /d/f && ln -s f /d/l && ln -s /d /way && echo two > /d/sub/g";
    assert_eq!(shell(daemon, &["--name", "ended"], script).code, 0);
    ok(daemon, &["run", "-d", "--name", "runs", BUSYBOX, "sh", "-c", &format!("{script}; exec sleep 1000")]);
    cofferdam_integration::until("the files are there", || {
        (say(daemon, &["exec", "runs", "test", "-e", "/d/sub/g"]).code == 0).then_some(())
    });
}

#[test]
fn files_come_out_of_a_container() {
    let daemon = Daemon::with_busybox();
    both(&daemon);
    for name in ["runs", "ended"] {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let to = |path: &str| at(path).to_str().unwrap().to_owned();
        // Under its own name into a directory, under another one, and what is in it.
        ok(&daemon, &["cp", &format!("{name}:/d"), &to("")]);
        ok(&daemon, &["cp", &format!("{name}:/d"), &to("other")]);
        ok(&daemon, &["cp", &format!("{name}:/d/."), &to("contents")]);
        for place in ["d", "other", "contents"] {
            assert_eq!(text(at(place).join("f")), "one\n", "{place}");
            assert_eq!(text(at(place).join("sub/g")), "two\n");
            assert_eq!(std::fs::read_link(at(place).join("l")).unwrap(), Path::new("f"));
            assert_eq!(at(place).join("f").metadata().unwrap().permissions().mode() & 0o777, 0o640);
        }
        ok(&daemon, &["cp", &format!("{name}:d/f"), &to("g")]);
        ok(&daemon, &["cp", &format!("{name}:/way/sub/g"), &to("g")]);
        assert_eq!(text(at("g")), "two\n", "a file takes the place of a file");
        ok(&daemon, &["cp", &format!("{name}:/way"), &to("link")]);
        assert_eq!(std::fs::read_link(at("link")).unwrap(), Path::new("/d"));
        let stream = daemon.coffer(&["cp", &format!("{name}:/d"), "-"]);
        assert!(stream.status.success());
        std::fs::write(at("stream.tar"), &stream.stdout).unwrap();
        let listed = std::process::Command::new("tar").arg("-tf").arg(at("stream.tar")).output().unwrap();
        assert_eq!(String::from_utf8(listed.stdout).unwrap(), "d\nd/f\nd/l\nd/sub\nd/sub/g\n");

        let left = std::fs::read_dir(dir.path()).unwrap().count();
        for (from, to, said) in [
            (format!("{name}:/none"), to("x"), "does not exist in the container"),
            (format!("{name}:/d/f/"), to("x"), "is not a directory"),
            (format!("{name}:/d"), to("no/x"), "is not a directory here"),
            ("nobody:/d".into(), to("x"), "container nobody"),
            (to("d"), to("x"), "one of FROM and TO"),
        ] {
            let refused = say(&daemon, &["cp", &from, &to]);
            assert!(refused.code != 0 && refused.err.contains(said), "{from}: {refused:?}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), left, "nothing is left of what failed");
    }
}

#[test]
fn files_go_into_a_container() {
    let daemon = Daemon::with_busybox();
    both(&daemon);
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    std::fs::create_dir(at("new")).unwrap();
    std::fs::write(at("new/file"), "three\n").unwrap();
    std::fs::write(at("new/.wh.f"), "four\n").unwrap();
    std::os::unix::fs::chown(at("new/file"), Some(1234), Some(1234)).unwrap();
    let from = at("new").to_str().unwrap().to_owned();
    for name in ["runs", "ended"] {
        let to = |path: &str| format!("{name}:{path}");
        ok(&daemon, &["cp", &from, &to("/d")]);
        ok(&daemon, &["cp", &from, &to("/d/named")]);
        ok(&daemon, &["cp", &format!("{from}/."), &to("/way/sub")]);
        ok(&daemon, &["cp", "-a", &format!("{from}/file"), &to("/d/owned")]);
        let mut pour = daemon.command();
        let mut pour = pour.args(["cp", "-", &to("/d/sub")]).stdin(Stdio::piped()).spawn().unwrap();
        let packed = std::process::Command::new("tar").args(["-cz", "-C", &from, "file"]).output().unwrap();
        pour.stdin.take().unwrap().write_all(&packed.stdout).unwrap();
        assert!(pour.wait().unwrap().success());

        let back = at(name);
        ok(&daemon, &["cp", &to("/d"), back.to_str().unwrap()]);
        for path in ["new/file", "named/file", "sub/file", "owned"] {
            assert_eq!(text(back.join(path)), "three\n", "{path}");
        }
        // What would be a deletion in a layer is a file here.
        assert_eq!((text(back.join("sub/.wh.f")), text(back.join("f"))), ("four\n".into(), "one\n".into()));
        for (from, path, said) in [
            (&*format!("{from}/file"), "/none/x", "does not exist"),
            (&format!("{from}/file"), "/d/none/", "does not exist"),
            (&from, "/d/f", "is no directory"),
            ("-", "/d/none", "does not exist"),
            (&from, "/proc/self/root/x", "/proc/self/root/x"),
        ] {
            let refused = say(&daemon, &["cp", from, &to(path)]);
            assert!(refused.code != 0 && refused.err.contains(said), "{path}: {refused:?}");
        }
        // A directory stays what it is.
        std::fs::write(at("d"), "").unwrap();
        let refused = say(&daemon, &["cp", at("d").to_str().unwrap(), &to("/")]);
        assert!(refused.code != 0 && refused.err.contains("is a directory"), "{refused:?}");
    }
    let owners = ok(&daemon, &["exec", "runs", "stat", "-c", "%u", "/d/new/file", "/d/owned"]);
    assert_eq!(owners, "0\n1234\n");
    assert_eq!(at("new/file").metadata().unwrap().uid(), 1234);
    // It sees what was brought while it didn't run.
    ok(&daemon, &["restart", "ended"]);
    assert_eq!(text(at("ended/owned")), "three\n");
}

/// CVE-2018-15664: the path is swapped for a link while it is copied; CVE-2019-14271: nothing of the container's is run or
/// loaded. X4, X8 of the negative tests.
#[test]
fn x4_a_path_that_is_swapped_meanwhile_leads_nowhere_else() {
    let daemon = Daemon::with_busybox();
    let secret = tempfile::Builder::new().prefix("secret-").tempdir_in("/var/tmp").unwrap();
    std::fs::write(secret.path().join("f"), "of the host\n").unwrap();
    let host = secret.path().to_str().unwrap();
    // What the host has at that path the container has too, with other bytes, so that a way through its own root ends well.
    let swap = format!(
        "mkdir -p {host} /a && echo inside > {host}/f && echo inside > /a/f && ln -s {host} /b && touch /ready; \
         while :; do mv /a /c; mv /b /a; mv /a /b; mv /c /a; done"
    );
    ok(&daemon, &["run", "-d", "--name", "swaps", BUSYBOX, "sh", "-c", &swap]);
    cofferdam_integration::until("it swaps", || {
        (say(&daemon, &["exec", "swaps", "test", "-e", "/ready"]).code == 0).then_some(())
    });
    let dir = tempfile::tempdir().unwrap();
    let (out, source) = (dir.path().join("out"), dir.path().join("f"));
    std::fs::write(&source, "from outside\n").unwrap();
    let mut came = 0;
    for _ in 0..40 {
        if say(&daemon, &["cp", "swaps:/a/f", out.to_str().unwrap()]).code == 0 {
            came += 1;
            let text = text(&out);
            assert!(text == "inside\n" || text == "from outside\n", "{text}");
        }
        say(&daemon, &["cp", source.to_str().unwrap(), "swaps:/a/f"]);
        assert_eq!(text(secret.path().join("f")), "of the host\n");
    }
    assert!(came > 0, "some of them met a file");
    let names: Vec<_> = std::fs::read_dir(secret.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["f"]);
}

/// What tar lists of a path, with the owners' numbers.
fn listed(daemon: &Daemon, path: &str) -> String {
    let archive = tempfile::NamedTempFile::new().unwrap();
    let copy = daemon.command().args(["cp", path, "-"]).stdout(archive.reopen().unwrap()).status().unwrap();
    assert!(copy.success(), "{path}");
    let tar = ["--numeric-owner", "--xattrs", "--xattrs-include=security.capability", "-tvvf"];
    let said: Said = std::process::Command::new("tar").args(tar).arg(archive.path()).output().unwrap().into();
    assert_eq!(said.code, 0, "{said:?}");
    said.out
}

#[test]
fn in_a_user_namespace_files_have_the_ids_inside() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    let script = "mkdir /d && echo one > /d/f && chown 7:8 /d/f && touch /d/ready && exec sleep 1000";
    let run = ["run", "-d", "--name", "mapped", "--userns", "0:100000:65536", BUSYBOX, "sh", "-c", script];
    ok(&daemon, &run);
    cofferdam_integration::until("the files are there", || {
        (say(&daemon, &["exec", "mapped", "test", "-e", "/d/ready"]).code == 0).then_some(())
    });
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path).to_str().unwrap().to_owned();
    std::fs::create_dir(at("new")).unwrap();
    std::fs::copy("/bin/true", at("new/able")).unwrap();
    std::os::unix::fs::chown(at("new/able"), Some(12), Some(34)).unwrap();
    let able = std::process::Command::new("setcap").args(["cap_net_raw+ep", &at("new/able")]).status();
    assert!(able.unwrap().success());
    std::fs::write(at("stranger"), "").unwrap();
    std::os::unix::fs::chown(at("stranger"), Some(70_000), Some(0)).unwrap();

    ok(&daemon, &["cp", &at("new"), "mapped:/d/of-root"]);
    ok(&daemon, &["cp", "-a", &at("new"), "mapped:/d/of-his"]);
    // A file system that it has mounted itself.
    ok(&daemon, &["cp", "-a", &at("new/able"), "mapped:/dev/shm/able"]);
    let tar = ["--xattrs", "--xattrs-include=security.capability", "-cC", &at("new"), "able"];
    let packed = std::process::Command::new("tar").args(tar).output().unwrap();
    let mut pour = daemon.command();
    let mut pour = pour.args(["cp", "-", "mapped:/d"]).stdin(Stdio::piped()).spawn().unwrap();
    pour.stdin.take().unwrap().write_all(&packed.stdout).unwrap();
    assert!(pour.wait().unwrap().success());
    let refused = say(&daemon, &["cp", "-a", &at("stranger"), "mapped:/d"]);
    assert!(refused.code != 0 && refused.err.contains("70000:0, whom its user namespace"), "{refused:?}");

    let files = ["/d/f", "/d/of-root/able", "/d/of-his/able", "/dev/shm/able", "/d/able"];
    let owners = ok(&daemon, &[&["exec", "mapped", "stat", "-c", "%u:%g"], &files[..]].concat());
    assert_eq!(owners, "7:8\n0:0\n12:34\n12:34\n0:0\n");
    // It comes out as it is inside, and as it lies on disk.
    let running = listed(&daemon, "mapped:/d");
    for owner in ["7/8", "12/34", "0/0"] {
        assert!(running.contains(&format!(" {owner} ")), "{owner}: {running}");
    }
    assert!(running.contains("security.capability") && !running.contains("100000"), "{running}");
    let program = |name: &str| daemon.coffer(&["cp", name, "-"]).stdout;
    let able = program("mapped:/d/able");
    ok(&daemon, &["stop", "-t", "0", "mapped"]);
    assert_eq!(listed(&daemon, "mapped:/d"), running);
    assert!(able == program("mapped:/d/able"), "its capabilities are the same bytes");
    ok(&daemon, &["rm", "mapped"]);
    daemon.settles(&before);
}

#[test]
fn a_copy_that_is_broken_off_leaves_nothing() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    // Nothing is left of those who go in the middle.
    idle(&daemon, "box");
    let mut pour = daemon.command();
    let mut pour = pour.args(["cp", "-", "box:/tmp"]).stdin(Stdio::piped()).spawn().unwrap();
    pour.stdin.as_mut().unwrap().write_all(&[0; 100]).unwrap();
    pour.kill().unwrap();
    pour.wait().unwrap();
    ok(&daemon, &["rm", "-f", "box"]);
    daemon.settles(&before);
}

#[test]
fn whoever_takes_no_more_says_why() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    idle(&daemon, "box");
    let run = |args: &[&str], stdin: Stdio, stdout: Stdio| -> Said {
        daemon.command().args(args).stdin(stdin).stdout(stdout).output().unwrap().into()
    };
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let said = run(&["cp", "box:/bin", "-"], Stdio::null(), full.into());
    assert!(said.code == 1 && said.err.contains("No space left"), "{said:?}");
    let (read, write) = cofferdam_integration::pipe();
    drop(read);
    let said = run(&["cp", "box:/bin", "-"], Stdio::null(), write.into());
    assert_eq!((said.code, said.err.as_str()), (141, ""));

    // No archive: refused while there is more of it.
    let endless = std::fs::File::open("/dev/urandom").unwrap();
    let said = run(&["cp", "-", "box:/"], endless.into(), Stdio::piped());
    assert!(said.code == 1 && said.err.contains("not a tar"), "{said:?}");

    let fifo = daemon.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let said = say(&daemon, &["cp", fifo.to_str().unwrap(), "box:/"]);
    assert!(said.code == 1 && said.err.contains("FIFO"), "{said:?}");
    ok(&daemon, &["rm", "-f", "box"]);
    daemon.settles(&before);
}
