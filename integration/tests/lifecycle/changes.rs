//! What changes of a container that is there: labels, spec, extensions, its name.

use std::collections::BTreeMap;

use cofferdam_client::{ContainerChanges, Status, Stdio};
use cofferdam_integration::{Daemon, bounded, output};
use cofferdam_types::{Any, Code, Labels};
use serde_json::{Value, json};

use crate::{container, idle, with};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn fields_that_are_named_change_and_no_other() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let namespace = daemon.open().await;
        let container = with(&namespace, "box", "exit 3", |c| c.labels = labels(&[("a", "1"), ("b.c", "2")]));
        let before = container.info().await.unwrap();
        let payload = |text: &str| Any { type_url: "test/text".into(), value: text.into() };
        let changes = ContainerChanges {
            labels: labels(&[("a", "9"), ("d", "4")]),
            extensions: BTreeMap::from([("x".to_owned(), payload("one")), ("y".to_owned(), payload("two"))]),
            ..ContainerChanges::default()
        };
        // One entry each; one that is absent in the changes goes.
        let after = container.update(&changes, &["labels.d", "labels.b.c", "extensions.x"]).await.unwrap();
        assert_eq!(after.labels, labels(&[("a", "1"), ("d", "4")]));
        assert_eq!(after.extensions, BTreeMap::from([("x".to_owned(), payload("one"))]));
        assert_eq!((after.created, &after.spec), (before.created, &before.spec));
        assert!(after.updated > before.updated);
        let after = container.update(&changes, &["labels", "extensions"]).await.unwrap();
        assert_eq!((&after.labels, &after.extensions), (&changes.labels, &changes.extensions));
        let after = container.update(&ContainerChanges::default(), &["extensions.x"]).await.unwrap();
        assert_eq!(after.extensions.keys().collect::<Vec<_>>(), ["y"]);

        // A spec counts from the next task on. Ours is the cgroup where it names none.
        let mut spec: Value = serde_json::from_slice(&before.spec.value).unwrap();
        spec["process"]["args"] = json!(["sh", "-c", "exit 4"]);
        let cgroup = spec["linux"]["cgroupsPath"].clone();
        spec["linux"].as_object_mut().unwrap().remove("cgroupsPath");
        let given = ContainerChanges {
            spec: Any { type_url: String::new(), value: spec.to_string().into_bytes() },
            ..ContainerChanges::default()
        };
        let after = container.update(&given, &["spec"]).await.unwrap();
        assert_eq!(after.labels, changes.labels);
        let now: Value = serde_json::from_slice(&after.spec.value).unwrap();
        assert_eq!(now["linux"]["cgroupsPath"], cgroup);
        let task = container.create_task(Stdio::default(), false);
        task.start().await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 4);
        // The cgroup by which a task is found does not change under it.
        spec["linux"]["cgroupsPath"] = json!("/elsewhere/box");
        let elsewhere = ContainerChanges {
            spec: Any { type_url: String::new(), value: spec.to_string().into_bytes() },
            ..ContainerChanges::default()
        };
        let refused = container.update(&elsewhere, &["spec"]).await.unwrap_err();
        assert_eq!(refused.code, Code::FailedPrecondition, "{refused}");

        for (fields, code) in [
            (vec!["image"], Code::InvalidArgument),
            (vec!["runtime.name"], Code::InvalidArgument),
            (vec!["group"], Code::InvalidArgument),
            (vec!["nonsense"], Code::InvalidArgument),
            // All of it, and no spec there.
            (vec![], Code::InvalidArgument),
        ] {
            let error = container.update(&changes, &fields).await.unwrap_err();
            assert_eq!(error.code, code, "{fields:?}: {error}");
        }
        let missing = namespace.containers().get("nobody").update(&changes, &["labels"]).await.unwrap_err();
        assert_eq!((missing.code, &*missing.kind), (Code::NotFound, "container"));
        container.remove(false).await.unwrap();
    });
}

#[test]
fn a_renamed_container_keeps_what_it_is() {
    let daemon = Daemon::with_busybox();
    let before = daemon.leftovers();
    bounded(async {
        let namespace = daemon.open().await;
        let old = container(&namespace, "old", "echo said; echo kept > /kept; exit 6");
        let made = old.info().await.unwrap();
        let task = old.create_task(Stdio::default(), true);
        task.start().await.unwrap();
        let exit = task.wait().await.unwrap();
        let removed = old.removed();
        let new = old.rename("new");
        let info = new.info().await.unwrap();
        assert_eq!((info.id.as_str(), info.created, &info.labels), ("new", made.created, &made.labels));
        let shown = info.task.unwrap();
        assert_eq!((shown.status, shown.exit.as_ref()), (Status::Stopped, Some(&exit)));
        assert_eq!(old.info().await.unwrap_err().code, Code::NotFound);
        removed.await.unwrap();

        // Its name is free, and what has it now is another one.
        let (other, _) = idle(&namespace, "old").await;
        let said = daemon.coffer(&["logs", "new"]);
        assert_eq!(String::from_utf8_lossy(&said.stdout), "said\n");
        // Found again by its new name.
        daemon.restart();
        let namespace = daemon.open().await;
        let new = namespace.containers().get("new");
        assert_eq!(new.task().wait().await.unwrap(), exit);
        assert_eq!(new.task().delete().await.unwrap(), exit);
        let taken = new.rename("old").info().await.unwrap_err();
        assert_eq!(taken.code, Code::AlreadyExists);
        let taken = new.rename("new").info().await.unwrap_err();
        assert_eq!(taken.code, Code::AlreadyExists);
        assert_eq!(new.rename("no/name").info().await.unwrap_err().code, Code::InvalidArgument);
        // What it wrote to its file system went along.
        let mut spec: Value = serde_json::from_slice(&new.info().await.unwrap().spec.value).unwrap();
        spec["process"]["args"] = json!(["cat", "/kept"]);
        let spec = Any { type_url: String::new(), value: spec.to_string().into_bytes() };
        new.update(&ContainerChanges { spec, ..ContainerChanges::default() }, &["spec"]).await.unwrap();
        let (stdout, arrivals) = output();
        let task = new.create_task(Stdio { stdout, ..Stdio::default() }, false);
        task.start().await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 0);
        assert_eq!(arrivals.text().await, "kept\n");
        drop(other);
        for id in ["old", "new"] {
            namespace.containers().get(id).remove(true).await.unwrap();
        }
    });
    daemon.settles(&before);
}
