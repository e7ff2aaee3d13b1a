//! Grants as an operator hands them out, and as whoever has one uses it: with `coffer`, from another user, from a container.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use cofferdam_integration::{BUSYBOX, Daemon, binary, until};
use cofferdam_types::Facet;

use crate::{Said, idle, json, ok, say, shell};

/// A grant, and a token of it.
fn token(daemon: &Daemon, flags: &[&str]) -> (String, String) {
    let id = ok(daemon, &[&["grant", "create"], flags].concat()).trim().to_owned();
    let token = ok(daemon, &["grant", "save", &id]).trim().to_owned();
    (id, token)
}

/// What is said where something is refused for want of a right; `coffer` tells no codes.
const DENIED: [&str; 7] = [
    "and this grant has",
    "is not among the methods",
    "is the operator's",
    "may not be passed on",
    "is that of no grant",
    "is not for user",
    "is granted nothing on this socket",
];

#[track_caller]
fn denied(said: &Said) {
    assert!(said.code != 0 && DENIED.iter().any(|why| said.err.contains(why)), "{said:?}");
}

#[test]
fn a_grant_from_create_to_revoke() {
    let daemon = Daemon::with_busybox();
    shell(&daemon, &["-d", "--name", "web", "-l", "tier=front"], "echo I am web; exec sleep 1000");
    idle(&daemon, "db");
    let (id, token) = token(&daemon, &["-f", "logs", "--filter", "labels.tier==front", "-l", "for the reader"]);
    assert!(token.starts_with("cofferdam-grant-") && token.len() == 80, "{token}");
    until("it has spoken", || ok(&daemon, &["logs", "web"]).contains("I am web").then_some(()));

    let reader = |args: &[&str]| say(&daemon, &[&["--as", &token], args].concat());
    assert_eq!(reader(&["logs", "web"]).out, "I am web\n");
    let listed = reader(&["ps"]);
    assert!(listed.out.contains("web") && !listed.out.contains("db"), "{listed:?}");
    assert!(reader(&["logs", "db"]).err.contains("does not exist"));
    denied(&reader(&["kill", "web"]));
    denied(&reader(&["system", "status"]));
    denied(&reader(&["inspect", "web"]));
    denied(&reader(&["run", BUSYBOX, "true"]));
    denied(&reader(&["grant", "ls"]));

    // Who may end tasks and nothing else ends them with what takes more, too.
    idle(&daemon, "ends");
    let (kill, ender) = self::token(&daemon, &["-f", "kill", "-c", "ends"]);
    let stop = |id: &str| say(&daemon, &["--as", &ender, "stop", "-t", "0", id]);
    assert_eq!((stop("ends").code, stop("ends").out.as_str()), (0, "ends\n"));
    assert_eq!(json(&daemon, &["inspect", "ends"])["task"]["status"], "stopped");
    assert!(stop("web").err.contains("does not exist"));
    ok(&daemon, &["grant", "revoke", &kill]);

    // By a file, and by the environment; and without the token's namespace at hand.
    let file = daemon.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let by_file = format!("@{}", file.display());
    assert_eq!(ok(&daemon, &["--as", &by_file, "logs", "web"]), "I am web\n");
    let mut plain = Command::new(binary("coffer"));
    plain.env("COFFER_SOCKET", daemon.socket()).env("COFFER_AS", &token).env_remove("COFFER_NAMESPACE");
    assert_eq!(Said::from(plain.args(["logs", "web"]).output().unwrap()).out, "I am web\n");

    let shown = json(&daemon, &["grant", "show", &id]);
    assert_eq!((&shown["id"], &shown["options"]["label"]), (&id.as_str().into(), &"for the reader".into()));
    assert_eq!(shown["rights"], serde_json::json!(["read"]));
    assert!(!shown.to_string().contains(&token[20..]));
    assert_eq!(
        ok(&daemon, &["grant", "explain", &id]),
        "Container.logs\nContainerCursor.next\nContainers.get\nContainers.list\n"
    );
    let table = ok(&daemon, &["grant", "ls"]);
    assert!(table.contains("for the reader") && table.contains("logs, where labels.tier==front"), "{table}");

    assert_eq!(ok(&daemon, &["grant", "revoke", &id]), format!("{id}\n"));
    denied(&reader(&["logs", "web"]));
    assert_eq!(ok(&daemon, &["grant", "ls", "-q"]), "");
    let gone = say(&daemon, &["grant", "revoke", &id]);
    assert!(gone.code == 1 && gone.err.contains("does not exist, or was taken back"), "{gone:?}");
    let wrong = say(&daemon, &["grant", "create", "-f", "everything"]);
    assert!(wrong.code == 1 && wrong.err.contains("is no facet: give observer"), "{wrong:?}");
}

