//! What happens is told: each topic of the daemon's own, with what its payload says. The list of them is the one that clients
//! read, at the head of event.capnp.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::Path,
};

use cofferdam_client::{
    CheckpointOptions, Client, ContainerChanges, Exit, ImportFormat, ImportOptions, Namespace, ProcessOptions,
    RUNTIME_OPTIONS, Stdio,
};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, criu, until_async};
use cofferdam_types::{Any, Code, Labels};
use serde_json::{Value, json};

use crate::with;

const MIB: u64 = 1 << 20;
const TEXT: &str = "docker.io/test/text:latest";
/// Below which no client publishes.
const OURS: &[&str] = &["/containers/", "/content/", "/images/", "/namespaces/", "/snapshot/", "/tasks/"];

/// Payloads by topic, in their order.
type Told = BTreeMap<String, Vec<Value>>;

fn add(told: &mut Told, topic: &str, payload: Value) {
    told.entry(topic.to_owned()).or_default().push(payload);
}

/// What the namespace tells behind an event, up to now.
async fn told(namespace: &Namespace, after: u64) -> Told {
    let events = namespace.events();
    // It is told behind what nobody waited for.
    let last = events.publish("/test/end", &json!({})).await.unwrap();
    let mut subscription = events.subscribe(after, &[] as &[&str]);
    let mut all = Told::new();
    loop {
        let event = subscription.next().await.unwrap().expect("no gap");
        if event.sequence == last {
            return all;
        }
        assert!(OURS.iter().any(|ours| event.topic.starts_with(ours)), "{}", event.topic);
        add(&mut all, &event.topic, event.payload);
    }
}

/// The topics that the schema names.
fn documented() -> BTreeSet<String> {
    let schema = include_str!("../../../schema/wire/capnp/event.capnp");
    let mut all = BTreeSet::new();
    for line in schema.lines().filter_map(|line| line.strip_prefix("#   ")) {
        let mut more = None;
        for word in line.split_whitespace() {
            let name = word.trim_end_matches(',');
            let topic = match (name.strip_prefix('/'), more.take()) {
                (Some(_), _) => name.to_owned(),
                (None, Some(parent)) => format!("{parent}/{name}"),
                (None, None) => continue,
            };
            more = word.ends_with(',').then(|| topic.rsplit_once('/').unwrap().0.to_owned());
            all.insert(topic);
        }
    }
    all
}

#[test]
fn the_schema_names_topics() {
    let all = documented();
    assert!(all.contains("/snapshot/repaired") && all.contains("/tasks/oom") && all.len() > 20, "{all:?}");
}

fn ended(container: &str, id: &str, pid: u32, exit: &Exit) -> Value {
    json!({
        "container_id": container, "id": id, "pid": pid,
        "exit_status": exit.status, "exited_at": exit.at.to_rfc3339(), "reason": exit.reason,
    })
}

async fn import(namespace: &Namespace, dir: &Path) -> Value {
    let options = ImportOptions { name: TEXT.into(), format: ImportFormat::Rootfs, ..Default::default() };
    namespace.images().import_fd(&options, File::open(dir).unwrap().into()).wait().await.unwrap();
    let info = namespace.images().get(&options.name).info().await.unwrap();
    json!({ "name": info.name, "labels": info.labels })
}

/// Which blobs and snapshots there are.
async fn stored(namespace: &Namespace) -> (BTreeSet<String>, BTreeSet<String>) {
    let blobs = namespace.content().list(&[] as &[&str]).all().await.unwrap();
    let snapshots = namespace.snapshots("overlay").list(&[] as &[&str]).all().await.unwrap();
    (
        blobs.into_iter().map(|blob| blob.digest.to_string()).collect(),
        snapshots.into_iter().map(|snapshot| snapshot.key).collect(),
    )
}

fn kept() -> Labels {
    Labels::from([("containerd.io/gc.root".to_owned(), "now".to_owned())])
}

