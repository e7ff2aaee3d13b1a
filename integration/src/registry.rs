//! Debian's registry, with test images in it, and a cache of another make before it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// Debian's registry, until dropped.
pub struct Registry {
    dir: TempDir,
    /// scheme://host:port
    pub address: String,
}

impl Registry {
    /// Starts one, as `deploy/registry start` says, and pushes these test images.
    pub fn start(args: &[&str], names: &[&str]) -> Registry {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().to_str().expect("UTF-8").to_owned();
        let address = ask(&[&["start", &path], args].concat()).trim().to_owned();
        let registry = Registry { dir, address };
        if !names.is_empty() {
            registry.push(&crate::images(), names);
        }
        registry
    }

    /// Pushes what lies as OCI layouts in `oci/NAME`, of the tag `latest`.
    pub fn push(&self, layouts: &Path, names: &[&str]) {
        let (dir, layouts) = (self.dir.path().to_str().expect("UTF-8"), layouts.to_str().expect("UTF-8"));
        ask(&[&["push", dir, layouts], names].concat());
    }

    /// Which blobs it was asked for.
    pub fn served(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.path().join("log")).expect("its log");
        let asked = log.lines().filter_map(|line| line.split_once("\"GET ")?.1.split_once("/blobs/"));
        asked.filter_map(|(_, rest)| Some(rest.split([' ', '"']).next()?.to_owned())).collect()
    }

    /// host:port
    pub fn host(&self) -> &str {
        self.address.split_once("://").expect("a scheme").1
    }

    /// What an image in it is called.
    pub fn reference(&self, image: &str) -> String {
        format!("{}/{image}", self.host())
    }

    /// The certificate that vouches for it, with `--tls`.
    pub fn authority(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("ca.crt")).expect("it was started with --tls")
    }

    /// The certificate that it wants to be shown, and its key, with `--clients`.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        (self.dir.path().join("client.cert"), self.dir.path().join("client.key"))
    }

    /// What it was asked, a line for each request.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).expect("it has a log")
    }

    /// Ends it; what it has stays.
    pub fn stop(&self) {
        ask(&["stop", self.dir.path().to_str().expect("UTF-8")]);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = Command::new(script()).arg("stop").arg(self.dir.path()).status();
    }
}

/// A cache that is pulled through, until dropped.
pub struct Cache {
    dir: TempDir,
    /// scheme://host:port
    pub address: String,
}

impl Cache {
    /// Starts one, as `deploy/cache start` says: what is called NAME/... is pulled from an address.
    pub fn start(name: &str, from: &str) -> Cache {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().to_str().expect("UTF-8").to_owned();
        let address = run("cache", &["start", &path, name, from]).trim().to_owned();
        Cache { dir, address }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let _ = Command::new(deploy("cache")).arg("stop").arg(self.dir.path()).status();
    }
}

fn script() -> PathBuf {
    deploy("registry")
}

fn deploy(script: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../deploy", script].iter().collect()
}

fn ask(args: &[&str]) -> String {
    run("registry", args)
}

fn run(script: &str, args: &[&str]) -> String {
    let output = Command::new(deploy(script)).args(args).stdin(Stdio::null()).output().expect("a script of deploy");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "deploy/{script} {args:?}: {text}{why}");
    text
}
