//! Clients in other languages, which have the schema and a library of Cap'n Proto and nothing else: programs of
//! `integration/clients`, each of which does the same.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio as Piped},
};

use cofferdam_client::{GrantOptions, ImportFormat, ImportOptions};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, clients, images};
use cofferdam_types::Labels;

use crate::grants::talking;

/// What each of them says.
const TOLD: &str = "\
holds deploy
log stdout hello
log stdout bye
log stderr oops
exit 7
there is mine stopped
copied passwd
heard 400000 ping
not_found another namespace
denied a new namespace
denied the daemon's state
denied the collector
denied grants
denied events
denied content
denied snapshots
denied leases
denied jobs
not_found another image
denied a pull
denied an import
denied an image's end
not_found a sibling's log
not_found a process in a sibling
denied a mount of the host's
denied the host's network
denied a capability
denied more memory
denied a spec
denied a file of the host's
denied an image of it
holds logs
not_found another container
denied what it is
denied its task
denied its end
denied a process in it
denied its files
denied its removal
denied a container
following I am web
revoked the log that is followed
revoked the log once more
";

/// A program that fails to end does so now.
const LONGEST: &str = "60";

fn holds_two_grants(program: &[&std::ffi::OsStr]) {
    let daemon = Daemon::with_busybox();
    let socket = daemon.socket();
    bounded(async {
        let client = daemon.client().await;
        client.namespaces().create("elsewhere", &Labels::new()).await.unwrap();
        let operator = daemon.open().await;
        talking(&operator, "web", "").await;
        talking(&operator, "db", "").await;
        let second =
            ImportOptions { name: "test/second:latest".into(), format: ImportFormat::Rootfs, ..Default::default() };
        let source = std::fs::File::open(images().join("rootfs/busybox")).unwrap();
        operator.images().import_fd(&second, source.into()).wait().await.unwrap();

        let deploy = operator.grants().create(&GrantOptions {
            facets: vec!["deploy".into()],
            own: true,
            images: vec![BUSYBOX.into()],
            memory: 64 << 20,
            ..GrantOptions::default()
        });
        let logs = operator.grants().create(&GrantOptions {
            facets: vec!["logs".into()],
            containers: vec!["web".into()],
            ..GrantOptions::default()
        });
        let mut command = Command::new("timeout");
        command
            .arg(LONGEST)
            .args(program)
            .args([socket.as_os_str(), BUSYBOX.as_ref()])
            .env("COFFERDAM_DEPLOY", deploy.save(None).await.unwrap())
            .env("COFFERDAM_LOGS", logs.save(None).await.unwrap())
            .stdin(Piped::null())
            .stdout(Piped::piped());
        let mut child = command.spawn().unwrap();
        let mut told = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            told.push_str(&line);
            told.push('\n');
            // It waits for more, and has its grant no longer.
            if line.starts_with("following ") {
                logs.revoke().await.unwrap();
            }
        }
        let status = child.wait().unwrap();
        assert_eq!(told, TOLD, "{status}");
        assert!(status.success(), "{status}");
        let left = operator.containers().list::<&str>(&[]).all().await.unwrap();
        let left: Vec<_> = left.iter().map(|info| &*info.id).collect();
        assert_eq!(left, ["db", "web"], "what it made it removed, and nothing else");
        assert_eq!(operator.containers().get("web").task().state().await.unwrap().status.as_str(), "running");
    });
}

#[test]
fn a_python_client_has_what_its_grants_give_and_nothing_else() {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/python/holder.py");
    // Without `-B` the sources would get their compiled files beside them.
    holds_two_grants(&[clients("python/bin/python").as_ref(), "-B".as_ref(), program.as_ref()]);
}

#[test]
fn a_cpp_client_has_what_its_grants_give_and_nothing_else() {
    holds_two_grants(&[clients("cpp/holder").as_ref()]);
}