#[test]
fn a_token_that_is_used_up_is_shown_as_such() {
    let daemon = Daemon::start();
    let (id, once) = token(&daemon, &["-f", "logs", "--uses", "1"]);
    let (free, _) = token(&daemon, &["-f", "logs"]);
    let told = |id: &str| {
        let shown = json(&daemon, &["grant", "show", id]);
        (shown["options"]["uses"].as_u64(), shown["usedUp"].as_bool())
    };
    assert_eq!([told(&id), told(&free)], [(Some(1), Some(false)), (Some(0), Some(false))]);
    assert!(ok(&daemon, &["grant", "ls"]).contains("token: 1 more"));
    assert_eq!(ok(&daemon, &["--as", &once, "ps", "-q"]), "");
    assert_eq!(told(&id), (Some(0), Some(true)));
    let listed = ok(&daemon, &["grant", "ls"]);
    assert_eq!(listed.matches("token: used up").count(), 1, "{listed}");
    assert!(say(&daemon, &["--as", &once, "ps"]).err.contains("was used as often as was allowed"));
    let differs = say(&daemon, &["grant", "diff", &id, &free]);
    assert_eq!((differs.code, differs.out.as_str()), (1, "usedUp: true -> false\n"), "{differs:?}");
}

#[test]
fn z5_what_comes_from_a_grant_lies_below_it_and_narrows() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "web");
    let (top, token_of_top) = token(&daemon, &["--right", "read", "--right", "run", "--delegate", "--tokens"]);
    let as_top = |args: &[&str]| say(&daemon, &[&["--as", &token_of_top], args].concat());
    // What he hasn't he can't give.
    let made = as_top(&["grant", "create", "--right", "host", "-l", "below"]);
    let child = made.out.trim().to_owned();
    assert_eq!(json(&daemon, &["grant", "show", &child])["rights"], serde_json::json!(["read", "run"]));
    let token_of_child = as_top(&["grant", "save", &child]).out.trim().to_owned();
    let listed = ok(&daemon, &["grant", "ls"]);
    let lines: Vec<_> = listed.lines().collect();
    assert!(lines[1].starts_with(&top) && lines[2].starts_with(&format!("  {child}")), "{listed}");
    // Not himself, nor what he comes from.
    let said = as_top(&["grant", "ls", "-q"]);
    assert_eq!(said.out, format!("{child}\n"), "{said:?}");
    for verb in ["revoke", "save", "show"] {
        assert!(as_top(&["grant", verb, &top]).err.contains("does not exist"), "{verb}");
    }
    assert_eq!(ok(&daemon, &["--as", &token_of_child, "ps", "-q"]), "web\n");
    denied(&say(&daemon, &["--as", &token_of_child, "rm", "-f", "web"]));
    denied(&say(&daemon, &["--as", &token_of_child, "grant", "ls"]));
    ok(&daemon, &["grant", "revoke", &top]);
    denied(&say(&daemon, &["--as", &token_of_child, "ps"]));
    // A namespace that is handed out is in use.
    ok(&daemon, &["namespace", "create", "shop"]);
    let id = ok(&daemon, &["-n", "shop", "grant", "create"]).trim().to_owned();
    let held = say(&daemon, &["namespace", "rm", "shop"]);
    assert!(held.code == 1 && held.err.contains(&id) && held.err.contains("grant revoke"), "{held:?}");
    ok(&daemon, &["-n", "shop", "grant", "revoke", &id]);
    ok(&daemon, &["namespace", "rm", "shop"]);
    // Or all at once; but not for nothing.
    ok(&daemon, &["namespace", "create", "shop"]);
    let ids: Vec<_> = (0..3).map(|_| ok(&daemon, &["-n", "shop", "grant", "create", "-f", "logs"])).collect();
    ok(&daemon, &["-n", "shop", "lease", "create", "kept"]);
    let held = say(&daemon, &["namespace", "rm", "--revoke", "shop"]);
    assert!(held.code == 1 && held.err.contains("holds leases"), "{held:?}");
    assert_eq!(ok(&daemon, &["-n", "shop", "grant", "ls", "-q"]).lines().count(), ids.len(), "none was taken back");
    ok(&daemon, &["-n", "shop", "lease", "rm", "kept"]);
    ok(&daemon, &["namespace", "rm", "--revoke", "shop"]);
    assert_eq!(ok(&daemon, &["namespace", "ls", "-q"]).lines().filter(|name| *name == "shop").count(), 0);
}

