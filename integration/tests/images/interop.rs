//! Others read what we push and export, and we read theirs: skopeo, buildah, umoci, and containerd's ctr.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use cofferdam_client::{ConvertOptions, PushOptions};
use cofferdam_integration::{bounded, images};
use tempfile::TempDir;

use crate::support::world::{Registry, World, tool};

/// A containerd of its own.
struct Containerd(TempDir);

impl Containerd {
    fn start() -> Containerd {
        let dir = tempfile::tempdir().unwrap();
        tool(script().to_str().unwrap(), &["start", dir.path().to_str().unwrap()]);
        Containerd(dir)
    }

    fn ctr(&self, args: &[&str]) -> String {
        let socket = self.0.path().join("containerd.sock");
        tool("ctr", &[&["--address", socket.to_str().unwrap()], args].concat())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = Command::new(script()).arg("stop").arg(self.0.path()).status();
    }
}

fn script() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "benches/peers/containerd"].iter().collect()
}

/// buildah with a store of its own, which needs no mounts.
struct Buildah(TempDir);

impl Buildah {
    fn new() -> Buildah {
        Buildah(tempfile::tempdir().unwrap())
    }

    fn run(&self, args: &[&str]) -> String {
        let (root, run) = (self.0.path().join("root"), self.0.path().join("run"));
        let [root, run] = [&root, &run].map(|path| path.to_str().unwrap());
        tool("buildah", &[&["--root", root, "--runroot", run, "--storage-driver", "vfs"], args].concat())
    }
}

async fn import(world: &World, name: &str, archive: &Path) -> String {
    world.import(name, File::open(archive).unwrap().into()).wait().await.unwrap().remove(0)
}

async fn export(world: &World, name: &str, path: &Path) {
    let file = File::create_new(path).unwrap();
    world.ns.images().export_fd(&[name], "", file.into()).wait().await.unwrap();
}

async fn echoes(world: &World, name: &str) {
    assert_eq!(world.run(name, &["echo", "hi"]).await.unwrap(), (0, "hi\n".into()), "{name}");
}

/// An image of ours, as it was imported, as zstd, and with docker's media types.
async fn ours(world: &World) -> Vec<String> {
    let busybox = import(world, "shop/busybox:1", &images().join("archive/busybox.oci.tar")).await;
    let options =
        ConvertOptions { name: "shop/zstd:1".into(), compression: "zstd".into(), ..ConvertOptions::default() };
    let zstd = world.ns.images().get(&busybox).convert(&options).wait().await.unwrap().remove(0);
    let docker = import(world, "shop/docker:1", &images().join("archive/busybox.docker.tar")).await;
    vec![busybox, zstd, docker]
}

#[test]
fn others_pull_what_we_push() {
    bounded(async {
        let registry = Registry::start(&[], &[]);
        let world = World::start().await;
        let (containerd, buildah) = (Containerd::start(), Buildah::new());
        for name in ours(&world).await {
            let reference = registry.reference(&name.replace("docker.io/", ""));
            let options = PushOptions { reference: reference.clone(), plain_http: true, ..PushOptions::default() };
            world.ns.images().get(&name).push(&options).wait().await.unwrap();
            let digest = world.ns.images().get(&name).info().await.unwrap().target.digest.to_string();

            let dir = tempfile::tempdir().unwrap();
            let (layout, root) = (dir.path().join("layout"), dir.path().join("root"));
            let to = format!("oci:{}:x", layout.display());
            tool("skopeo", &["copy", "-q", "--src-tls-verify=false", &format!("docker://{reference}"), &to]);
            let image = format!("{}:x", layout.display());
            // It knows no zstd.
            if !name.contains("zstd") {
                tool("umoci", &["raw", "unpack", "--image", &image, root.to_str().unwrap()]);
                assert!(root.join("bin/busybox").exists(), "{name}");
            }

            let id = buildah.run(&["pull", "-q", "--tls-verify=false", &reference]);
            let seen = buildah.run(&["inspect", "--type", "image", "--format", "{{.FromImageDigest}}", id.trim()]);
            assert_eq!(seen.trim(), digest, "{name}");

            containerd.ctr(&["images", "pull", "--plain-http", &reference]);
            let listed = containerd.ctr(&["images", "ls", &format!("name=={reference}")]);
            assert!(listed.contains(&digest), "{listed}");
        }
    });
}

