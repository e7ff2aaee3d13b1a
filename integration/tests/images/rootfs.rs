//! Images made of a root file system, with what a Dockerfile would say of them.

use std::fs;

use cofferdam_client::{ImportFormat, ImportOptions};
use cofferdam_integration::{bounded, images};
use cofferdam_types::{Code, Timestamp};
use serde_json::{Value, json};

use crate::support::{
    craft::Tar,
    world::{World, directory, file_of},
};

fn options(name: &str) -> ImportOptions {
    ImportOptions { name: name.into(), format: ImportFormat::Rootfs, ..ImportOptions::default() }
}

#[test]
fn the_config_says_what_it_was_told_and_the_same_gives_the_same_image() {
    bounded(async {
        let created = Timestamp(1_600_000_000 * 1_000_000_000);
        let changes = [
            "ENTRYPOINT [\"/bin/sh\", \"-c\"]",
            "CMD [\"echo $GREETING from $(pwd)\"]",
            "ENV GREETING=hello OTHER='a b'",
            "WORKDIR /tmp",
            "LABEL a=b",
            "EXPOSE 80",
            "VOLUME /data",
            "STOPSIGNAL SIGQUIT",
            "USER 0:0",
        ];
        let told = || ImportOptions {
            changes: changes.iter().map(|line| (*line).to_owned()).collect(),
            created,
            author: "ann".into(),
            comment: "a note".into(),
            ..options("made:1")
        };
        let rootfs = images().join("rootfs/busybox");
        let world = World::start().await;
        let name = world.import_with(&told(), directory(&rootfs)).wait().await.unwrap().remove(0);
        let detail = world.ns.images().get(&name).detail("").await.unwrap();
        let config: Value = serde_json::from_slice(&detail.config).unwrap();
        let runs = &config["config"];
        assert_eq!(runs["Entrypoint"], json!(["/bin/sh", "-c"]));
        assert_eq!((&runs["WorkingDir"], &runs["StopSignal"]), (&json!("/tmp"), &json!("SIGQUIT")));
        assert_eq!((&runs["Labels"], &runs["ExposedPorts"]), (&json!({ "a": "b" }), &json!({ "80/tcp": {} })));
        assert_eq!((&runs["Volumes"], &runs["User"]), (&json!({ "/data": {} }), &json!("0:0")));
        assert!(runs["Env"].as_array().unwrap().contains(&json!("OTHER=a b")), "{runs}");
        assert_eq!((&config["author"], &config["history"][0]["comment"]), (&json!("ann"), &json!("a note")));
        assert_eq!(config["created"], json!("2020-09-13T12:26:40.000000000Z"));
        assert_eq!(world.run(&name, &[]).await.unwrap(), (0, "hello from /tmp\n".into()));

        let other = World::start().await;
        other.import_with(&told(), directory(&rootfs)).wait().await.unwrap();
        assert_eq!(other.ns.images().get(&name).detail("").await.unwrap().manifest, detail.manifest);

        // By hand.
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("root.tar");
        fs::write(&tar, Tar::new().file("a", "b").end()).unwrap();
        let tar = tar.to_str().unwrap();
        let args = [
            "image",
            "import",
            "--rootfs",
            "--change",
            "CMD [\"/a\"]",
            "--created",
            "2020-01-01",
            "-m",
            "x",
            tar,
            "hand",
        ];
        let said = world.daemon.coffer(&args);
        assert!(said.status.success(), "{said:?}");
        let detail = world.ns.images().get("hand").detail("").await.unwrap();
        let config: Value = serde_json::from_slice(&detail.config).unwrap();
        assert_eq!((&config["config"]["Cmd"], &config["history"][0]["comment"]), (&json!(["/a"]), &json!("x")));
        let said = world.daemon.coffer(&["image", "import", "--created", "2020-01-01", tar, "hand"]);
        assert!(String::from_utf8_lossy(&said.stderr).contains("--rootfs"), "{said:?}");
    });
}

#[test]
fn what_no_dockerfile_says_is_refused() {
    bounded(async {
        let world = World::start().await;
        let before = world.holdings().await;
        for (line, word) in [
            ("RUN make", "RUN"),
            ("CMD", "instruction"),
            ("ENV A", "KEY=VALUE"),
            ("EXPOSE none", "port"),
            ("WORKDIR here", "absolute"),
        ] {
            let options = ImportOptions { changes: vec![line.into()], ..options("bad:1") };
            let root = file_of(&Tar::new().file("a", "b").end());
            let error = world.import_with(&options, root).wait().await.unwrap_err();
            assert!(error.code == Code::InvalidArgument && error.to_string().contains(word), "{line}: {error}");
            world.settles(&before).await;
        }
    });
}