// Z8, Z1: whose a token is, the kernel says.
#[test]
fn z8_a_stolen_token_is_worth_nothing_to_another_user() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "web");
    let id = ok(&daemon, &["grant", "create", "-f", "observer"]).trim().to_owned();
    let sealed = ok(&daemon, &["grant", "save", &id, "--user", "4321"]).trim().to_owned();
    // So that others can connect; the policy gives them nothing.
    std::fs::set_permissions(daemon.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let program = daemon.path().join("coffer");
    std::fs::copy(binary("coffer"), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let by = |uid: u32, token: Option<&str>| {
        let mut command = Command::new(&program);
        command.env_clear().env("COFFER_SOCKET", daemon.socket()).args(["ps", "-q"]).uid(uid).gid(uid).current_dir("/");
        if let Some(token) = token {
            command.env("COFFER_AS", token);
        }
        Said::from(command.output().unwrap())
    };
    let owner = by(4321, Some(&sealed));
    assert_eq!(owner.out, "web\n", "{owner:?}");
    for said in [by(4322, Some(&sealed)), by(0, Some(&sealed)), by(4321, None)] {
        denied(&said);
        assert!(!said.err.contains(&sealed[20..]), "{said:?}");
    }
    // Another's name for the process changes nothing.
    let mut command = Command::new(&program);
    command
        .arg0("cofferd")
        .env_clear()
        .env("COFFER_SOCKET", daemon.socket())
        .arg("ps")
        .uid(4322)
        .gid(0)
        .current_dir("/");
    denied(&Said::from(command.output().unwrap()));
}

// The demonstration: a container that has nothing but a directory, and then not even that.
#[test]
fn z6_a_container_with_an_exported_directory_has_that_and_nothing_else() {
    let daemon = Daemon::with_busybox();
    shell(&daemon, &["-d", "--name", "web"], "echo I am web; while :; do sleep 1; echo tick; done");
    idle(&daemon, "db");
    let directory = daemon.path().join("grants/logs");
    let id = ok(&daemon, &["grant", "create", "-f", "logs", "-c", "web"]).trim().to_owned();
    let socket = ok(&daemon, &["grant", "export", &id, directory.to_str().unwrap()]).trim().to_owned();
    assert_eq!(socket, directory.join("cofferdam.sock").to_str().unwrap());
    let again = say(&daemon, &["grant", "export", &id, "/elsewhere"]);
    assert!(again.code == 1 && again.err.contains("is exported at"), "{again:?}");

    let mount = format!("type=bind,src={},dst=/grant,ro", directory.display());
    let tool = format!("type=bind,src={},dst=/coffer,ro", binary("coffer").display());
    let flags = ["-d", "--name", "reader", "--mount", &mount, "--mount", &tool];
    let follows = shell(&daemon, &flags, "while :; do /coffer --as /grant logs -f web; echo over $?; sleep 1; done");
    assert_eq!(follows.code, 0, "{follows:?}");
    let inside = |args: &[&str]| say(&daemon, &[&["exec", "reader", "/coffer", "--as", "/grant"], args].concat());
    until("it follows its sibling", || ok(&daemon, &["logs", "reader"]).contains("tick").then_some(()));
    let listed = inside(&["ps", "-q"]);
    assert_eq!(listed.out, "web\n", "{listed:?}");
    assert!(inside(&["logs", "db"]).err.contains("does not exist"));
    for refused in
        [&["kill", "web"][..], &["rm", "-f", "web"], &["exec", "web", "id"], &["system", "status"], &["image", "ls"]]
    {
        denied(&inside(refused));
    }
    // Root in there is no operator, by no socket that it has.
    denied(&say(
        &daemon,
        &["exec", "reader", "/coffer", "--socket", "/grant/cofferdam.sock", "namespace", "create", "mine"],
    ));

    // The daemon is killed under it: the same directory has another socket.
    daemon.kill9();
    daemon.restart();
    until("it is there again", || (inside(&["ps", "-q"]).out == "web\n").then_some(()));
    assert_eq!(json(&daemon, &["grant", "show", &id])["exported"], directory.to_str().unwrap());

    // Somebody follows, and it is taken back.
    let mut waits = daemon.command();
    let waits = waits
        .args(["--as", directory.to_str().unwrap(), "logs", "-f", "web"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut waits = waits.spawn().unwrap();
    // Open to its end: who can't write ends for that.
    let (mut heard, mut line) = (std::io::BufReader::new(waits.stdout.take().unwrap()), String::new());
    std::io::BufRead::read_line(&mut heard, &mut line).unwrap();
    assert_eq!(line, "I am web\n");
    ok(&daemon, &["grant", "revoke", &id]);
    let ended = Said::from(waits.wait_with_output().unwrap());
    assert!(ended.code == 1 && ended.err.contains("was taken back"), "{ended:?}");
    until("the socket is gone", || (!directory.join("cofferdam.sock").exists()).then_some(()));
    assert!(inside(&["ps"]).code != 0);
    assert_eq!(ok(&daemon, &["ps", "-q"]).lines().count(), 3, "containers go on");
}

#[test]
fn an_exported_directory_takes_nothings_place() {
    let daemon = Daemon::with_busybox();
    let id = ok(&daemon, &["grant", "create"]).trim().to_owned();
    let directory = daemon.path().join("taken");
    std::fs::create_dir(&directory).unwrap();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700)).unwrap();
    let file = directory.join("cofferdam.sock");
    std::fs::write(&file, "mine").unwrap();
    let refused = say(&daemon, &["grant", "export", &id, directory.to_str().unwrap()]);
    assert!(refused.code == 1 && refused.err.contains("is no socket: give another directory"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    assert_eq!(json(&daemon, &["grant", "show", &id])["exported"], "");
    // A link there is not followed (F4).
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
    assert_eq!(say(&daemon, &["grant", "export", &id, directory.to_str().unwrap()]).code, 1);
    std::fs::remove_file(&file).unwrap();

    ok(&daemon, &["grant", "export", &id, directory.to_str().unwrap()]);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&file)), (0o700, 0o666), "the directory keeps its mode");
    assert_eq!(ok(&daemon, &["--as", directory.to_str().unwrap(), "ps", "-q"]), "");
    ok(&daemon, &["grant", "unexport", &id]);
    until("the socket is gone", || (!file.exists()).then_some(()));
    // The grant is there, and can be a socket elsewhere.
    let other = daemon.path().join("other");
    ok(&daemon, &["grant", "export", &id, other.to_str().unwrap()]);
    assert_eq!(mode(&other), 0o700, "it is for whoever opens it to others");
    assert_eq!(ok(&daemon, &["--as", other.to_str().unwrap(), "ps", "-q"]), "");
    // Nor does its user have by it what he has besides, where somebody else has the directory too.
    let mine = other.join("cofferdam.sock");
    std::fs::remove_file(&mine).unwrap();
    std::os::unix::fs::symlink(daemon.socket(), &mine).unwrap();
    let led = say(&daemon, &["--as", other.to_str().unwrap(), "system", "status"]);
    assert!(led.code == 1 && led.err.contains("isn't followed"), "{led:?}");
    let led = say(&daemon, &["--as", daemon.socket().to_str().unwrap(), "system", "status"]);
    assert!(led.code == 1 && led.err.contains("is no grant's"), "{led:?}");
    // Who has a grant names no place of the host's.
    let (_, token) = token(&daemon, &["--right", "run", "--delegate"]);
    let child = ok(&daemon, &["--as", &token, "grant", "create"]).trim().to_owned();
    denied(&say(&daemon, &["--as", &token, "grant", "export", &child, other.to_str().unwrap()]));
}

