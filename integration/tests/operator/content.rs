//! Blobs that are made by hand, and copies that are taken up again.

use std::{fs, process::Stdio};

use cofferdam_integration::{Daemon, bounded};
use cofferdam_types::{Algorithm, Code, Digest};

use crate::{Said, json, ok, say};

/// The same with something at standard input.
fn fed(daemon: &Daemon, args: &[&str], input: &[u8]) -> Said {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, input).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    daemon.command().args(args).stdin(Stdio::from(file)).output().unwrap().into()
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

#[test]
fn a_blob_from_ingest_to_rm() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = path.to_str().unwrap();
    fs::write(file, "{\"a\": 1}\n").unwrap();
    for algorithm in Algorithm::ALL {
        let digest = Digest::of(algorithm, b"{\"a\": 1}\n").to_string();
        let args = ["content", "ingest", "r", file, "--algorithm", algorithm.as_str(), "--size", "9", "-l", "k=v"];
        assert_eq!(ok(&daemon, &args), format!("{digest}\n"));
        // Again it is the same one, and what is said of it is added.
        assert_eq!(
            ok(&daemon, &["content", "ingest", "r", file, "--expected", &digest, "-l", "again=yes"]),
            format!("{digest}\n")
        );
        assert_eq!(ok(&daemon, &["content", "label", &digest, "k=", "tier=db"]), "again=yes\ntier=db\n");
        assert_eq!(
            ok(&daemon, &["content", "ls", "-q", "--filter", &format!("digest==\"{digest}\",labels.tier==db")]),
            format!("{digest}\n")
        );
        assert_eq!(ok(&daemon, &["content", "get", &digest, "--offset", "1", "--length", "3"]), "\"a\"");
        // An editor that puts another file in the place.
        let editor = "f() { sed s/1/2/ \"$1\" >\"$1.new\" && mv \"$1.new\" \"$1\"; }; f";
        let edited = Digest::of(algorithm, b"{\"a\": 2}\n").to_string();
        assert_eq!(ok(&daemon, &["content", "edit", "--editor", editor, &digest]), format!("{edited}\n"));
        assert_eq!(ok(&daemon, &["content", "get", &edited]), "{\"a\": 2}\n");
        assert_eq!(ok(&daemon, &["content", "ls", "-q", "--filter", "labels.again==yes"]).lines().count(), 2);
        let failed = say(&daemon, &["content", "edit", "--editor", "false", &digest]);
        assert!(failed.code == 1 && failed.err.contains("no blob was made"), "{failed:?}");
        assert_eq!(ok(&daemon, &["content", "rm", &digest, &edited]), format!("{digest}\n{edited}\n"));
    }
    assert_eq!(json(&daemon, &["content", "ls"]), serde_json::json!([]));
    assert_eq!(json(&daemon, &["content", "active"]), serde_json::json!([]));

    // What is not what it was to be stays an ingest, and is thrown away by its name.
    let other = Digest::of(Algorithm::Sha256, b"other").to_string();
    let wrong = fed(&daemon, &["content", "ingest", "wrong", "--expected", &other], b"these");
    assert!(wrong.code == 1 && wrong.err.contains(&other), "{wrong:?}");
    let active = json(&daemon, &["content", "active", "--filter", "ref~=/^wr/"]);
    assert!(active[0]["offset"] == 5 && active[0]["expected"] == *other, "{active}");
    assert_eq!(json(&daemon, &["content", "active", "--filter", "ref==other"]), serde_json::json!([]));
    let long = fed(&daemon, &["content", "ingest", "long", "--size", "3"], b"four");
    assert!(long.code == 1 && long.err.contains("more than the 3 bytes"), "{long:?}");
    assert_eq!(ok(&daemon, &["content", "abort", "wrong", "long"]), "wrong\nlong\n");
    assert_eq!(say(&daemon, &["content", "abort", "wrong"]).code, 1);
    for (args, why) in [
        (vec!["content", "ingest", "r", file, "--algorithm", "md5"], "sha256, sha512 and blake3"),
        (vec!["content", "active", "--filter", "name==x"], "there are ref"),
        (vec!["content", "label", &other, "a=b"], "is not in this namespace"),
        (vec!["content", "rm", &other], "is not in this namespace"),
    ] {
        let refused = say(&daemon, &args);
        assert!(refused.code == 1 && refused.err.contains(why), "{args:?}: {refused:?}");
    }
}