#[test]
fn others_read_what_we_export() {
    bounded(async {
        let world = World::start().await;
        let (containerd, buildah) = (Containerd::start(), Buildah::new());
        for (n, name) in ours(&world).await.into_iter().enumerate() {
            // buildah makes a name of the path, which has no capitals then.
            let own = format!("others-{}-{n}", std::process::id());
            let dir = tempfile::Builder::new().prefix(&own).rand_bytes(0).tempdir_in("/tmp").unwrap();
            let (archive, layout) = (dir.path().join("archive.tar"), dir.path().join("layout"));
            export(&world, &name, &archive).await;
            let said = world.daemon.coffer(&["image", "export", "-d", &name, layout.to_str().unwrap()]);
            assert!(said.status.success(), "{said:?}");
            let digest = world.ns.images().get(&name).info().await.unwrap().target.digest.to_string();
            // The directory is what is in the archive.
            let listed = tool("tar", &["-tf", archive.to_str().unwrap()]);
            assert!(listed.lines().all(|path| layout.join(path).is_file()), "{listed}");

            let archive = archive.to_str().unwrap();
            for source in [format!("oci-archive:{archive}"), format!("oci:{}", layout.display())] {
                let seen = tool("skopeo", &["inspect", "--format", "{{.Digest}}", &source]);
                assert_eq!(seen.trim(), digest, "{source}");
                let id = buildah.run(&["pull", "-q", &source]);
                assert!(!id.trim().is_empty());
            }
            containerd.ctr(&["images", "import", "--snapshotter", "native", archive]);
            let listed = containerd.ctr(&["images", "ls", &format!("name=={name}")]);
            assert!(listed.contains(&digest), "{n}: {listed}");
        }
    });
}

#[test]
fn we_read_what_others_make() {
    bounded(async {
        let registry = Registry::start(&[], &[]);
        let world = World::start().await;
        let (containerd, buildah) = (Containerd::start(), Buildah::new());
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let busybox = images().join("oci/busybox");

        // buildah: a change of its own, committed in both formats, as an archive and into a registry.
        let base = format!("oci:{}:latest", busybox.display());
        let container = buildah.run(&["from", "-q", &base]);
        let added = at("added");
        std::fs::write(&added, "by buildah").unwrap();
        buildah.run(&["copy", "-q", container.trim(), added.to_str().unwrap(), "/added"]);
        for (format, transport) in [("oci", "oci-archive"), ("docker", "docker-archive")] {
            let path = at(&format!("buildah-{format}"));
            let to = format!("{transport}:{}:docker.io/made/{format}:1", path.display());
            buildah.run(&["commit", "-q", "--format", format, container.trim(), &to]);
            let name = import(&world, &format!("made/{format}:1"), &path).await;
            let (status, text) = world.run(&name, &["cat", "/added"]).await.unwrap();
            assert_eq!((status, text.as_str()), (0, "by buildah"), "{format}");
            let reference = registry.reference(&format!("buildah/{format}:1"));
            let to = format!("docker://{reference}");
            buildah.run(&["commit", "-q", "--format", format, "--tls-verify=false", container.trim(), &to]);
            let name = world.pull(&reference).wait().await.unwrap().remove(0);
            assert_eq!(world.run(&name, &["cat", "/added"]).await.unwrap().1, "by buildah", "{format}");
        }

        // umoci: a layer of its own in a layout.
        let layout = at("umoci");
        tool("cp", &["-r", busybox.to_str().unwrap(), layout.to_str().unwrap()]);
        let image = format!("{}:latest", layout.display());
        std::fs::write(&added, "by umoci").unwrap();
        tool("umoci", &["insert", "--image", &image, added.to_str().unwrap(), "/added"]);
        let archive = at("umoci.tar");
        tool("tar", &["-C", layout.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
        let name = import(&world, "made/umoci:1", &archive).await;
        assert_eq!(world.run(&name, &["cat", "/added"]).await.unwrap().1, "by umoci");

        // containerd: what it exports of what it imported, and what it pushes.
        let from = images().join("archive/busybox.oci.tar");
        let reference = registry.reference("containerd/busybox:1");
        let came =
            containerd.ctr(&["images", "import", "--no-unpack", "--index-name", &reference, from.to_str().unwrap()]);
        let archive = at("ctr.tar");
        let listed = containerd.ctr(&["images", "ls", "-q"]);
        assert!(listed.contains(&reference), "{came}: {listed}");
        containerd.ctr(&["images", "export", archive.to_str().unwrap(), &reference]);
        let name = import(&world, "made/ctr:1", &archive).await;
        echoes(&world, &name).await;
        containerd.ctr(&["images", "push", "--plain-http", &reference]);
        let name = world.pull(&reference).wait().await.unwrap().remove(0);
        echoes(&world, &name).await;

        // skopeo: the first format of an archive, with docker's media types.
        let archive = at("skopeo.tar");
        let to = format!("docker-archive:{}:made/skopeo:1", archive.display());
        tool("skopeo", &["copy", "-q", &base, &to]);
        let name = import(&world, "", &archive).await;
        assert_eq!(name, "docker.io/made/skopeo:1");
        echoes(&world, &name).await;
    });
}