// F4: the name of a directory may come to stand for another one.
#[test]
fn f4_with_its_grant_goes_the_socket_that_was_made_and_no_other() {
    let daemon = Daemon::with_busybox();
    let ids: Vec<_> = (0..2).map(|_| ok(&daemon, &["grant", "create"]).trim().to_owned()).collect();
    let [given, moved, other] = ["given", "moved", "other"].map(|name| daemon.path().join(name));
    ok(&daemon, &["grant", "export", &ids[0], given.to_str().unwrap()]);
    ok(&daemon, &["grant", "export", &ids[1], other.to_str().unwrap()]);
    std::fs::rename(&given, &moved).unwrap();
    std::os::unix::fs::symlink(&other, &given).unwrap();
    ok(&daemon, &["grant", "revoke", &ids[0]]);
    until("the socket is gone from where it was made", || (!moved.join("cofferdam.sock").exists()).then_some(()));
    assert_eq!(ok(&daemon, &["--as", other.to_str().unwrap(), "ps", "-q"]), "", "another one's is there");
    // Nor is one removed that has taken its place.
    let third = ok(&daemon, &["grant", "create"]).trim().to_owned();
    let mine = other.join("cofferdam.sock");
    std::fs::remove_file(&mine).unwrap();
    let own = std::os::unix::net::UnixListener::bind(&mine).unwrap();
    ok(&daemon, &["grant", "revoke", &ids[1]]);
    ok(&daemon, &["grant", "export", &third, moved.to_str().unwrap()]);
    until("the other is closed", || {
        let held = format!("{}/fd", daemon.pid());
        let dirs = std::fs::read_dir(Path::new("/proc").join(held)).unwrap();
        let targets: Vec<_> = dirs.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok()).collect();
        (!targets.contains(&other)).then_some(())
    });
    assert!(std::os::unix::net::UnixStream::connect(&mine).is_ok());
    drop(own);
}

