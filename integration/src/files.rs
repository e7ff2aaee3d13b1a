//! Where programs and images are.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// `target/<profile>`: a test lies in `deps` below it.
fn profile() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own file");
    let dir = exe.parent().expect("it lies in a directory");
    if dir.ends_with("deps") { dir.parent().expect("deps lies in target").to_owned() } else { dir.to_owned() }
}

/// Where our programs are.
pub fn programs() -> PathBuf {
    std::env::var_os("COFFERDAM_BIN_DIR").map_or_else(profile, PathBuf::from)
}

/// Those of an earlier commit, as deploy/older built them.
pub fn older_programs() -> PathBuf {
    let beside = || profile().parent().expect("a profile lies in target").join("older");
    let dir = std::env::var_os("COFFERDAM_OLDER").map_or_else(beside, PathBuf::from);
    assert!(dir.is_dir(), "{} is not there: run deploy/older", dir.display());
    dir
}

/// One of our programs.
pub fn binary(name: &str) -> PathBuf {
    let path = programs().join(name);
    assert!(path.is_file(), "{} is not there: build it first, in the test's profile", path.display());
    path
}

/// `target/test-images`.
pub fn images() -> PathBuf {
    let beside = || profile().parent().expect("a profile lies in target").join("test-images");
    let dir = std::env::var_os("COFFERDAM_TEST_IMAGES").map_or_else(beside, PathBuf::from);
    assert!(dir.is_dir(), "{} is not there: run deploy/images", dir.display());
    dir
}

/// What deploy/clients made for clients in other languages.
pub fn clients(name: &str) -> PathBuf {
    let beside = || profile().parent().expect("a profile lies in target").join("clients");
    let path = std::env::var_os("COFFERDAM_CLIENTS").map_or_else(beside, PathBuf::from).join(name);
    assert!(path.exists(), "{} is not there: run deploy/clients, and see what it says", path.display());
    path
}

/// criu, as deploy/setup installs it, or the one that `COFFERDAM_CRIU` names. Not the system's own: that is often too old.
pub fn criu() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        std::env::var("COFFERDAM_CRIU").unwrap_or_else(|_| "/usr/local/lib/cofferdam-criu/criu".into())
    });
    assert!(Path::new(path).is_file(), "{path} is not there: run deploy/setup, or name a criu in COFFERDAM_CRIU");
    path
}
