//! Starts that can't be recorded when they happen.

use std::fs;

use cofferdam_client::{ProcessOptions, Status, Stdio};
use cofferdam_integration::{Daemon, bounded, fill, input, small_disk, until_async};
use cofferdam_types::Code;

use crate::tell;

/// Until the tables have no room of their own either.
async fn exhaust(daemon: &Daemon) {
    let events = daemon.open().await.events();
    for size in [15 << 10, 1 << 10, 16] {
        let much = serde_json::json!({ "text": "x".repeat(size) });
        until_async("there is no room", async || match events.publish("/test/much", &much).await {
            Ok(_) => None,
            Err(error) => {
                assert_eq!(error.code, Code::ResourceExhausted, "{error}");
                Some(())
            }
        })
        .await;
    }
}

/// What runs is there, and is told of when there is room: in its order, and once. So is what has ended by then.
#[test]
fn a_start_on_a_full_disk_is_told_before_its_end() {
    let daemon = small_disk(64, 4096);
    daemon.import_busybox();
    bounded(async {
        let client = daemon.client().await;
        let namespace = client.namespace(daemon.namespace());
        let mut tasks = Vec::new();
        for id in ["lasts", "brief"] {
            let (stdin, file) = input();
            let request = daemon.run(id, ["sh", "-c", "read code; exit $code"]);
            let image = namespace.images().get(&request.image.reference);
            let container = namespace.containers().create(&image, &request.container);
            let task = container.create_task(Stdio { stdin, ..Stdio::default() }, false);
            task.state().await.unwrap();
            tasks.push((container, task, file));
        }
        let filler = fill(&daemon.root(), 0);
        exhaust(&daemon).await;
        let last = namespace.events().last().await.unwrap();
        for (_, task, _) in &tasks {
            task.start().await.unwrap();
            assert_eq!(task.state().await.unwrap().status, Status::Running);
        }
        let options = ProcessOptions { args: ["sh", "-c", "exit 3"].map(String::from).into(), ..Default::default() };
        let exec = tasks[0].1.exec("run", &options, Stdio::default());
        exec.start().await.unwrap();
        assert_eq!(exec.wait().await.unwrap().status, 3);
        let (brief, task, file) = &tasks[1];
        tell(file, 5);
        assert_eq!(task.wait().await.unwrap().status, 5);
        assert_eq!(namespace.events().last().await.unwrap(), last, "there was room");
        fs::remove_file(filler).unwrap();

        let topics = ["start", "exec-added", "exec-started", "exit"].map(|topic| format!("topic==\"/tasks/{topic}\""));
        let mut events = namespace.events().subscribe(last, &topics.each_ref().map(|topic| &**topic));
        let mut told = Vec::new();
        while told.len() < 6 {
            let event = events.next().await.unwrap().expect("no gap");
            let of = ["exec_id", "id", "container_id"].into_iter().find_map(|key| event.payload[key].as_str());
            told.push((event.topic, of.unwrap().to_owned()));
        }
        let at = |topic: &str, id: &str| {
            let mut found = told.iter().enumerate().filter(|(_, (t, of))| *t == *topic && of == id);
            let (at, _) = found.next().unwrap_or_else(|| panic!("{topic} of {id}: {told:?}"));
            assert!(found.next().is_none(), "{topic} of {id} twice: {told:?}");
            at
        };
        assert!(at("/tasks/start", "brief") < at("/tasks/exit", "brief"), "{told:?}");
        assert!(at("/tasks/exec-started", "run") < at("/tasks/exit", "run"), "{told:?}");
        at("/tasks/start", "lasts");
        at("/tasks/exec-added", "run");
        // By the record too.
        let shown = tasks[0].0.info().await.unwrap().task.unwrap();
        assert!(shown.started.0 > 0 && shown.pid > 0, "{shown:?}");
        brief.remove(false).await.unwrap();
        tell(&tasks[0].2, 7);
        assert_eq!(tasks[0].1.wait().await.unwrap().status, 7);
        tasks[0].0.remove(false).await.unwrap();
    });
}