#[test]
fn f4_a_start_makes_no_socket_behind_a_link_and_removes_that_of_a_grant_that_has_ended() {
    let daemon = Daemon::with_busybox();
    let [above, victim, short, linked] =
        ["above", "victim", "short", "linked"].map(|name| daemon.path().canonicalize().unwrap().join(name));
    std::fs::create_dir(&victim).unwrap();
    std::os::unix::fs::symlink(&above, &linked).unwrap();
    std::fs::create_dir(&above).unwrap();
    let export = |flags: &[&str], directory: &Path| {
        let id = ok(&daemon, &[&["grant", "create"], flags].concat()).trim().to_owned();
        ok(&daemon, &["grant", "export", &id, directory.to_str().unwrap()]);
        id
    };
    // What the operator names is where it leads to now.
    let directory = above.join("directory");
    let id = export(&[], &linked.join("directory"));
    assert_eq!(json(&daemon, &["grant", "show", &id])["exported"], directory.to_str().unwrap());
    export(&["--expires", "5s"], &short);
    let end = cofferdam_types::Timestamp::now().0 + 5_000_000_000;
    assert!(short.join("cofferdam.sock").exists());

    daemon.kill9();
    std::fs::rename(&directory, above.join("moved")).unwrap();
    std::os::unix::fs::symlink(&victim, &directory).unwrap();
    until("its time is over", || (cofferdam_types::Timestamp::now().0 > end).then_some(()));
    daemon.restart();
    assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
    assert!(!short.join("cofferdam.sock").exists());
    assert_eq!(ok(&daemon, &["grant", "ls", "-q"]).trim(), id, "it is there, and has no socket");

    // Where it was taken away altogether it is made anew, and as it was at first.
    daemon.kill9();
    std::fs::remove_file(&directory).unwrap();
    daemon.restart();
    assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(ok(&daemon, &["--as", directory.to_str().unwrap(), "ps", "-q"]), "");
}

