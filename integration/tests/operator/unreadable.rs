//! One row that can't be read, of each table in turn: the daemon starts, and everything goes on but what the row is of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use cofferdam_client::{CredentialInfo, ImportFormat, ImportOptions, Secret, block_on};
use cofferdam_integration::{BUSYBOX, Daemon, images, until};
use cofferdam_types::Timestamp;

use crate::{Said, idle, json, ok, say};

/// An image with nothing in common with the one that the rows are of.
const OTHER: &str = "other.example/busybox:1";

/// What no row of any kind looks like.
const BAD: &[u8] = b"\xff";

type Rows = redb::TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Which row, and what becomes of it.
struct Case {
    table: &'static str,
    /// What its key holds, behind the parts that it shares with others; none: a new row, whose key names nothing.
    of: Option<String>,
    /// What the check says of it.
    fault: &'static str,
    /// The list that lacks it.
    lacks: Option<&'static str>,
}

fn with_rows<T>(daemon: &Daemon, act: impl FnOnce(&redb::Database) -> T) -> T {
    act(&redb::Database::open(daemon.root().join("meta.redb")).unwrap())
}

/// The key of the row, and what it held.
fn find(daemon: &Daemon, case: &Case) -> (Vec<u8>, Option<Vec<u8>>) {
    let Some(of) = &case.of else { return (b"\xff\xff".to_vec(), None) };
    with_rows(daemon, |database| {
        let read = redb::ReadableDatabase::begin_read(database).unwrap();
        let table = read.open_table(Rows::new(case.table)).unwrap();
        let rows = redb::ReadableTable::range::<&[u8]>(&table, ..).unwrap().map(|row| row.unwrap());
        let mut rows = rows.map(|(key, value)| (key.value().to_vec(), value.value().to_vec()));
        let found = rows.find(|(key, _)| of.is_empty() || key.windows(of.len()).any(|part| part == of.as_bytes()));
        let (key, value) = found.unwrap_or_else(|| panic!("{} has a row of {of}", case.table));
        (key, Some(value))
    })
}

fn put(daemon: &Daemon, table: &'static str, key: &[u8], value: Option<&[u8]>) {
    with_rows(daemon, |database| {
        let write = database.begin_write().unwrap();
        {
            let mut table = write.open_table(Rows::new(table)).unwrap();
            match value {
                Some(value) => drop(table.insert(key, value).unwrap()),
                None => drop(table.remove(key).unwrap()),
            }
        }
        write.commit().unwrap();
    });
}

/// All that can be listed.
fn lists(daemon: &Daemon) -> BTreeMap<&'static str, BTreeSet<String>> {
    let quiet: [(&str, &[&str]); 9] = [
        ("containers", &["ps", "-a", "-q"]),
        ("images", &["image", "ls", "-q"]),
        ("content", &["content", "ls", "-q"]),
        ("ingests", &["content", "active", "-q"]),
        ("snapshots", &["snapshot", "ls", "-q"]),
        ("leases", &["lease", "ls", "-q"]),
        ("namespaces", &["namespace", "ls", "-q"]),
        ("grants", &["grant", "ls", "-q"]),
        ("credentials", &["credential", "ls", "-q"]),
    ];
    let lines = |args: &[&str]| ok(daemon, args).lines().map(String::from).collect();
    let mut all: BTreeMap<_, BTreeSet<String>> = quiet.into_iter().map(|(what, args)| (what, lines(args))).collect();
    let shims = json(daemon, &["shim", "ls"]);
    let ids = shims.as_array().unwrap().iter().map(|shim| shim["id"].as_str().unwrap().to_owned());
    all.insert("tasks", ids.collect());
    all
}

