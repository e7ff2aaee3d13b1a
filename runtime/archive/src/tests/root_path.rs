//! Paths through links, as containerd's tests of `RootPath` have them, each under the name that it has there: an archive
//! puts a file at the path, and it is where the path leads if the root were `/`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use cofferdam_types::Code;

use super::support::{Tar, apply_to};
use crate::ApplyOptions;

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match fs::symlink_metadata(&path).unwrap() {
            meta if meta.is_dir() => files(&path, found),
            meta if meta.is_file() => found.push(path),
            _ => {}
        }
    }
}

/// Makes the links (what they lead to, and where they are), and puts a file at `path` below `root`. `None`: it can't be.
fn check(links: &[(&str, &str)], root: &str, path: &str, leads: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    fs::create_dir_all(top.join("fs")).unwrap();
    for (target, link) in links {
        let link = top.join(link);
        if !fs::symlink_metadata(link.parent().unwrap()).is_ok_and(|meta| meta.is_symlink()) {
            fs::create_dir_all(link.parent().unwrap()).unwrap();
        }
        symlink(target, link).unwrap();
        if *target == "realdir" || *target == "root2" {
            fs::create_dir_all(top.join(target)).unwrap();
        }
    }
    let root = top.join(root);
    fs::create_dir_all(fs::canonicalize(&root).unwrap_or_else(|_| root.clone())).unwrap();
    let tar = Tar::new().file(&format!("{path}/probe"), "x").end();
    let applied = apply_to(&root, &tar, &ApplyOptions::default());
    let mut found = Vec::new();
    files(dir.path(), &mut found);
    match leads {
        Some(leads) => {
            applied.unwrap();
            let wanted = fs::canonicalize(&root).unwrap().join(leads).join("probe");
            assert_eq!(found, [wanted], "{links:?}");
        }
        None => {
            assert_eq!(applied.unwrap_err().code, Code::InvalidArgument);
            assert!(found.is_empty(), "nothing is left: {found:?}");
        }
    }
}

macro_rules! tests {
    ($($name:ident: [$(($target:literal, $link:literal)),*], $($root:literal: $path:literal => $leads:expr),+;)*) => {$(
        #[test]
        fn $name() {
            let links: &[(&str, &str)] = &[$(($target, $link)),*];
            $(check(links, $root, $path, $leads);)+
        }
    )*};
}

tests! {
    symlink_absolute: [("/b", "fs/a/d")], "": "fs/a/d/c/data" => Some("b/c/data");
    symlink_relative_path: [("a", "fs/i")], "": "fs/i" => Some("fs/a");
    symlink_skip_symlinks_outside_scope: [("realdir", "linkdir")], "linkdir": "foo/bar" => Some("foo/bar");
    symlink_last_link: [("/b", "fs/a/d")], "": "fs/a/d" => Some("b");
    symlink_relative_link_change_scope: [("../b", "fs/a/e")],
        "": "fs/a/e/c/data" => Some("fs/b/c/data"), "fs/a": "e" => Some("b");
    symlink_deep_relative_link_change_scope: [("../../../../test", "fs/a/f")],
        "": "fs/a/f" => Some("test"), "fs": "a/f" => Some("test");
    symlink_relative_link_chain: [("../g", "fs/b/h"), ("../../../../../../../../../../../../root", "fs/g")],
        "": "fs/b/h" => Some("root");
    symlink_breakout_path: [("../i/a", "fs/j/k")], "fs/j": "k" => Some("i/a");
    symlink_to_root: [("/", "foo")], "": "foo" => Some("");
    symlink_slash_dotdot: [("/../../", "foo")], "": "foo" => Some("");
    symlink_dotdot: [("../../", "foo")], "": "foo" => Some("");
    symlink_relative_path2: [("baz/target", "bar/foo")], "": "bar/foo" => Some("bar/baz/target");
    symlink_scope_link: [("root2", "root"), ("../bar", "root2/foo")], "root": "foo" => Some("bar");
    symlink_self: [("foo", "root/foo")], "root": "foo" => None;
    symlink_circular: [("foo", "bar"), ("bar", "foo")], "": "foo" => None;
    symlink_circular_under_root: [("baz", "root/bar"), ("../bak", "root/baz"), ("/bar", "root/bak")], "root": "bar" => None;
    symlink_complex_chain: [
        ("root2", "root"), ("r/s", "root2/a"), ("../root/t", "root2/r"), ("/../u", "root2/root/t/s/b"), (".", "root2/u/c"),
        ("../v", "root2/u/x/y"), ("/../w", "root2/u/v")
    ], "root": "a/b/c/x/y/z" => Some("w/z");
    symlink_breakout_non_existent: [("/", "root/slash"), ("/idontexist/../slash", "root/sym")],
        "root": "sym/file" => Some("file");
    symlink_no_lexical_cleaning: [("/foo/bar", "root/sym"), ("/sym/../baz", "root/hello")],
        "root": "hello" => Some("foo/baz");
    symlink_empty: [], "": "." => Some("");
}
