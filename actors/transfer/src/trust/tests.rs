use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;
use crate::testing::{
    picture::{Picture, tar_up},
    world::{World, as_file, auth, fails, name, ns, run, second},
};

fn entry(key: &str, value: &str) -> Descriptor {
    let mut entry = Descriptor::new(media::OCI_MANIFEST, Digest::of(Algorithm::Sha256, b"x"), 1);
    entry.annotations.insert(key.into(), value.into());
    entry
}

#[test]
fn what_belongs_to_another_image_is_told() {
    let hex = "a".repeat(64);
    for tag in [format!("sha256-{hex}.sig"), format!("h.io/app:sha256-{hex}.att"), format!("sha256-{hex}.sbom")] {
        assert!(is_attachment(&entry(REF_NAME, &tag)), "{tag}");
    }
    assert!(is_attachment(&entry("kind", "dev.cosignproject.cosign/sigs")));
    for tag in ["latest", "sha256-aa.sig", &format!("sha256-{hex}"), &format!("sha256-{hex}.tar"), "a.sig"] {
        assert!(!is_attachment(&entry(REF_NAME, tag)), "{tag}");
    }
    assert!(!is_attachment(&entry("kind", "dev.cosignproject.cosign/image")));
}

#[test]
fn a_rule_is_told_in_a_sentence_and_read_when_it_is_asked() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trust.json");
        let set = |text: &str| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        };
        let world = World::with(Trust::of(path.clone(), false)).await;
        let said = |name: &str| world.transfer.trust().explain(&ns(), name);
        assert!(said("h.io/a:1").contains("there is no policy"));
        let source = || as_file(&tar_up(&Picture::new("x").layout(None)));
        world.import(source(), Some("h.io/a:1")).await.unwrap();
        set(r#"{"default": "accept", "rules": [{"prefix": "h.io", "namespaces": ["default"], "require": "reject"}]}"#);
        assert!(said("h.io/a:1").contains("by the rule for h.io") && said("h.io/a:1").contains("nothing comes in"));
        assert!(said("other.io/a:1").contains("everything comes in"));
        fails(world.import(source(), Some("h.io/b:1")).await, Code::Denied, "lets nothing in");
        let target = Picture::new("x").target().digest;
        fails(world.transfer.may_name(&ns(), &name("h.io/c:1"), &target).await, Code::Denied, "h.io");
        world.transfer.may_name(&second(), &name("h.io/c:1"), &target).await.unwrap();
        set("nonsense");
        assert!(said("h.io/a:1").contains("no image comes in"));
        fails(world.import(source(), Some("free.io/b:1")).await, Code::FailedPrecondition, "trust.json");
        // What is here stays as it was.
        assert_eq!(world.holdings().images, ["h.io/a:1"]);
        world.images.remove(&auth(), &ns(), &name("h.io/a:1")).await.unwrap();
        world.stop().await;
    });
}
