//! On the cgroups of this host.

use super::*;

fn name(test: &str) -> String {
    format!("/cofferdam-test-{}-{test}", std::process::id())
}

/// Says that a test showed nothing on this host, past the harness, which keeps what a passed one prints: the suite counts it.
fn skipped(why: &str) {
    use std::io::Write as _;
    // `eprintln` is what the harness keeps.
    let mut past = std::io::stderr();
    writeln!(past, "\nskipped here: {}: {why}", std::thread::current().name().unwrap_or("a test")).unwrap();
}

fn sleeper() -> std::process::Child {
    std::process::Command::new("sleep").arg("1000").spawn().unwrap()
}

#[test]
fn hybrid_v1_and_v2_are_told_apart() {
    let line = |point: &str, kind: &str, options: &str| format!("40 31 0:37 / {point} rw - {kind} {kind} {options}\n");
    let table = |lines: &[String]| Layout::of(&mountinfo::parse(lines.concat().as_bytes()).unwrap());
    let v2 = line("/sys/fs/cgroup", "cgroup2", "rw,nsdelegate");
    assert!(!table(&[v2]).has_v1());
    let hybrid = table(&[
        line("/sys/fs/cgroup/unified", "cgroup2", "rw"),
        line("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
        line("/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,release_agent=/x,name=systemd"),
        line("/elsewhere", "cgroup", "rw,cpu,cpuacct"),
    ]);
    let controllers: Vec<_> = hybrid.hierarchies.iter().map(|h| h.controllers.join(" ")).collect();
    assert_eq!(controllers, ["cpu cpuacct", "name=systemd", ""]);
    assert!(hybrid.has_v1() && hybrid.hierarchies[2].unified);
}

#[test]
fn bad_paths_are_refused() {
    let layout = Layout::detect().unwrap();
    for bad in ["", "/", "a", "/a/../b", "/a//b", "/a/", "/a\nb", "system.slice:coffer:x"] {
        assert!(Cgroup::create(&layout, bad).is_err(), "{bad}");
    }
}

#[test]
fn a_signal_goes_to_all_that_are_in_it_and_to_nobody_else() {
    use std::os::unix::process::ExitStatusExt as _;
    let layout = Layout::detect().unwrap();
    let group = Cgroup::create(&layout, &name("signal")).unwrap();
    let (mut members, mut other) = ([sleeper(), sleeper()], sleeper());
    for member in &members {
        group.add(member.id() as i32).unwrap();
    }
    // One that has no name.
    group.signal_all(libc::SIGRTMIN() + 3).unwrap();
    for member in &mut members {
        assert_eq!(member.wait().unwrap().signal(), Some(libc::SIGRTMIN() + 3));
    }
    assert!(other.try_wait().unwrap().is_none());
    // Whose number the kernel gave to another is not in it: here, one that was listed and has moved.
    group.signal(&[other.id() as i32], libc::SIGKILL).unwrap();
    assert!(other.try_wait().unwrap().is_none());
    assert!(group.try_remove().unwrap());
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_group_is_made_joined_frozen_killed_and_removed() {
    let layout = Layout::detect().unwrap();
    let above = name("life");
    let group = Cgroup::create(&layout, &format!("{above}/a")).unwrap();
    let again = Cgroup::create(&layout, &format!("{above}/a")).unwrap_err();
    assert_eq!(again.code, cofferdam_types::Code::AlreadyExists);
    let mut child = sleeper();
    let pid = child.id() as i32;
    group.add(pid).unwrap();
    assert_eq!(group.pids().unwrap(), [pid]);
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(groups.lines().all(|line| line.ends_with("/a")), "{groups}");
    group.freeze().unwrap();
    group.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
    group.remove().unwrap();
    Cgroup::open(&layout, &above).unwrap().remove().unwrap();
    for hierarchy in &layout.hierarchies {
        assert!(!join(&hierarchy.root, &above).exists());
    }
}

#[test]
fn an_inner_group_ends_with_all_that_came_of_it_and_the_rest_goes_on() {
    let layout = Layout::detect().unwrap();
    let freezer = Layout { hierarchies: layout.hierarchies.iter().filter(|h| !h.unified).cloned().collect() };
    for (n, layout) in [layout, freezer].iter().enumerate().filter(|(_, layout)| !layout.hierarchies.is_empty()) {
        let group = Cgroup::create(layout, &name(&format!("inner-{n}"))).unwrap();
        assert!(group.find_inner("one").unwrap().is_none());
        for bad in ["", "..", "a/b", "/a"] {
            assert!(group.inner(bad).is_err(), "{bad}");
        }
        let (inner, mut other) = (group.inner("one").unwrap(), sleeper());
        group.add(other.id() as i32).unwrap();
        // One that begins others; taken in when it has, and its children with it.
        let dir = tempfile::tempdir().unwrap();
        let script = format!("sleep 1000 & echo $! > {}/pid; wait", dir.path().display());
        let mut parent = std::process::Command::new("sh").args(["-c", &script]).spawn().unwrap();
        let end = Instant::now() + PATIENCE;
        let child = loop {
            let text = std::fs::read_to_string(dir.path().join("pid")).unwrap_or_default();
            if let Ok(pid) = text.trim().parse::<i32>() {
                break pid;
            }
            assert!(Instant::now() < end, "it begins nothing");
        };
        group.add(parent.id() as i32).unwrap();
        inner.adopt(parent.id() as i32).unwrap();
        let mut both = [parent.id() as i32, child];
        both.sort_unstable();
        assert_eq!(inner.pids().unwrap(), both);
        // Its limits are those of the group that it is in: it is in no other hierarchy.
        assert_eq!(inner.parts().count(), 1);
        assert!(!inner.try_remove().unwrap());
        group.find_inner("one").unwrap().unwrap().kill().unwrap();
        parent.wait().unwrap();
        assert!(other.try_wait().unwrap().is_none(), "it is not in it");
        inner.remove().unwrap();
        assert!(group.find_inner("one").unwrap().is_none());
        group.inner("two").unwrap();
        group.kill().unwrap();
        other.wait().unwrap();
        group.remove().unwrap();
    }
}

#[test]
fn what_is_empty_above_is_removed_and_no_more() {
    let layout = Layout::detect().unwrap();
    let top = name("prune");
    let (one, two) = (format!("{top}/i/a/one"), format!("{top}/i/b/two"));
    let (first, second) = (Cgroup::create(&layout, &one).unwrap(), Cgroup::create(&layout, &two).unwrap());
    let there = |path: &str| layout.hierarchies.iter().filter(|h| join(&h.root, path).exists()).count();
    assert_eq!(below(&layout, &format!("{top}/i")).unwrap(), ["a".to_owned(), "b".to_owned()].into());
    first.remove().unwrap();
    prune_above(&layout, &one, 0).unwrap();
    assert_eq!((there(&format!("{top}/i/a")), there(&two)), (0, layout.hierarchies.len()));
    second.remove().unwrap();
    prune_above(&layout, &two, 1).unwrap();
    assert_eq!((there(&format!("{top}/i")), there(&top)), (0, layout.hierarchies.len()));
    prune_above(&layout, &two, 0).unwrap();
    assert_eq!(there(&top), 0);
    assert!(below(&layout, &top).unwrap().is_empty());
}

#[test]
fn groups_are_made_while_their_parents_are_removed() {
    let layout = Layout::detect().unwrap();
    let top = name("race");
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                prune_above(&layout, &format!("{top}/i/a/one"), 0).unwrap();
            }
        });
        let made: Vec<Result<()>> = (0..200)
            .map(|_| Cgroup::create(&layout, &format!("{top}/i/a/one")).and_then(|group| group.remove()))
            .collect();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        made.into_iter().for_each(|made| made.unwrap());
    });
    prune_above(&layout, &format!("{top}/i/a/one"), 0).unwrap();
}