#[test]
fn a_copy_goes_on_after_a_crash_and_begins_anew_where_its_source_cant_seek() {
    let daemon = Daemon::start();
    let whole = bytes(3 << 20);
    let digest = Digest::of(Algorithm::Sha256, &whole).to_string();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("whole");
    fs::write(&path, &whole).unwrap();
    let half = |reference: &'static str| {
        bounded(async {
            let content = daemon.client().await.namespace(daemon.namespace()).content();
            let ingest = content.ingest(reference, whole.len() as u64, "", "");
            let begun = ingest.info().await.unwrap();
            let part = tempfile::tempfile().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&part, &whole[..1 << 20], 0).unwrap();
            assert_eq!(ingest.take_fd(part.into()).await.unwrap(), 1 << 20);
            let info = ingest.info().await.unwrap();
            assert_eq!(info.digest, Digest::of(Algorithm::Sha256, &whole[..1 << 20]).to_string());
            assert!(info.started == begun.started && info.updated >= begun.updated);
            // Nobody else gets it meanwhile, but everybody may look.
            let locked = content.ingest(reference, 0, "", "").info().await.unwrap_err();
            assert_eq!(locked.code, Code::Unavailable, "{locked}");
            assert_eq!(content.status(reference).await.unwrap().offset, 1 << 20);
            assert_eq!(content.status("none").await.unwrap_err().code, Code::NotFound);
        });
    };
    for seekable in [true, false] {
        half("copy");
        daemon.kill9();
        daemon.restart();
        bounded(async {
            let content = daemon.client().await.namespace(daemon.namespace()).content();
            let ingest = content.ingest("copy", 0, "", "");
            let info = ingest.info().await.unwrap();
            assert_eq!((info.offset, info.total), (1 << 20, whole.len() as u64));
            assert_eq!(info.digest, Digest::of(Algorithm::Sha256, &whole[..1 << 20]).to_string());
            drop(ingest);
            cofferdam_integration::until_async("it is let go", async || {
                match content.ingest("copy", 0, "", "").info().await {
                    Ok(_) => Some(()),
                    Err(error) => (error.code != Code::Unavailable).then(|| panic!("{error}")),
                }
            })
            .await;
        });
        let source = fs::File::open(&path).unwrap();
        let mut command = daemon.command();
        command.args(["content", "ingest", "copy"]);
        let said: Said = if seekable {
            // Were it copied from its beginning it would be longer than it may be.
            command.stdin(source).output().unwrap().into()
        } else {
            let mut cat = std::process::Command::new("cat").stdin(source).stdout(Stdio::piped()).spawn().unwrap();
            let said = command.stdin(cat.stdout.take().unwrap()).output().unwrap().into();
            cat.wait().unwrap();
            said
        };
        assert_eq!((said.code, said.out.trim_end()), (0, &*digest), "{said:?}");
        assert_eq!(ok(&daemon, &["content", "rm", &digest]), format!("{digest}\n"));
    }
    // An ingest that is aborted under its writer says so.
    bounded(async {
        let content = daemon.client().await.namespace(daemon.namespace()).content();
        let ingest = content.ingest("gone", 0, "", "");
        ingest.info().await.unwrap();
        content.abort("gone").await.unwrap();
        let error = ingest.commit(0, "", &Default::default()).await.unwrap_err();
        assert!(error.code == Code::FailedPrecondition && error.message.contains("was aborted"), "{error}");
    });
}

#[test]
fn what_is_wrong_with_an_ingest_is_said_before_its_bytes_and_another_source_is_not_mixed_in() {
    let daemon = Daemon::start();
    let long = format!("k={}", "v".repeat(5000));
    let digest = Digest::of(Algorithm::Sha256, b"abc\n").to_string();
    for (args, why) in [
        (vec!["-l", &long], "4096"),
        (vec!["--algorithm", "sha512", "--expected", &digest], "a digest by sha256: leave --algorithm sha512 out"),
        (vec!["/"], "Is a directory"),
    ] {
        let refused = fed(&daemon, &[&["content", "ingest", "mix"][..], &args].concat(), b"abc\n");
        assert!(refused.code == 1 && refused.err.contains(why), "{args:?}: {refused:?}");
    }
    assert_eq!(json(&daemon, &["content", "active"]), serde_json::json!([]));
    let short = fed(&daemon, &["content", "ingest", "mix", "--size", "6"], b"abc\n");
    assert!(short.code == 1 && short.err.contains("\"coffer content abort mix\" ends it"), "{short:?}");
    for other in [&b"XYZWQ\n"[..], b"ab"] {
        let refused = fed(&daemon, &["content", "ingest", "mix", "--size", "6"], other);
        assert!(
            refused.code == 1 && refused.err.contains("4 bytes by now that this source doesn't begin with"),
            "{refused:?}"
        );
    }
    let whole = fed(&daemon, &["content", "ingest", "mix", "--size", "6"], b"abc\nd\n");
    assert_eq!(whole.out.trim_end(), Digest::of(Algorithm::Sha256, b"abc\nd\n").to_string(), "{whole:?}");
}