/// Of a namespace.
async fn namespaces(client: &Client) -> Told {
    let all = client.namespaces();
    let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
    all.create("other", &labels).await.unwrap();
    let more = Labels::from([("c".to_owned(), "d".to_owned())]);
    client.namespace("other").update(&more, &["labels.c"]).await.unwrap();
    all.remove("other").await.unwrap();
    // Who comes later finds what was told of the one before.
    all.create("other", &Labels::new()).await.unwrap();
    let found = told(&client.namespace("other"), 0).await;
    let create = |labels: Value| json!({ "name": "other", "labels": labels });
    let expected = Told::from([
        ("/namespaces/create".into(), vec![create(json!({"a": "b"})), create(json!({}))]),
        ("/namespaces/update".into(), vec![create(json!({"a": "b", "c": "d"}))]),
        ("/namespaces/delete".into(), vec![json!({ "name": "other" })]),
    ]);
    assert_eq!(found, expected);
    found
}

/// Of images, content and snapshots.
async fn store(client: &Client, namespace: &Namespace) -> Told {
    let after = namespace.events().last().await.unwrap();
    let mut expected = Told::new();
    let dir = tempfile::tempdir().unwrap();
    let layer = async || namespace.images().get(TEXT).detail("").await.unwrap().chain_id;
    for (topic, text) in [("/images/create", "one"), ("/images/update", "two")] {
        fs::write(dir.path().join("text"), text).unwrap();
        add(&mut expected, topic, import(namespace, dir.path()).await);
        let layer = layer().await;
        add(&mut expected, "/snapshot/commit", json!({ "key": layer, "name": layer, "driver": "overlay" }));
    }
    let layer = layer().await;
    namespace.images().remove(TEXT).await.unwrap();
    add(&mut expected, "/images/delete", json!({ "name": TEXT }));

    let overlay = namespace.snapshots("overlay");
    overlay.prepare("active", &layer, &kept()).info().await.unwrap();
    add(&mut expected, "/snapshot/prepare", json!({ "key": "active", "parent": layer, "driver": "overlay" }));
    overlay.view("view", &layer, &kept()).info().await.unwrap();
    overlay.get("active").commit("done", &Labels::new()).info().await.unwrap();
    add(&mut expected, "/snapshot/commit", json!({ "key": "active", "name": "done", "driver": "overlay" }));
    overlay.get("view").remove().await.unwrap();
    add(&mut expected, "/snapshot/remove", json!({ "key": "view", "driver": "overlay" }));

    // What nothing keeps.
    let (blobs, snapshots) = stored(namespace).await;
    client.collector().collect(false).await.unwrap();
    let (blobs_left, snapshots_left) = stored(namespace).await;
    let gone: Vec<Value> = blobs.difference(&blobs_left).map(|digest| json!({ "digest": digest })).collect();
    assert!(gone.len() > 3, "{gone:?}");
    expected.insert("/content/delete".into(), gone);
    let trees = snapshots.difference(&snapshots_left).map(|key| json!({ "key": key, "driver": "overlay" }));
    expected.get_mut("/snapshot/remove").unwrap().extend(trees);

    // In which order it goes nobody promised.
    let mut found = told(namespace, after).await;
    for told in [&mut found, &mut expected] {
        for topic in ["/content/delete", "/snapshot/remove"] {
            told.get_mut(topic).unwrap().sort_by_key(Value::to_string);
        }
    }
    assert_eq!(found, expected);
    found
}

