//! Other processes in a container.

use cofferdam_client::{Status, Stdio};
use cofferdam_types::Code;

use crate::place::{Place, heard, sh};

pub async fn container_exec(place: &Place) {
    let (_, task) = place.asleep().await;
    let exec = task.exec("probe", &sh("exit 6"), Stdio::default());
    let wait = exec.wait();
    exec.start().await.unwrap();
    let exit = wait.await.unwrap();
    assert_eq!(exit.status, 6);
    assert_eq!(exec.delete().await.unwrap(), exit);
    assert_eq!(task.state().await.unwrap().status, Status::Running);
}

pub async fn container_large_exec_args(place: &Place) {
    let (_, task) = place.asleep().await;
    let large = "x".repeat(20_000);
    let (stdio, said) = heard();
    let mut options = sh("");
    options.args = vec!["echo".into(), large.clone()];
    let exec = task.exec("probe", &options, stdio);
    exec.start().await.unwrap();
    assert_eq!(exec.wait().await.unwrap().status, 0);
    assert!(said.text().await == large + "\n");
}

pub async fn container_exec_no_binary_exists(place: &Place) {
    let (_, task) = place.asleep().await;
    let mut options = sh("");
    options.args = vec!["nothing".into()];
    let error = task.exec("probe", &options, Stdio::default()).start().await.unwrap_err();
    assert_eq!(error.code, Code::NotFound, "{error}");
    assert!(error.to_string().contains("nothing"), "{error}");
    assert_eq!(task.state().await.unwrap().status, Status::Running);
}

pub async fn wait_stopped_process(place: &Place) {
    let (_, task) = place.asleep().await;
    let exec = task.exec("probe", &sh("exit 6"), Stdio::default());
    exec.start().await.unwrap();
    let exit = exec.wait().await.unwrap();
    assert_eq!(exit.status, 6);
    assert_eq!(exec.wait().await.unwrap(), exit);
    let loaded = place.elsewhere().await.containers().get("box").task().process("probe");
    assert_eq!(loaded.wait().await.unwrap(), exit);
}

pub async fn process_force_delete(place: &Place) {
    let (_, task) = place.asleep().await;
    let exec = task.exec("probe", &sh("exec sleep 1000"), Stdio::default());
    exec.start().await.unwrap();
    let error = exec.delete().await.unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition, "{error}");
    exec.kill(9, false).await.unwrap();
    assert_eq!(exec.wait().await.unwrap().status, 137);
    assert_eq!(exec.delete().await.unwrap().status, 137);
    assert_eq!(task.process("probe").state().await.unwrap_err().code, Code::NotFound);
}

pub async fn delete_container_exec_created(place: &Place) {
    let (_, task) = place.asleep().await;
    let exec = task.exec("probe", &sh("exit 6"), Stdio::default());
    assert_eq!(exec.state().await.unwrap().status, Status::Created);
    assert_eq!(exec.delete().await.unwrap().status, 0);
    assert_eq!(task.process("probe").state().await.unwrap_err().code, Code::NotFound);
}
