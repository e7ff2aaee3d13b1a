//! Containers as records.

use std::{collections::BTreeMap, path::Path};

use cofferdam_client::{Container, ContainerChanges, ContainerRequest, Stdio};
use cofferdam_types::{Any, Code, Labels};
use serde_json::{Value, json};

use crate::place::{Place, end, heard};

pub async fn container_list(place: &Place) {
    let list = async || place.namespace.containers().list::<&str>(&[]).all().await.unwrap();
    assert!(list().await.is_empty());
    place.container("exit 0").info().await.unwrap();
    assert_eq!(list().await.iter().map(|info| &*info.id).collect::<Vec<_>>(), ["box"]);
}

/// A container that has neither image nor snapshot.
fn without_image(place: &Place, id: &str, root: &Path) -> Container {
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", "exit 5"], "cwd": "/"},
        "root": {"path": root, "readonly": true},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
    });
    let request = ContainerRequest { id: id.into(), ..ContainerRequest::default() };
    place.namespace.containers().create_from_spec(None, &request, spec.to_string().as_bytes())
}

pub async fn new_container(place: &Place) {
    let container = without_image(place, "box", &place.root());
    container.made().await.unwrap();
    let info = container.info().await.unwrap();
    assert_eq!((&*info.id, &*info.snapshot_key), ("box", ""));
    // What becomes of the making can be asked again and again.
    let second = without_image(place, "box", &place.root());
    for _ in 0..2 {
        container.made().await.unwrap();
        assert_eq!(second.made().await.unwrap_err().code, Code::AlreadyExists);
    }
    let kept: Value = serde_json::from_slice(&info.spec.value).unwrap();
    assert_eq!(kept["process"]["args"][2], "exit 5");
    let task = container.create_task(Stdio::default(), false);
    task.made().await.unwrap();
    assert_eq!(container.create_task(Stdio::default(), false).made().await.unwrap_err().code, Code::FailedPrecondition);
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().status, 5);
    container.remove(false).await.unwrap();
    assert_eq!(container.info().await.unwrap_err().code, Code::NotFound);
}

pub async fn container_image(place: &Place) {
    let info = place.container("exit 0").info().await.unwrap();
    let image = place.namespace.images().get(&info.image).info().await.unwrap();
    assert_eq!((&info.image, &*image.name), (&image.name, "docker.io/test/busybox:latest"));
}

pub async fn container_no_image(place: &Place) {
    assert_eq!(without_image(place, "box", &place.root()).info().await.unwrap().image, "");
    let nowhere = without_image(place, "other", Path::new("rootfs")).info().await.unwrap_err();
    assert_eq!((nowhere.code, &*nowhere.id), (Code::InvalidArgument, "root.path"), "{nowhere}");
    // From one that is not there nothing is made.
    let missing = place.namespace.images().get("test/missing");
    let request = ContainerRequest { id: "other".into(), ..ContainerRequest::default() };
    let error = place.namespace.containers().create(&missing, &request).info().await.unwrap_err();
    assert_eq!((error.code, &*error.kind), (Code::NotFound, "image"), "{error}");
    assert_eq!(place.namespace.containers().get("other").info().await.unwrap_err().code, Code::NotFound);
}

pub async fn container_info(place: &Place) {
    let made = place.container("exit 0").info().await.unwrap();
    let loaded = place.elsewhere().await.containers().get("box").info().await.unwrap();
    assert_eq!((&*loaded.id, &loaded), ("box", &made));
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub async fn container_labels(place: &Place) {
    let container = place.with("exit 0", |request| request.labels = labels(&[("test", "yes")]));
    assert_eq!(container.info().await.unwrap().labels, labels(&[("test", "yes")]));
    let changes = ContainerChanges { labels: labels(&[("test", "no")]), ..ContainerChanges::default() };
    let changed = container.update(&changes, &["labels.test"]).await.unwrap();
    assert_eq!(changed.labels, changes.labels);
    let listed = place.namespace.containers().list(&["labels.test==no"]).all().await.unwrap();
    assert_eq!(listed.len(), 1);
}

pub async fn container_extensions(place: &Place) {
    let container = place.container("exit 0");
    let hello = Any { type_url: "hello".into(), value: b"world\0\xff".to_vec() };
    let extensions = BTreeMap::from([("hello".to_owned(), hello.clone())]);
    let changes = ContainerChanges { extensions: extensions.clone(), ..ContainerChanges::default() };
    assert_eq!(container.update(&changes, &["extensions"]).await.unwrap().extensions, extensions);
    let loaded = place.elsewhere().await.containers().get("box").info().await.unwrap();
    assert_eq!(loaded.extensions["hello"], hello);
}

pub async fn container_update(place: &Place) {
    let container = place.container("hostname");
    let info = container.info().await.unwrap();
    let mut spec: Value = serde_json::from_slice(&info.spec.value).unwrap();
    spec["hostname"] = json!("updated");
    let changes = ContainerChanges {
        spec: Any { type_url: info.spec.type_url, value: spec.to_string().into_bytes() },
        ..ContainerChanges::default()
    };
    container.update(&changes, &["spec"]).await.unwrap();
    let loaded = place.elsewhere().await.containers().get("box");
    let kept: Value = serde_json::from_slice(&loaded.info().await.unwrap().spec.value).unwrap();
    assert_eq!(kept["hostname"], "updated");
    let (stdio, said) = heard();
    let task = loaded.create_task(stdio, false);
    task.start().await.unwrap();
    assert_eq!((task.wait().await.unwrap().status, said.text().await), (0, "updated\n".into()));
}

pub async fn delete_running_container(place: &Place) {
    let (container, task) = place.asleep().await;
    let error = container.remove(false).await.unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    end(&task).await;
    container.remove(false).await.unwrap();
}

pub async fn container_runtime_options(place: &Place) {
    let container = place.with("exit 0", |request| request.runtime = "/opt/no-runc".into());
    let task = container.create_task(Stdio::default(), false);
    let error = task.start().await.unwrap_err();
    assert!(error.to_string().contains("no-runc"), "{error}");
}