/// Of a container and what runs in it.
async fn containers(namespace: &Namespace) -> Told {
    let after = namespace.events().last().await.unwrap();
    let mut expected = Told::new();
    let layer = namespace.images().get(BUSYBOX).detail("").await.unwrap().chain_id;
    let options = Any { type_url: RUNTIME_OPTIONS.into(), value: b"{}".to_vec() };
    let container = with(namespace, "first", "exec sleep 1000", |request| {
        request.options.memory = 16 * MIB;
        request.runtime_options = options;
    });
    let info = container.info().await.unwrap();
    let (image, key) = (&info.image, &info.snapshot_key);
    add(&mut expected, "/snapshot/prepare", json!({ "key": key, "parent": layer, "driver": "overlay" }));
    let runtime = json!({ "name": "native", "options": { "type_url": RUNTIME_OPTIONS } });
    add(&mut expected, "/containers/create", json!({ "id": "first", "image": image, "runtime": runtime }));
    let changes =
        ContainerChanges { labels: Labels::from([("a".to_owned(), "b".to_owned())]), ..ContainerChanges::default() };
    container.update(&changes, &["labels"]).await.unwrap();
    let updated =
        |id: &str, key: &str| json!({ "id": id, "image": image, "labels": { "a": "b" }, "snapshot_key": key });
    add(&mut expected, "/containers/update", updated("first", key));
    let container = container.rename("box");
    let key = container.info().await.unwrap().snapshot_key;
    add(&mut expected, "/containers/rename", json!({ "id": "box", "from": "first" }));
    // Nor swap beside it.
    let limits = json!({"memory": {"limit": 16 * MIB, "swap": 16 * MIB}}).to_string();
    container.update_resources(limits.as_bytes()).await.unwrap();
    add(&mut expected, "/containers/update", updated("box", &key));

    let created = |terminal: bool, checkpoint: Option<&str>| json!({ "container_id": "box", "io": { "terminal": terminal }, "checkpoint": checkpoint });
    let task = container.create_task(Stdio::default(), false);
    task.made().await.unwrap();
    add(&mut expected, "/tasks/create", created(false, None));
    let pid = task.start().await.unwrap();
    add(&mut expected, "/tasks/start", json!({ "container_id": "box", "pid": pid }));
    task.pause().await.unwrap();
    task.resume().await.unwrap();
    for topic in ["/tasks/paused", "/tasks/resumed"] {
        add(&mut expected, topic, json!({ "container_id": "box" }));
    }
    let named = CheckpointOptions {
        name: "docker.io/test/checkpoint:latest".into(),
        leave_running: true,
        ..CheckpointOptions::default()
    };
    task.checkpoint(&named).wait().await.unwrap();
    let checkpoint = namespace.images().get(&named.name);
    let labels = checkpoint.info().await.unwrap().labels;
    add(&mut expected, "/images/create", json!({ "name": named.name, "labels": labels }));
    add(&mut expected, "/tasks/checkpointed", json!({ "container_id": "box", "checkpoint": named.name }));
    let greedy = ProcessOptions { args: ["tail", "/dev/zero"].map(String::from).into(), ..ProcessOptions::default() };
    let exec = task.exec("greedy", &greedy, Stdio::default());
    exec.made().await.unwrap();
    let id = json!({ "container_id": "box", "exec_id": "greedy" });
    add(&mut expected, "/tasks/exec-added", id);
    let exec_pid = exec.start().await.unwrap();
    let started = json!({ "container_id": "box", "exec_id": "greedy", "pid": exec_pid });
    add(&mut expected, "/tasks/exec-started", started);
    let exit = exec.wait().await.unwrap();
    assert_eq!(exit.status, 137);
    add(&mut expected, "/tasks/exit", ended("box", "greedy", exec_pid, &exit));
    add(&mut expected, "/tasks/oom", json!({ "container_id": "box", "count": 1 }));
    until_async("that it ran out of memory is on record", async || {
        (container.info().await.unwrap().task.unwrap().ooms == 1).then_some(())
    })
    .await;
    task.kill(9, false).await.unwrap();
    let exit = task.wait().await.unwrap();
    task.delete().await.unwrap();
    for topic in ["/tasks/exit", "/tasks/delete"] {
        add(&mut expected, topic, ended("box", "box", pid, &exit));
    }

    // One that is restored, and never started; and one of which nothing comes.
    let task = container.create_task_from(&checkpoint, Stdio::default(), false);
    task.made().await.unwrap();
    add(&mut expected, "/tasks/create", created(false, Some(&named.name)));
    let exit = task.delete().await.unwrap();
    for topic in ["/tasks/exit", "/tasks/delete"] {
        add(&mut expected, topic, ended("box", "box", 0, &exit));
    }
    container.remove(false).await.unwrap();
    add(&mut expected, "/snapshot/remove", json!({ "key": key, "driver": "overlay" }));
    add(&mut expected, "/containers/delete", json!({ "id": "box" }));
    let found = told(namespace, after).await;
    assert_eq!(found, expected);
    found
}