#[test]
fn two_may_kill_and_remove_one_group() {
    let layout = Layout::detect().unwrap();
    // Without v2 too, where killing takes more steps that can meet the removal.
    let v1 = Layout { hierarchies: layout.hierarchies.iter().filter(|h| !h.unified).cloned().collect() };
    for layout in [&layout, &v1] {
        let path = name("two");
        for _ in 0..100 {
            let group = Cgroup::create(layout, &format!("{path}/a")).unwrap();
            let mut child = sleeper();
            group.add(child.id() as i32).unwrap();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        if let Ok(group) = Cgroup::open(layout, &path) {
                            group.kill().unwrap();
                            group.remove().unwrap();
                        }
                    });
                }
                child.wait().unwrap();
            });
            assert!(layout.hierarchies.iter().all(|h| !join(&h.root, &path).exists()));
        }
    }
}

#[test]
fn without_v2_the_freezer_kills() {
    let mut layout = Layout::detect().unwrap();
    layout.hierarchies.retain(|h| h.controllers.iter().any(|c| c == "freezer"));
    if layout.hierarchies.is_empty() {
        return;
    }
    let group = Cgroup::create(&layout, &name("freezer")).unwrap();
    let mut child = sleeper();
    group.add(child.id() as i32).unwrap();
    group.freeze().unwrap();
    group.thaw().unwrap();
    group.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
}

