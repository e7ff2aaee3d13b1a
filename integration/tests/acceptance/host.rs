//! What needs the host: cgroups of shims, user namespaces.

use cofferdam_client::{IdMap, RUNTIME_OPTIONS, Stdio};
use cofferdam_integration::until_async;
use cofferdam_sys::cgroup::{Cgroup, Layout};
use cofferdam_types::Any;
use serde_json::{Value, json};

use crate::place::{Place, heard};

fn options(value: &Value) -> Any {
    Any { type_url: RUNTIME_OPTIONS.into(), value: value.to_string().into_bytes() }
}

/// A cgroup that goes with this.
struct Group(Cgroup);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.0.remove();
    }
}

pub async fn shim_in_cgroup(place: &Place) {
    let path = format!("/acceptance-{}", std::process::id());
    let group = Group(Cgroup::create(&Layout::detect().unwrap(), &path).unwrap());
    let container =
        place.with("exec sleep 1000", |request| request.runtime_options = options(&json!({"shimCgroup": path})));
    container.create_task(Stdio::default(), false).start().await.unwrap();
    let system = place.client.system();
    let shims = system.shims().all().await.unwrap();
    let shim = shims.iter().find(|shim| shim.namespace == place.name()).unwrap();
    let pid = system.shim(&shim.id).await.unwrap().pid;
    assert_eq!(group.0.pids().unwrap(), [pid as i32], "the shim, and not its container");
    container.remove(true).await.unwrap();
    until_async("the shim ends", async || group.0.pids().unwrap().is_empty().then_some(())).await;
}

pub async fn user_namespaces_writable_root_fs(place: &Place) {
    let said = remapped(place, false, "touch /made && stat -c %u /made").await;
    assert_eq!(said, "0\n0\n");
}

pub async fn user_namespaces_readonly_root_fs(place: &Place) {
    let said = remapped(place, true, "touch /made 2>&1").await;
    assert!(said.ends_with("Read-only file system\n"), "{said}");
}

/// Runs as root of a user namespace that is user 1000 of the host, to whom its streams belong.
async fn remapped(place: &Place, read_only: bool, script: &str) -> String {
    // The stream is opened once more, which takes rights on it.
    let script = format!("id -u > /proc/self/fd/1; {script}; exit 7");
    let container = place.with(&script, |request| {
        request.options.userns = vec![IdMap { container: 0, host: 1000, size: 10_000 }];
        request.options.read_only = read_only;
        request.runtime_options = options(&json!({"ioUid": 1000, "ioGid": 1000}));
    });
    let (stdio, said) = heard();
    let task = container.create_task(stdio, false);
    let pid = task.state().await.unwrap().pid;
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "1000", "10000"]);
    task.start().await.unwrap();
    assert_eq!(task.wait().await.unwrap().status, 7);
    said.text().await
}