#[test]
fn a_grant_makes_so_many_containers_at_once_and_what_comes_from_it_counts() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "operators");
    let flags = ["-f", "deploy", "--containers", "3", "--delegate", "--tokens"];
    let (id, token_of_top) = token(&daemon, &flags);
    let make =
        |token: &str, name: &str| say(&daemon, &["--as", token, "run", "-d", "--name", name, BUSYBOX, "sleep", "1000"]);
    assert_eq!(make(&token_of_top, "a").code, 0);
    // One of less than that below it: what it makes counts for both.
    let child = ok(&daemon, &["--as", &token_of_top, "grant", "create", "-f", "deploy", "--containers", "1"]);
    let child = child.trim();
    let token_of_child = ok(&daemon, &["--as", &token_of_top, "grant", "save", child]).trim().to_owned();
    assert_eq!(make(&token_of_child, "b").code, 0);
    let full = |said: &Said, id: &str, most: u64| {
        let why = format!("grant {id}: resource exhausted: may have {most} containers at once");
        assert!(said.code != 0 && said.err.contains(&why) && said.err.contains("remove one"), "{said:?}");
    };
    full(&make(&token_of_child, "c"), child, 1);
    assert_eq!(make(&token_of_top, "c").code, 0);
    full(&make(&token_of_top, "d"), &id, 3);
    // More than it has itself can't be given on; and it is the whole path that counts.
    let wide = ok(&daemon, &["--as", &token_of_top, "grant", "create", "-f", "deploy", "--containers", "9"]);
    assert_eq!(json(&daemon, &["grant", "show", wide.trim()])["options"]["mostContainers"], 3);
    let token_of_wide = ok(&daemon, &["--as", &token_of_top, "grant", "save", wide.trim()]).trim().to_owned();
    full(&make(&token_of_wide, "d"), &id, 3);
    let shown = |id: &str| json(&daemon, &["grant", "show", id])["made"].as_u64().unwrap();
    assert_eq!((shown(&id), shown(child), shown(wide.trim())), (3, 1, 0));
    // Nothing is left of what was refused, the operator is not bound by it, and a place that is free again can be taken.
    assert_eq!(ok(&daemon, &["ps", "-a", "-q"]).lines().count(), 4);
    idle(&daemon, "more");
    ok(&daemon, &["rm", "-f", "b"]);
    assert_eq!((shown(&id), shown(child)), (2, 0));
    daemon.kill9();
    daemon.restart();
    assert_eq!(make(&token_of_wide, "d").code, 0);
    full(&make(&token_of_child, "e"), &id, 3);
    assert!(ok(&daemon, &["grant", "ls"]).contains("deploy, containers<=3"));
}