#[test]
fn one_of_a_frozen_group_is_let_die() {
    let mut layout = Layout::detect().unwrap();
    layout.hierarchies.retain(|h| h.controllers.iter().any(|c| c == "freezer"));
    if layout.hierarchies.is_empty() {
        return skipped("there is no v1 freezer");
    }
    let group = Cgroup::create(&layout, &name("frozen")).unwrap();
    let mut children = [sleeper(), sleeper()];
    for child in &children {
        group.add(child.id() as i32).unwrap();
    }
    group.freeze().unwrap();
    let [one, other] = &mut children;
    one.kill().unwrap();
    // Another of them is none of its business.
    assert!(one.try_wait().unwrap().is_none(), "a v1 group lets nobody die");
    group.let_die(one.id() as i32).unwrap();
    one.wait().unwrap();
    let state = group.read_at(group.v1("freezer").unwrap(), "freezer.state").unwrap();
    assert_eq!((state.trim(), other.try_wait().unwrap()), ("FROZEN", None));
    group.kill().unwrap();
    other.wait().unwrap();
    group.remove().unwrap();
}

/// Wherever the group below lies: beside the freezer, as in a hybrid layout, or in it.
#[test]
fn a_group_below_a_frozen_one_is_killed() {
    let all = Layout::detect().unwrap();
    let freezes = |h: &Hierarchy| h.controllers.iter().any(|c| c == "freezer");
    for hybrid in [true, false] {
        let mut layout = all.clone();
        layout.hierarchies.retain(|h| freezes(h) || hybrid && h.unified);
        if !layout.hierarchies.iter().any(freezes) {
            return skipped("there is no v1 freezer");
        }
        let group = Cgroup::create(&layout, &name("above")).unwrap();
        let inner = group.inner("grant-1").unwrap();
        let mut children = [sleeper(), sleeper()];
        for child in &children {
            group.add(child.id() as i32).unwrap();
        }
        inner.add(children[0].id() as i32).unwrap();
        let freezer = group.v1("freezer").unwrap();
        let state = || group.read_at(freezer, "freezer.state").unwrap().trim().to_owned();
        let end = Instant::now() + PATIENCE;
        while state() != "FROZEN" {
            group.write_at(freezer, "freezer.state", "FROZEN").unwrap();
            assert!(Instant::now() < end);
        }
        group.kill_inner(&inner).unwrap();
        let [one, other] = &mut children;
        one.wait().unwrap();
        assert_eq!((&*state(), other.try_wait().unwrap()), ("FROZEN", None));
        group.kill().unwrap();
        other.wait().unwrap();
        group.remove().unwrap();
    }
}

