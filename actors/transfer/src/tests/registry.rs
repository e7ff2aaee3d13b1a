//! Debian's docker-registry, filled by skopeo.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use cofferdam_types::Code;

use crate::{
    Credentials, Endpoint,
    testing::{
        picture::{Picture, write_down},
        world::{World, fails, quick, run},
    },
};

/// A private registry; it ends with its directory.
struct Registry {
    dir: tempfile::TempDir,
    address: String,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/registry")
}

impl Registry {
    fn start(options: &[&str]) -> Registry {
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new(script()).arg("start").arg(dir.path()).args(options).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let address = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        Registry { dir, address }
    }

    fn host(&self) -> &str {
        self.address.split_once("://").unwrap().1
    }

    /// Puts a picture there as `name`.
    fn push(&self, picture: &Picture, name: &str) {
        let images = self.dir.path().join("images");
        write_down(&images.join("oci").join(name), &picture.layout(Some("latest")));
        let output = Command::new(script()).arg("push").arg(self.dir.path()).arg(&images).arg(name).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = Command::new(script()).arg("stop").arg(self.dir.path()).status();
    }
}

#[test]
fn anonymous_over_plain_http() {
    run(async {
        let picture = Picture::new("x");
        let registry = Registry::start(&[]);
        registry.push(&picture, "a");
        let world = World::start().await;
        for reference in
            [format!("{}/a:latest", registry.host()), format!("{}/a@{}", registry.host(), picture.target().digest)]
        {
            let arrived = world.pull(&reference, quick()).await.unwrap();
            assert_eq!(arrived[0].target.digest, picture.target().digest);
        }
        assert_eq!(world.read(&picture.chain(), "etc/name").await, "upper");
        let missing = format!("{}/a:none", registry.host());
        fails(world.pull(&missing, quick()).await, Code::NotFound, "check the name");
        let missing = format!("{}/none:latest", registry.host());
        fails(world.pull(&missing, quick()).await, Code::NotFound, "check the name");
        world.stop().await;
    });
}

#[test]
fn basic_authentication_over_tls() {
    run(async {
        let picture = Picture::new("x");
        let registry = Registry::start(&["--tls", "--user", "me:hunter22"]);
        registry.push(&picture, "a");
        let reference = format!("{}/a:latest", registry.host());
        let ca = std::fs::read(registry.dir.path().join("ca.crt")).unwrap();
        let endpoint = |secret: Option<&str>| Endpoint {
            ca: Some(ca.clone()),
            credentials: secret.map(|s| Credentials { user: "me".into(), secret: s.into() }),
            ..quick()
        };
        let world = World::start().await;
        let before = world.holdings();
        let error = fails(world.pull(&reference, endpoint(None)).await, Code::Denied, "give a user and a secret");
        assert!(!error.to_string().contains("hunter22"));
        let error = fails(world.pull(&reference, endpoint(Some("wrong-one"))).await, Code::Denied, "check them");
        assert!(!error.to_string().contains("wrong-one"), "D8");
        // A certificate that nobody vouches for, and plain http spoken to it.
        let other = Registry::start(&["--tls"]);
        let stranger = Endpoint { ca: Some(std::fs::read(other.dir.path().join("ca.crt")).unwrap()), ..quick() };
        fails(world.pull(&reference, stranger).await, Code::Unavailable, "TLS");
        assert!(world.pull(&reference, Endpoint { plain_http: true, ..quick() }).await.is_err());
        assert_eq!(world.holdings(), before);
        world.pull(&reference, endpoint(Some("hunter22"))).await.unwrap();
        assert_eq!(world.read(&picture.chain(), "etc/marker").await, "x");
        world.stop().await;
    });
}