#[test]
fn a_grant_has_so_many_calls_under_way() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "web");
    let (id, token) = token(&daemon, &["-f", "logs", "-f", "kill", "--calls", "1"]);
    assert_eq!(ok(&daemon, &["--as", &token, "ps", "-q"]), "web\n");
    let mut waits = daemon.command();
    let waits =
        waits.args(["--as", &token, "wait", "web"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it waits", || (json(&daemon, &["grant", "show", &id])["calling"] == 1).then_some(()));
    let refused = say(&daemon, &["--as", &token, "ps"]);
    assert!(refused.code == 1 && refused.err.contains("may have 1 calls under way at once"), "{refused:?}");
    ok(&daemon, &["kill", "-s", "KILL", "web"]);
    assert_eq!(Said::from(waits.wait_with_output().unwrap()).code, 137);
    ok(&daemon, &["--as", &token, "ps"]);
    assert_eq!(json(&daemon, &["grant", "show", &id])["calling"], 0);
}

#[test]
fn what_differs_between_two_grants_is_told() {
    let daemon = Daemon::start();
    let one = ok(&daemon, &["grant", "create", "-f", "logs", "-l", "one"]).trim().to_owned();
    let two =
        ok(&daemon, &["grant", "create", "-f", "metrics", "-c", "web", "--pids", "9", "-l", "two"]).trim().to_owned();
    let said = say(&daemon, &["grant", "diff", &one, &two]);
    assert_eq!(said.code, 1, "{said:?}");
    for line in ["- Container.logs\n", "+ Task.metrics\n", "containers: [] -> [\"web\"]\n", "pids: 0 -> 9\n"] {
        assert!(said.out.contains(line), "{line}: {said:?}");
    }
    assert!(!said.out.contains("Containers.get") && !said.out.contains("label"), "{said:?}");
    let programs = say(&daemon, &["grant", "diff", "-o", "json", &one, &two]);
    let programs: serde_json::Value = serde_json::from_str(&programs.out).unwrap();
    assert_eq!(programs["removed"], serde_json::json!(["Container.logs"]));
    assert_eq!(programs["changed"]["pids"], serde_json::json!([0, 9]));
    let same = say(&daemon, &["grant", "diff", &one, &one]);
    assert_eq!((same.code, same.out.as_str()), (0, ""));
    assert!(say(&daemon, &["grant", "diff", &one, "x"]).err.contains("is no id of a grant"));

    // And all that was handed out of all namespaces.
    ok(&daemon, &["namespace", "create", "shop"]);
    let three = ok(&daemon, &["-n", "shop", "grant", "create"]).trim().to_owned();
    let listed = ok(&daemon, &["grant", "ls", "--all"]);
    assert!(
        listed.starts_with("NAMESPACE") && listed.lines().any(|line| line.starts_with("shop") && line.contains(&three))
    );
    assert!(listed.contains(&one) && !ok(&daemon, &["grant", "ls"]).contains(&three));
    assert_eq!(ok(&daemon, &["grant", "ls", "-a", "-q"]).lines().count(), 3);
}

/// What is done with `coffer`, and which facets are each enough for it. FILE stands for a new file.
const COMMANDS: &[(&[&str], &[&str])] = &[
    (&["ps", "-q"], &["observer", "logs", "exec", "kill", "metrics", "deploy"]),
    (&["logs", "web"], &["observer", "logs", "deploy"]),
    (&["inspect", "web"], &["observer", "deploy"]),
    (&["stats", "--no-stream", "web"], &["observer", "metrics", "deploy"]),
    (&["top", "web"], &["observer", "deploy"]),
    (&["diff", "web"], &["observer", "deploy"]),
    (&["exec", "web", "true"], &["exec", "deploy"]),
    (&["kill", "-s", "CONT", "web"], &["kill", "deploy"]),
    (&["pause", "web"], &["deploy"]),
    (&["resume", "web"], &["deploy"]),
    (&["cp", "web:/etc/passwd", "FILE"], &["deploy"]),
    (&["container", "label", "web", "tier=front"], &["deploy"]),
    (&["run", "--rm", BUSYBOX, "true"], &["deploy"]),
    (&["image", "ls"], &["observer", "backup", "pull", "deploy"]),
    (&["image", "inspect", BUSYBOX], &["observer"]),
    (&["image", "explain-route", BUSYBOX], &["observer", "pull"]),
    (&["image", "export", BUSYBOX, "FILE"], &["observer", "backup"]),
    (&["content", "ls"], &["observer", "backup"]),
    (&["network", "ls"], &["observer", "deploy"]),
    (&["snapshot", "ls"], &["observer"]),
    (&["lease", "ls"], &["observer"]),
    (&["job", "ls"], &["observer"]),
    (&["events", "--after", "0"], &["observer", "events"]),
    // What takes a grant without facets, or none at all.
    (&["image", "tag", BUSYBOX, "demo/other"], &[]),
    (&["image", "rm", BUSYBOX], &[]),
    (&["commit", "web", "demo/web"], &[]),
    (&["checkpoint", "web", "demo/web"], &[]),
    (&["lease", "create"], &[]),
    (&["grant", "create"], &[]),
    (&["system", "status"], &[]),
];

/// What is to be asked for.
const ASK: [&str; 5] = [
    ": ask for the facet ",
    ": ask for one of the facets ",
    ": ask for a grant without facets",
    "is the operator's",
    "may not be passed on",
];

// Each ready-made set, from `coffer grant create` to `coffer --as`. What is refused may lie in the middle of a chain of calls, as the
// task of a container does whose figures are asked for.
#[test]
fn each_facet_is_enough_for_its_commands_and_for_no_other() {
    let daemon = Daemon::with_busybox();
    shell(&daemon, &["-d", "--name", "web"], "echo I am web; exec sleep 1000");
    until("it has spoken", || ok(&daemon, &["logs", "web"]).contains("I am web").then_some(()));
    for facet in Facet::ALL.map(Facet::as_str) {
        let (id, token) = token(&daemon, &["-f", facet]);
        let (file, mut does) = (daemon.path().join(format!("{facet}.file")), 0);
        for (args, may) in COMMANDS {
            let args = args.iter().map(|word| if *word == "FILE" { file.to_str().unwrap() } else { *word });
            let args: Vec<&str> = ["--as", &token].into_iter().chain(args).collect();
            does += usize::from(may.contains(&facet));
            match may.contains(&facet) {
                true if args[2] == "events" => follows_until_revoked(&daemon, facet, &args),
                true => {
                    let said = say(&daemon, &args);
                    assert_eq!(said.code, 0, "{facet}: {args:?}: {said:?}");
                }
                false => {
                    let said = say(&daemon, &args);
                    let right = said.err.contains("needs the ") && said.err.contains(" right, and this grant has ");
                    let told = right || ASK.iter().any(|ask| said.err.contains(ask));
                    assert!(said.code != 0 && told, "{facet}: {args:?}: {said:?}");
                }
            }
            let _ = std::fs::remove_file(&file);
        }
        assert!(does > 0, "{facet} does nothing");
        ok(&daemon, &["grant", "revoke", &id]);
    }
    assert_eq!(ok(&daemon, &["ps", "-q"]), "web\n", "it is there, and nothing else");
    assert_eq!(ok(&daemon, &["image", "ls", "-q"]).lines().count(), 1);
}

/// What goes on for ever goes on until it is taken back: by another grant of the same facet.
fn follows_until_revoked(daemon: &Daemon, facet: &str, args: &[&str]) {
    let (id, token) = token(daemon, &["-f", facet]);
    let mut reads = daemon.command();
    let reads = reads.args(["--as", &token]).args(&args[2..]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut reads = reads.spawn().unwrap();
    // It is read from to its end: who finds nobody reading ends by that.
    let mut heard = BufReader::new(reads.stdout.take().unwrap());
    let mut first = String::new();
    heard.read_line(&mut first).unwrap();
    assert!(first.contains(daemon.namespace()), "{facet}: {first:?}");
    ok(daemon, &["grant", "revoke", &id]);
    heard.read_to_string(&mut first).unwrap();
    assert_eq!(reads.wait().unwrap().code(), Some(1), "{facet}");
}

// S3: whoever connects is who the kernel says, and has what the rules say for him: nothing, without one.
#[test]
fn who_connects_has_what_the_rules_say() {
    const RULES: &[&str] = &[
        "--group",
        "4444",
        "--access",
        "user:4321=default/watcher",
        "--access",
        "group:4444=default/readers",
        "--access",
        "user:4323=default/nothing",
    ];
    let daemon = Daemon::with_flags(RULES);
    let own = |args: &[&str]| ok(&daemon, &[&["-n", "default"], args].concat());
    let watcher = own(&["grant", "create", "-f", "observer", "-l", "watcher"]);
    own(&["grant", "create", "-f", "logs", "-l", "readers"]);
    let program = daemon.path().join("coffer");
    std::fs::copy(binary("coffer"), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let by = |uid: u32, args: &[&str]| {
        let mut command = Command::new(&program);
        command.env_clear().env("COFFER_SOCKET", daemon.socket()).args(["-n", "default"]).args(args);
        // Its group lets it connect.
        Said::from(command.uid(uid).gid(4444).current_dir("/").output().unwrap())
    };
    let said = by(4321, &["image", "ls", "-q"]);
    assert_eq!((said.code, &*said.out), (0, ""), "{said:?}");
    denied(&by(4321, &["image", "rm", "any"]));
    denied(&by(4321, &["namespace", "create", "mine"]));
    let said = by(4322, &["ps", "-q"]);
    assert_eq!((said.code, &*said.out), (0, ""), "{said:?}");
    denied(&by(4322, &["image", "ls"]));
    assert!(by(4323, &["ps"]).err.contains("is not there, or was taken back"));
    // Nor is root of another group, or in another place, an operator by that; and the operator is one by no rule.
    own(&["ps"]);
    own(&["grant", "revoke", watcher.trim()]);
    assert!(by(4321, &["ps"]).err.contains("is not there, or was taken back"));
    // Another one of the label takes its place, also for a daemon that was started since.
    own(&["grant", "create", "-f", "metrics", "-l", "watcher"]);
    daemon.kill9();
    daemon.restart();
    assert_eq!(by(4321, &["ps", "-q"]).code, 0);
    denied(&by(4321, &["image", "ls"]));
}
