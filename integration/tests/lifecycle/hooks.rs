//! Hooks of a spec, with every driver, through daemon and shim.

use cofferdam_client::{Container, ContainerRequest, Namespace, Stdio};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, output, script as install};
use serde_json::{Value, json};

use crate::with;

/// It notes which one it is, once it has got the state of a container.
const HOOK: &str = "#!/bin/sh\ngrep -q '\"id\" *: *\"box\"' && sleep $2 && echo $1 >> DIR/said\n";

struct Scene {
    daemon: Daemon,
    runtime: String,
}

impl Scene {
    fn new(runtime: &str) -> Scene {
        let (daemon, runtime) = match runtime {
            // It refuses hybrid cgroups.
            "crun" => (Daemon::unified_with_busybox(), cofferdam_integration::crun()),
            other => (Daemon::with_busybox(), other.to_owned()),
        };
        let path = daemon.path().join("hook");
        install(&path, &HOOK.replace("DIR", daemon.path().to_str().unwrap()));
        Scene { daemon, runtime }
    }

    fn hook(&self, kind: &str, seconds: u32) -> Value {
        let path = self.daemon.path().join("hook");
        json!({"path": path, "args": [path, kind, seconds.to_string()], "env": ["PATH=/usr/bin:/bin"]})
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.daemon.path().join("said")).unwrap_or_default().replace('\n', " ")
    }

    async fn container(&self, namespace: &Namespace, script: &str, hooks: Value) -> Container {
        let model = with(namespace, "model", script, |_| {});
        let mut spec: Value = serde_json::from_slice(&model.info().await.unwrap().spec.value).unwrap();
        model.remove(false).await.unwrap();
        spec["hooks"] = hooks;
        let cgroup = spec["linux"]["cgroupsPath"].as_str().unwrap().replace("/model", "/box");
        spec["linux"]["cgroupsPath"] = json!(cgroup);
        let request = ContainerRequest { id: "box".into(), runtime: self.runtime.clone(), ..Default::default() };
        let image = namespace.images().get(BUSYBOX);
        namespace.containers().create_from_spec(Some(&image), &request, &serde_json::to_vec(&spec).unwrap())
    }
}

fn each_kind_in_its_place(runtime: &str) {
    let scene = Scene::new(runtime);
    let before = scene.daemon.leftovers();
    bounded(async {
        let namespace = scene.daemon.open().await;
        let inside = json!({"path": "/bin/sh", "args": ["sh", "-c", "cat > /dev/null; echo startContainer > /said"]});
        let mut hooks = json!({"startContainer": [inside]});
        for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            hooks[kind] = json!([scene.hook(kind, 0)]);
        }
        let container = scene.container(&namespace, "cat /said; exec sleep 1000", hooks).await;
        let (stdout, arrivals) = output();
        let task = container.create_task(Stdio { stdout, ..Stdio::default() }, false);
        task.state().await.unwrap();
        // runc is early with it.
        let late = if runtime == "runc" { "poststart " } else { "" };
        assert_eq!(scene.said(), format!("prestart createRuntime createContainer {late}"));
        task.start().await.unwrap();
        arrivals.contains("startContainer\n").await;
        assert_eq!(scene.said(), "prestart createRuntime createContainer poststart ");
        task.kill(9, false).await.unwrap();
        task.wait().await.unwrap();
        container.remove(false).await.unwrap();
        assert_eq!(scene.said(), "prestart createRuntime createContainer poststart poststop ");
    });
    scene.daemon.settles(&before);
}

#[test]
fn each_kind_of_hook_runs_in_its_place_with_native() {
    each_kind_in_its_place("native");
}

#[test]
fn each_kind_of_hook_runs_in_its_place_with_runc() {
    each_kind_in_its_place("runc");
}

#[test]
fn each_kind_of_hook_runs_in_its_place_with_crun() {
    each_kind_in_its_place("crun");
}