/// Of what the disk has changed.
async fn damage(daemon: &Daemon, client: &Client, namespace: &Namespace) -> Told {
    let after = namespace.events().last().await.unwrap();
    let info = namespace.images().get(BUSYBOX).detail("").await.unwrap();
    let hex = info.manifest.digest.hex();
    let file = daemon.root().join("content/blobs/sha256").join(hex);
    let right = fs::read(&file).unwrap();
    let dirs = fs::read_dir(daemon.root().join("snapshots/overlay")).unwrap().map(|dir| dir.unwrap().path().join("fs"));
    let tree = dirs.into_iter().find(|tree| tree.join("bin").exists()).unwrap();
    let faults = async |repair: bool| {
        let found = client.system().check(repair).all().await.unwrap();
        found.into_iter().map(|finding| finding.fault).collect::<Vec<_>>()
    };
    let finds = async |fault: &str| {
        until_async("it is found", async || (faults(false).await == [fault]).then_some(())).await;
    };
    fs::write(tree.join("bin/nobodys"), "of nobody").unwrap();
    finds("snapshot-damaged").await;
    assert_eq!(faults(true).await, ["snapshot-damaged"]);
    fs::write(&file, vec![b' '; right.len()]).unwrap();
    finds("blob-damaged").await;
    let mut found = told(namespace, after).await;
    found.retain(|topic, _| topic.ends_with("/damaged") || topic.ends_with("/repaired"));
    let layer = json!({ "key": info.chain_id, "driver": "overlay" });
    let expected = Told::from([
        ("/content/damaged".into(), vec![json!({ "digest": info.manifest.digest })]),
        ("/snapshot/damaged".into(), vec![layer.clone()]),
        ("/snapshot/repaired".into(), vec![layer]),
    ]);
    assert_eq!(found, expected);
    found
}

// Who follows creations and deletions would be left with it otherwise.
#[test]
fn a_task_that_can_not_be_made_is_told_of_as_gone() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let after = namespace.events().last().await.unwrap();
        let value = json!({"shimCgroup": "/none/such"}).to_string().into_bytes();
        let container = with(&namespace, "box", "exit 0", |request| {
            request.runtime_options = Any { type_url: RUNTIME_OPTIONS.into(), value };
        });
        let error = container.create_task(Stdio::default(), false).made().await.unwrap_err();
        assert_eq!(error.code, Code::NotFound, "{error}");
        let told = told(&namespace, after).await;
        let of =
            |topic: &str| told.get(topic).into_iter().flatten().map(|p| p["container_id"].clone()).collect::<Vec<_>>();
        assert_eq!((of("/tasks/create"), of("/tasks/delete")), (vec![json!("box")], vec![json!("box")]), "{told:?}");
        container.remove(false).await.unwrap();
    });
}

/// Nothing is collected unless it is asked for, and what the disk changes is found soon.
const FLAGS: &[&str] = &[
    "--gc",
    "startup_delay=0,deletion_threshold=1000000000,mutation_threshold=0,period=0,disk_pressure=0",
    "--scrub",
    "1",
    "--criu",
];

#[test]
fn every_topic_is_told_with_its_payload() {
    let daemon = Daemon::with_flags([FLAGS, &[criu()]].concat().leak());
    daemon.import_busybox();
    bounded(async {
        let client = daemon.client().await;
        let namespace = client.namespace(daemon.namespace());
        let mut seen = BTreeSet::new();
        seen.extend(namespaces(&client).await.into_keys());
        seen.extend(store(&client, &namespace).await.into_keys());
        seen.extend(containers(&namespace).await.into_keys());
        seen.extend(damage(&daemon, &client, &namespace).await.into_keys());
        assert_eq!(seen, documented());
    });
}
