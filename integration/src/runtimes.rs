//! Runtime binaries of others.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;

/// crun insists on an unlimited amount of locked memory before it loads a BPF program, which has not counted as locked
/// memory since Linux 5.11, and which takes a capability that a test may not have.
const MEMLOCK: &str = r#"
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit) {
    return resource == RLIMIT_MEMLOCK ? 0 : (int)syscall(SYS_prlimit64, 0, resource, limit, (void *)0);
}
"#;

/// crun, as a path. Where the tests may not raise limits it is a script that runs crun without that one wish.
pub fn crun() -> String {
    static SCRIPT: OnceLock<Option<TempDir>> = OnceLock::new();
    let bits = cofferdam_sys::process::permitted_capabilities().expect("its own capabilities");
    const CAP_SYS_RESOURCE: u32 = 24;
    let script = SCRIPT.get_or_init(|| (bits & 1 << CAP_SYS_RESOURCE == 0).then(wrap));
    let found = ["/usr/bin/crun", "/usr/local/bin/crun"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let path = script.as_ref().map(|dir| dir.path().join("crun")).or(found).expect("crun: run deploy/setup");
    path.to_str().expect("UTF-8").to_owned()
}

/// A program of C that needs no libraries, so that it runs in any root: a directory with it as `name`.
pub fn program(name: &str, source: &str) -> TempDir {
    let dir = tempfile::Builder::new().prefix("program-").tempdir().expect("a directory");
    let (file, program) = (dir.path().join("source.c"), dir.path().join(name));
    std::fs::write(&file, source).expect("the source");
    let built = Command::new("cc").args(["-static", "-O1", "-o"]).args([&program, &file]).status();
    assert!(built.expect("cc: run deploy/setup").success());
    dir
}

/// Makes a script that can be executed at once.
pub fn script(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("the script");
    // In another process: a child that is forked meanwhile would hold it open for writing, and it could not be executed.
    let installed = Command::new("install").args(["-m", "755"]).args([new.as_path(), path]).status();
    assert!(installed.expect("install").success());
}

fn wrap() -> TempDir {
    let dir = tempfile::Builder::new().prefix("crun-").tempdir().expect("a directory");
    let (source, library) = (dir.path().join("memlock.c"), dir.path().join("memlock.so"));
    std::fs::write(&source, MEMLOCK).expect("the source");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.expect("cc: run deploy/setup").success());
    script(&dir.path().join("crun"), &format!("#!/bin/sh\nLD_PRELOAD={} exec crun \"$@\"\n", library.display()));
    dir
}