/// A plugin that answers as one does that made a connection.
fn network(daemon: &Daemon) {
    let (configs, plugins) = daemon.networks();
    for dir in [&configs, &plugins] {
        fs::create_dir_all(dir).unwrap();
    }
    let conf = serde_json::json!({ "cniVersion": "1.0.0", "name": "plug", "plugins": [{ "type": "plug" }] });
    fs::write(configs.join("plug.conflist"), conf.to_string()).unwrap();
    let script = "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = ADD ] && \
                  echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.1.0.2/16\"}]}'\nexit 0\n";
    // Written by somebody else: nobody of ours has it open when it is executed.
    let mut write = Command::new("sh");
    write.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(plugins.join("plug")).stdin(Stdio::piped());
    let mut writer = write.spawn().unwrap();
    std::io::Write::write_all(&mut writer.stdin.take().unwrap(), script.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}

/// A root file system with a file of its own.
fn other(at: &Path) {
    let copied = Command::new("cp").arg("-a").arg(images().join("rootfs/busybox")).arg(at).status().unwrap();
    assert!(copied.success());
    fs::write(at.join("other"), "other").unwrap();
}

fn import(daemon: &Daemon, root: &Path, name: &str) {
    let options = ImportOptions {
        name: name.into(),
        format: ImportFormat::Rootfs,
        command: vec!["/bin/sh".into()],
        // So that it is the same image each time.
        created: Timestamp(1_000_000_000_000_000_000),
        ..ImportOptions::default()
    };
    let source = File::open(root).unwrap();
    let done = block_on(async { daemon.open().await.images().import_fd(&options, source.into()).wait().await });
    done.unwrap().unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// What the rows are of, and others of each kind.
fn fill(daemon: &Daemon, other_root: &Path) {
    network(daemon);
    import(daemon, other_root, OTHER);
    for name in ["a-box", "b-box", "c-box"] {
        idle(daemon, name);
    }
    ok(daemon, &["run", "-d", "--net", "plug", "--name", "on-net", BUSYBOX, "sleep", "1000"]);
    for key in ["mine", "yours"] {
        ok(daemon, &["snapshot", "prepare", key]);
        ok(daemon, &["lease", "create", &format!("lease-{key}")]);
        ok(daemon, &["image", "tag", BUSYBOX, &format!("{key}.example/tagged:1")]);
        ok(daemon, &["grant", "create"]);
        ok(daemon, &["namespace", "create", &format!("space-{key}")]);
        let wrong = ["content", "ingest", key, "--expected", &format!("sha256:{}", "0".repeat(64))];
        let mut ingest = daemon.command().args(wrong).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        std::io::Write::write_all(&mut ingest.stdin.take().unwrap(), b"half").unwrap();
        assert!(!ingest.wait().unwrap().success());
        let info = CredentialInfo { host: format!("{key}.example"), user: "me".into(), ..Default::default() };
        let put = async { daemon.open().await.credentials().put(&info, &Secret("hunter22".into())).await };
        block_on(put).unwrap().unwrap();
    }
}

fn pids(daemon: &Daemon) -> Vec<(String, u64)> {
    let names = ["a-box", "b-box", "c-box", "on-net"];
    let pid = |name: &str| json(daemon, &["inspect", name])["task"]["pid"].as_u64();
    names.iter().map(|name| ((*name).to_owned(), pid(name).unwrap_or_else(|| panic!("{name} runs")))).collect()
}

/// The blob of an image's one layer, and the chain id.
fn layer(daemon: &Daemon) -> (String, String) {
    let info = json(daemon, &["image", "inspect", BUSYBOX])["info"].clone();
    let manifest = info["target"]["digest"].as_str().unwrap_or_else(|| panic!("{info}")).to_owned();
    let document =
        |digest: &str| -> serde_json::Value { serde_json::from_str(&ok(daemon, &["content", "get", digest])).unwrap() };
    let manifest = document(&manifest);
    let config = document(manifest["config"]["digest"].as_str().unwrap());
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    (text(&manifest["layers"][0]["digest"]), text(&config["rootfs"]["diff_ids"][0]))
}

#[test]
fn one_row_of_each_table_in_turn_stands_in_the_way_of_nothing_else() {
    let daemon = Daemon::with_busybox();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    other(&root);
    fill(&daemon, &root);
    let (before, running) = (lists(&daemon), pids(&daemon));
    let (layer, chain) = layer(&daemon);
    let case = |table, of: Option<&str>, fault, lacks| Case { table, of: of.map(String::from), fault, lacks };
    let (row, index) = ("record-unreadable", "index-wrong");
    let cases = [
        case("namespaces", Some(daemon.namespace()), row, Some("namespaces")),
        case("containers", Some("b-box"), row, Some("containers")),
        case("specs", Some("b-box"), row, None),
        case("transient", None, index, None),
        case("images", Some("mine.example"), row, Some("images")),
        case("content", Some(&layer), row, Some("content")),
        case("blobs", Some(&layer), index, None),
        case("ingests", Some("mine"), row, Some("ingests")),
        case("snapshots", Some("b-box"), row, Some("snapshots")),
        case("children", None, index, None),
        case("dirs", Some("overlay\0"), index, None),
        case("layers", Some(&chain), row, None),
        case("leases", Some("lease-mine"), row, Some("leases")),
        case("held", None, row, None),
        case("tasks", Some("b-box"), row, Some("tasks")),
        case("attachments", Some(""), row, None),
        case("grants", Some(""), row, Some("grants")),
        case("credentials", Some("mine.example"), row, Some("credentials")),
        case("outbox", None, row, None),
    ];
    for case in &cases {
        let table = case.table;
        daemon.stop();
        let (key, value) = find(&daemon, case);
        put(&daemon, table, &key, Some(BAD));
        daemon.restart();

        let said = say(&daemon, &["system", "check", "-o", "json"]);
        let faults = found(&said);
        assert!(faults.contains(case.fault), "{table}: {said:?}");
        assert!(!faults.contains("unchecked"), "{table}: {said:?}");
        let after = lists(&daemon);
        for (what, listed) in &before {
            let lacks: Vec<_> = listed.difference(&after[what]).collect();
            let more: Vec<_> = after[what].difference(listed).collect();
            let expected = usize::from(case.lacks == Some(*what));
            assert!(lacks.len() == expected && more.is_empty(), "{table}: {what} lack {lacks:?} and have {more:?}");
        }
        assert_eq!(ok(&daemon, &["run", "--rm", OTHER, "cat", "other"]), "other", "{table}");
        assert_eq!(ok(&daemon, &["exec", "a-box", "echo", "in"]), "in\n", "{table}");
        // Nothing new: but each of its rows is asked for.
        import(&daemon, &root, OTHER);
        for (name, pid) in &running {
            assert!(Path::new(&format!("/proc/{pid}")).exists(), "{table}: {name} was ended");
        }
        daemon.stop();
        put(&daemon, table, &key, value.as_deref());
    }
    daemon.restart();
    assert_eq!(pids(&daemon), running, "whatever could not be read of them meanwhile");
    assert_eq!(lists(&daemon), before);
    let said = say(&daemon, &["system", "check"]);
    assert_eq!(said.code, 0, "{said:?}");
}

fn found(said: &Said) -> BTreeSet<String> {
    let fault = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["fault"].as_str().map(String::from);
    said.out.lines().filter_map(fault).collect()
}

/// What nobody can read may run: so it is neither made again, nor removed, nor renamed, until its row is put right.
#[test]
fn a_task_that_cant_be_read_is_left_alone() {
    is_left_alone(idle);
}

/// Nor does it lose its shim with another that lives in that.
#[test]
fn a_task_that_cant_be_read_is_left_alone_by_the_others_of_its_group() {
    is_left_alone(|daemon, name| {
        ok(daemon, &["run", "-d", "--group", "pod", "--name", name, BUSYBOX, "sleep", "1000"]);
    });
}

fn is_left_alone(run: impl Fn(&Daemon, &str)) {
    let daemon = Daemon::with_busybox();
    for name in ["a-box", "b-box"] {
        run(&daemon, name);
    }
    let pid = json(&daemon, &["inspect", "b-box"])["task"]["pid"].as_u64().unwrap();
    let case = Case { table: "tasks", of: Some("b-box".into()), fault: "record-unreadable", lacks: None };
    daemon.stop();
    let (key, value) = find(&daemon, &case);
    put(&daemon, "tasks", &key, Some(BAD));
    daemon.restart();
    for args in [&["restart", "b-box"][..], &["rm", "b-box"], &["rm", "-f", "b-box"], &["rename", "b-box", "d-box"]] {
        let said = say(&daemon, args);
        assert!(said.code != 0 && said.err.contains("cannot be read"), "{args:?}: {said:?}");
    }
    assert_ne!(say(&daemon, &["system", "check", "--repair"]).code, 0);
    let running = || Path::new(&format!("/proc/{pid}")).exists();
    assert!(running());
    // Beside it what comes and goes leaves nothing.
    ok(&daemon, &["rm", "-f", "a-box"]);
    assert_eq!(ok(&daemon, &["run", "--rm", BUSYBOX, "echo", "up"]), "up\n");
    daemon.stop();
    put(&daemon, "tasks", &key, value.as_deref());
    daemon.restart();
    assert_eq!(ok(&daemon, &["exec", "b-box", "echo", "still"]), "still\n");
    ok(&daemon, &["rm", "-f", "b-box"]);
    assert!(!running());
}

/// One owner can't be asked, and what the others know is told.
#[test]
fn a_part_that_cant_be_checked_keeps_no_other_from_it() {
    let daemon = Daemon::start();
    fs::create_dir_all(daemon.root().join("logs").join(daemon.namespace()).join("gone")).unwrap();
    let state = || {
        // It says so by its code, too.
        let said = say(&daemon, &["system", "status", "-o", "json"]);
        let status: serde_json::Value = serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"));
        let actors = status["actors"].as_array().unwrap().clone();
        let content = actors.into_iter().find(|actor| actor["name"] == "content").unwrap();
        content["health"].as_str().unwrap_or_else(|| panic!("{content}")).to_owned()
    };
    // It is not started again for ever.
    until("content has failed", || {
        say(&daemon, &["system", "crash", "content"]);
        (state() == "failed").then_some(())
    });
    let said = say(&daemon, &["system", "check", "-o", "json"]);
    assert_eq!((said.code, found(&said)), (1, ["log-unrecorded", "unchecked"].map(String::from).into()), "{said:?}");
    assert!(said.out.contains("check/content") && said.out.contains("has failed"), "{said:?}");
}
