//! What other programs write of a tree, applied, is that tree.

use std::{fs, os::unix::fs::MetadataExt, process::Command};

use super::{
    interop::everything,
    support::{Jail, apply_to, differences},
};
use crate::ApplyOptions;

/// The blob of the topmost layer in an OCI layout.
const LAYER: &str = r#"
import json, sys
blob = lambda d: f"{sys.argv[1]}/blobs/{d['digest'].replace(':', '/')}"
index = json.load(open(sys.argv[1] + "/index.json"))
manifest = json.load(open(blob(index["manifests"][0])))
print(blob(manifest["layers"][-1]))
"#;

/// Has a script write a layer of the tree `$1`, in an empty directory of its own; it prints where. `lost` is what
/// the archive has no room for: attributes that begin so.
fn check(script: &str, lost: &[&str]) {
    let jail = Jail::new();
    let source = jail.root();
    everything(&source);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("layer.py"), LAYER).unwrap();
    let made = Command::new("sh").args(["-ec", script, "sh"]).arg(&source).current_dir(dir.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let layer = dir.path().join(String::from_utf8(made.stdout).unwrap().trim_end());
    let target = tempfile::tempdir().unwrap();
    apply_to(target.path(), &fs::read(layer).unwrap(), &ApplyOptions::default()).unwrap();
    let differ = differences(&source, target.path());
    let accounted = |line: &String| !lost.is_empty() && lost.iter().any(|lost| line.contains(lost));
    assert!(differ.iter().all(accounted), "{differ:#?}");
    let names = |path: &str| fs::metadata(target.path().join(path)).unwrap();
    assert_eq!(names("hard").ino(), names("a/file").ino());
}

#[test]
fn archives_of_bsdtar() {
    check("bsdtar --format pax -cf t.tar -C \"$1\" . && echo t.tar", &[]);
    check("bsdtar --format gnutar -cf t.tar -C \"$1\" . && echo t.tar", &["user.", "security.cap"]);
    check("bsdtar --format pax --zstd -cf t.tar -C \"$1\" . && echo t.tar", &[]);
}

#[test]
fn archives_of_pythons_tarfile() {
    for format in ["PAX", "GNU"] {
        let program = format!(
            "import sys, tarfile\nwith tarfile.open('t.tar', 'w:gz', format=tarfile.{format}_FORMAT) as t: t.add(sys.argv[1], '.')"
        );
        check(&format!("python3 -c \"{program}\" \"$1\" && echo t.tar"), &["user.", "security.cap"]);
    }
}

#[test]
fn layers_of_umoci() {
    let script = "umoci init --layout o && umoci new --image o:l && umoci unpack --image o:l b >&2 && cp -a \"$1\"/. b/rootfs/\n\
        umoci repack --image o:l b >&2 && python3 layer.py o";
    check(script, &[]);
}

#[test]
fn layers_of_buildah() {
    let script = "b() { buildah --root \"$PWD/s\" --runroot \"$PWD/r\" --storage-driver vfs \"$@\"; }\n\
        c=$(b from scratch); m=$(b mount $c); cp -a \"$1\"/. $m/; b umount $c >&2\n\
        b commit -q $c \"oci:$PWD/o:l\" >&2; b rm $c >&2; python3 layer.py o";
    check(script, &[]);
}