/// As one is left whose making was interrupted.
#[test]
fn a_group_without_a_freezer_is_killed() {
    let mut layout = Layout::detect().unwrap();
    layout.hierarchies.retain(|h| h.controllers.iter().any(|c| c == "pids"));
    if layout.hierarchies.is_empty() {
        return skipped("there is no v1 controller of pids: groups of v2 are made at once");
    }
    let group = Cgroup::create(&layout, &name("half")).unwrap();
    let mut child = sleeper();
    group.add(child.id() as i32).unwrap();
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    group.kill().unwrap();
    group.remove().unwrap();
    assert!(!reaper.join().unwrap().success());
}

/// A process of two threads whose main one has ended, in `group`.
fn headless(group: &Cgroup) -> std::process::Child {
    let program = format!(
        "import ctypes, threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n\
         ctypes.CDLL(None).syscall({}, 0)",
        libc::SYS_exit
    );
    let child = std::process::Command::new("python3").args(["-c", &program]).spawn().unwrap();
    group.add(child.id() as i32).unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
        std::thread::yield_now();
    }
    child
}

#[test]
fn a_process_whose_main_thread_has_ended_is_killed() {
    let layout = Layout::detect().unwrap();
    let group = Cgroup::create(&layout, &name("headless")).unwrap();
    let mut child = headless(&group);
    let killed = group.kill();
    if killed.is_err() {
        child.kill().unwrap();
    }
    let ended = crate::process::pidfd_open(child.id() as i32)
        .and_then(|pidfd| crate::process::ended_within(&pidfd, Duration::from_secs(10)));
    child.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
    killed.unwrap();
    assert!(ended.unwrap(), "it lives on");
}

#[test]
fn what_was_made_above_goes_and_what_was_there_stays() {
    let layout = Layout::detect().unwrap();
    let (top, there) = (name("made"), |path: &str| layout.hierarchies.iter().any(|h| join(&h.root, path).exists()));
    let above = Cgroup::create(&layout, &top).unwrap();
    let (one, two) = (format!("{top}/i/a/one"), format!("{top}/i/two"));
    let (first, second) = (Cgroup::create(&layout, &one).unwrap(), Cgroup::create(&layout, &two).unwrap());
    first.remove().unwrap();
    prune_made(&layout, &one).unwrap();
    assert_eq!((there(&format!("{top}/i/a")), there(&format!("{top}/i"))), (false, true));
    second.remove().unwrap();
    prune_made(&layout, &two).unwrap();
    assert_eq!((there(&format!("{top}/i")), there(&top)), (false, true), "what was there is somebody's");
    above.remove().unwrap();
}

#[test]
fn what_is_made_above_for_somebody_else_goes_with_his() {
    let layout = Layout::detect().unwrap();
    let there = |path: &str| layout.hierarchies.iter().filter(|h| join(&h.root, path).exists()).count();
    let (top, all) = (name("given"), layout.hierarchies.len());
    let path = format!("{top}/i/one");
    make_above(&layout, &path).unwrap();
    assert_eq!((there(&format!("{top}/i")), there(&path)), (all, 0));
    // As another program makes it, and somebody lies beside it.
    layout.hierarchies.iter().for_each(|h| std::fs::create_dir(join(&h.root, &path)).unwrap());
    let beside = Cgroup::create(&layout, &format!("{top}/two")).unwrap();
    Cgroup::open(&layout, &path).unwrap().remove().unwrap();
    prune_made(&layout, &path).unwrap();
    assert_eq!((there(&format!("{top}/i")), there(&top)), (0, all));
    beside.remove().unwrap();
    prune_made(&layout, beside.path()).unwrap();
    assert_eq!(there(&top), 0);
}
