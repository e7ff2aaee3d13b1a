//! The audit log: who used which authority for what, whoever has the disk since.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use cofferdam_client::{AuditFilter, AuditRecord, Client, Context, GrantOptions};
use cofferdam_integration::{Arrivals, Daemon, bounded, fill, pipe, small_disk, until};
use cofferdam_types::Code;
use serde_json::Value;

use crate::{idle, ok, say};

/// What `coffer audit` tells with these flags.
fn told(daemon: &Daemon, flags: &[&str]) -> Vec<Value> {
    let said = ok(daemon, &[&["audit", "-o", "json"], flags].concat());
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How the calls of a method ended, the first one first.
fn verdicts(daemon: &Daemon, flags: &[&str]) -> Vec<String> {
    let words =
        |record: &Value| format!("{} {}", record["method"].as_str().unwrap(), record["verdict"].as_str().unwrap());
    told(daemon, flags).iter().map(words).collect()
}

/// Waits until what is written soon is written.
fn soon(daemon: &Daemon, flags: &[&str]) -> Value {
    until("it is in the log", || told(daemon, flags).pop())
}

fn segments(daemon: &Daemon) -> Vec<PathBuf> {
    let mut all: Vec<_> =
        fs::read_dir(daemon.root().join("audit")).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn a_grant_from_create_to_revoke_is_in_the_log_and_its_token_is_not() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "web");
    let id = ok(&daemon, &["grant", "create", "-f", "logs", "-l", "for the reader"]).trim().to_owned();
    let token = ok(&daemon, &["grant", "save", &id]).trim().to_owned();
    let reader = |args: &[&str]| say(&daemon, &[&["--as", &token], args].concat());
    assert_eq!(reader(&["logs", "web"]).code, 0);
    assert_eq!(reader(&["kill", "web"]).code, 1);
    // The log is nobody's but the operator's.
    for args in [&["audit"][..], &["audit", "-f"], &["audit", "verify"]] {
        let said = reader(args);
        assert!(said.code == 1 && said.err.contains("is the operator's"), "{said:?}");
    }
    // Somebody says a token aloud.
    ok(&daemon, &["exec", "web", "echo", "--as", &token, "tail"]);
    let exec = soon(&daemon, &["--method", "Task.exec"]);
    assert_eq!(exec["detail"], "echo --as cofferdam-grant-... tail");
    assert!(exec["object"].as_str().unwrap().starts_with("process/web/"), "{exec}");
    assert_eq!(
        (&exec["namespace"], &exec["uid"], &exec["grants"]),
        (&daemon.namespace().into(), &0.into(), &serde_json::json!([]))
    );
    assert!(exec["pid"].as_u64().unwrap() > 0 && exec["time"].as_str().unwrap().ends_with('Z'), "{exec}");
    ok(&daemon, &["grant", "revoke", &id]);
    assert_eq!(reader(&["logs", "web"]).code, 1);

    // What is denied is written soon.
    soon(&daemon, &["--verdict", "denied", "--method", "Gate.restore"]);
    let of_grant = verdicts(&daemon, &["--grant", &id]);
    let at =
        |word: &str| of_grant.iter().position(|said| said == word).unwrap_or_else(|| panic!("{word}: {of_grant:?}"));
    assert!(at("Grants.create allowed") < at("Grant.save allowed"), "{of_grant:?}");
    assert!(at("Grant.save allowed") < at("Gate.restore allowed"), "{of_grant:?}");
    assert!(at("Gate.restore allowed") < at("Grant.revoke allowed"), "{of_grant:?}");
    let denied = told(&daemon, &["--grant", &id, "--verdict", "denied"]);
    assert!(denied.iter().any(|record| record["error"].as_str().unwrap().starts_with("denied: ")), "{denied:?}");
    assert!(denied.iter().any(|record| record["method"] == "Root.audit"), "{denied:?}");
    assert!(denied.iter().all(|record| record["grants"] == serde_json::json!([id])), "{denied:?}");
    let made = told(&daemon, &["--method", "Grants.create"]).pop().unwrap();
    assert_eq!(made["object"], format!("grant/{id}"));
    assert!(made["detail"].as_str().unwrap().starts_with("for the reader, {"), "{made}");

    // In words for people, chosen by time and namespace; what can't be read as either is told so.
    let text = ok(&daemon, &["audit", "--since", "1h", "--method", "Containers.*"]);
    assert!(text.contains("Containers.create  container/web") && text.contains(" allowed "), "{text}");
    assert!(text.contains("sleep 1000"), "{text}");
    assert_eq!(ok(&daemon, &["audit", "--namespace", "elsewhere"]), "");
    assert_eq!(ok(&daemon, &["audit", "--since", "2100-01-01"]), "");
    let wrong = say(&daemon, &["audit", "--verdict", "perhaps"]);
    assert!(wrong.code == 1 && wrong.err.contains("give one of allowed, denied"), "{wrong:?}");
    let wrong = say(&daemon, &["audit", "--grant", "x"]);
    assert!(wrong.code == 1 && wrong.err.contains("is no id of a grant"), "{wrong:?}");

    let whole = say(&daemon, &["audit", "verify"]);
    assert!(whole.code == 0 && whole.out.contains("are what was written; the chain comes to "), "{whole:?}");
    daemon.stop();
    let hex = &token.as_bytes()["cofferdam-grant-".len()..][..32];
    for file in segments(&daemon).into_iter().chain([daemon.root().join("meta.redb"), daemon.path().join("log")]) {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(hex.len()).any(|part| part == hex), "{}", file.display());
    }
    daemon.restart();
    assert_eq!(say(&daemon, &["audit", "verify"]).code, 0);
}

#[test]
fn who_follows_hears_of_it_with_the_callers_own_name() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "web");
    let (out, end) = pipe();
    let mut follow = daemon.command();
    let follow = follow.args(["audit", "-f", "-o", "json", "--method", "Task.kill"]).stdout(end).stderr(Stdio::piped());
    let mut follow = follow.spawn().unwrap();
    let arrived = Arrivals::new(out);
    bounded(async {
        let context = Context { correlation_id: "job 7".into(), ..Context::default() };
        let namespace = daemon.open().await.with(&context);
        namespace.containers().get("web").task().kill(0, false).await.unwrap();
    });
    let line = until("it is told", || {
        let text = String::from_utf8(arrived.so_far()).unwrap();
        text.lines().next().filter(|_| text.ends_with('\n')).map(str::to_owned)
    });
    let record: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(record["correlationId"], "job 7", "{record}");
    assert_eq!((&record["object"], &record["detail"]), (&"container/web".into(), &"signal 0".into()));
    follow.kill().unwrap();
    follow.wait().unwrap();
}

// kill -9 right behind the answer.
#[test]
fn a_change_of_authority_is_on_record_before_its_answer() {
    let daemon = Daemon::with_busybox();
    let namespace = daemon.namespace().to_owned();
    let directory = daemon.path().join("grant");
    let (mut id, mut token) = (String::new(), String::new());
    for method in ["Grants.create", "Grant.save", "Gate.restore", "Grant.export", "Grant.unexport", "Grant.revoke"] {
        (id, token) = bounded(async {
            let grants = daemon.client().await.namespace(&namespace).grants();
            match method {
                "Grants.create" => {
                    let options = GrantOptions { facets: vec!["observer".into()], ..GrantOptions::default() };
                    id = grants.create(&options).info().await.unwrap().id;
                }
                "Grant.save" => token = grants.get(&id).save(None).await.unwrap(),
                "Gate.restore" => {
                    let holder = Client::restore(daemon.socket(), &token).await.unwrap();
                    holder.namespace("").info().await.unwrap();
                }
                "Grant.export" => grants.get(&id).export(directory.to_str().unwrap()).await.unwrap(),
                "Grant.unexport" => grants.get(&id).unexport().await.unwrap(),
                _ => grants.get(&id).revoke().await.unwrap(),
            }
            daemon.kill9();
            (id, token)
        });
        daemon.restart();
        let records = told(&daemon, &["--method", method]);
        assert_eq!(records.len(), 1, "{method}: {records:?}");
        assert_eq!((&records[0]["verdict"], &records[0]["object"]), (&"allowed".into(), &format!("grant/{id}").into()));
        assert_eq!(say(&daemon, &["audit", "verify"]).code, 0, "{method}");
    }
    assert!(!ok(&daemon, &["audit"]).contains(&token));
}

/// Enough records for some segments.
fn many(daemon: &Daemon) {
    let namespace = daemon.namespace().to_owned();
    bounded(async {
        let grants = daemon.client().await.namespace(&namespace).grants();
        let id = grants.create(&GrantOptions::default()).info().await.unwrap().id;
        for _ in 0..200 {
            let opened: Vec<_> = (0..100).map(|_| grants.get(&id).open().info()).collect();
            for one in opened {
                one.await.unwrap();
            }
        }
    });
    until("there are some segments", || (segments(daemon).len() > 2).then_some(()));
}

fn edit(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    change(&mut bytes);
    fs::write(file, bytes).unwrap();
}

/// Where the record at a place of a segment ends.
fn end(bytes: &[u8], at: usize) -> usize {
    at + 44 + u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

#[test]
fn whoever_alters_the_log_is_found() {
    let daemon = Daemon::start();
    many(&daemon);
    daemon.stop();
    let (audit, tables, copy) =
        (daemon.root().join("audit"), daemon.root().join("meta.redb"), daemon.path().join("copy"));
    let copied = |from: &Path, to: &Path| {
        let _ = fs::remove_dir_all(to);
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    };
    copied(&audit, &copy);
    fs::copy(&tables, daemon.path().join("tables")).unwrap();
    let altered = |what: &str, alter: &dyn Fn(&[PathBuf])| {
        copied(&copy, &audit);
        fs::copy(daemon.path().join("tables"), &tables).unwrap();
        alter(&segments(&daemon));
        daemon.restart();
        let said = say(&daemon, &["audit", "verify"]);
        let check = say(&daemon, &["system", "check"]);
        // It goes on, and what was found stays to be found.
        ok(&daemon, &["grant", "create"]);
        daemon.stop();
        daemon.restart();
        let again = say(&daemon, &["audit", "verify"]);
        daemon.stop();
        assert_eq!((said.code, check.code, again.code), (1, 1, 1), "{what}: {said:?} {check:?} {again:?}");
        assert!(said.out.contains(what), "{what}: {said:?}");
        assert!(check.out.contains("audit-broken audit/"), "{what}: {check:?}");
        said
    };
    altered("is not what was written", &|all| {
        edit(&all[1], |bytes| {
            let middle = end(bytes, 40) + 60;
            bytes[middle] ^= 1;
        });
    });
    let said = altered("was removed", &|all| edit(&all[1], |bytes| drop(bytes.drain(40..end(bytes, 40)))));
    let second: u64 = segments(&daemon)[1].file_stem().unwrap().to_str().unwrap().parse().unwrap();
    assert!(said.out.contains(&format!("{second}: record {second} was removed")), "{said:?}");
    altered("their segment is gone", &|all| fs::remove_file(&all[1]).unwrap());
    altered("their segment is gone", &|all| fs::remove_file(&all[0]).unwrap());
    let cut = |all: &[PathBuf], left: usize| {
        edit(all.last().unwrap(), |bytes| {
            let mut ends = vec![40];
            while *ends.last().unwrap() < bytes.len() {
                ends.push(end(bytes, *ends.last().unwrap()));
            }
            bytes.truncate(ends[ends.len() - 1 - left]);
        });
    };
    // The daemon that is started says so too, whether one record is cut off or a segment.
    altered("", &|all| cut(all, 1));
    altered("", &|all| cut(all, 5));
    altered("", &|all| fs::remove_file(all.last().unwrap()).unwrap());
    assert!(daemon.log().contains("the audit log is not what was written"), "{}", daemon.log());

    // And what nobody altered is whole.
    copied(&copy, &audit);
    fs::copy(daemon.path().join("tables"), &tables).unwrap();
    daemon.restart();
    let whole = say(&daemon, &["audit", "verify"]);
    assert_eq!(whole.code, 0, "{whole:?}");
    assert!(ok(&daemon, &["system", "df"]).contains("audit"));
}

// R7: what can't be put on record is not done; what takes authority back is, and so is what runs.
#[test]
fn r7_on_a_full_disk_no_authority_is_given_unrecorded() {
    let daemon = small_disk(64, 4096);
    daemon.import_busybox();
    idle(&daemon, "web");
    let id = ok(&daemon, &["grant", "create", "-f", "observer"]).trim().to_owned();
    let token = ok(&daemon, &["grant", "save", &id]).trim().to_owned();
    let neighbour = daemon.root().join("lost+found/neighbour");
    fs::create_dir_all(&neighbour).unwrap();
    fill(&neighbour, 0);
    let error = bounded(async {
        for _ in 0..2000 {
            let holder = Client::restore(daemon.socket(), &token).await.unwrap();
            if let Err(error) = holder.namespace("").info().await {
                return error;
            }
        }
        panic!("there is always room to record more");
    });
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    assert!(error.message.contains("what can't be put on record is refused"), "{error}");
    let given = verdicts(&daemon, &["--method", "Gate.restore", "--verdict", "allowed"]).len();
    ok(&daemon, &["exec", "web", "true"]);
    ok(&daemon, &["grant", "revoke", &id]);
    let records = told(&daemon, &["--grant", &id]);
    assert_eq!(records.last().unwrap()["method"], "Grant.revoke", "{:?}", records.last());

    fs::remove_dir_all(&neighbour).unwrap();
    soon(&daemon, &["--method", "Task.exec"]);
    let whole = say(&daemon, &["audit", "verify"]);
    assert_eq!(whole.code, 0, "{whole:?}");
    assert_eq!(verdicts(&daemon, &["--method", "Gate.restore", "--verdict", "allowed"]).len(), given);
    ok(&daemon, &["grant", "create"]);
}

// Whoever is refused again and again doesn't push out what others did.
#[test]
fn a_thousand_refusals_are_a_few_records() {
    let daemon = Daemon::with_busybox();
    idle(&daemon, "web");
    bounded(async {
        let options = GrantOptions { facets: vec!["logs".into()], ..GrantOptions::default() };
        let grant = daemon.open().await.grants().create(&options);
        let token = grant.save(None).await.unwrap();
        let holder = Client::restore(daemon.socket(), &token).await.unwrap().namespace("");
        for _ in 0..1000 {
            assert_eq!(holder.containers().get("web").remove(true).await.unwrap_err().code, Code::Denied);
        }
        let id = grant.info().await.unwrap().id;
        let filter = AuditFilter { grant: id, verdict: "denied".into(), ..AuditFilter::default() };
        let mut cursor = daemon.client().await.audit().read(0, &filter);
        let mut all: Vec<AuditRecord> = Vec::new();
        // The last of them stands for many, and comes within ten seconds.
        while all.iter().map(|record| record.times).sum::<u32>() < 1000 {
            all.extend(cursor.wait().await.unwrap());
        }
        assert!(all.len() < 50 && all.iter().all(|record| record.object == "container/web"), "{}", all.len());
    });
}

// Who is root in a container is no operator at a socket that is a grant, and what he does there has the bound of that.
#[test]
fn what_fails_at_a_socket_that_is_a_grant_is_told_of_the_grant() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let grant = daemon.open().await.grants().create(&GrantOptions::default());
        let id = grant.info().await.unwrap().id;
        let directory = daemon.path().join("given");
        grant.export(directory.to_str().unwrap()).await.unwrap();
        let socket = directory.join("cofferdam.sock");
        let nobody = Client::restore(&socket, "no token").await.unwrap();
        assert_eq!(nobody.namespace("").info().await.unwrap_err().code, Code::InvalidArgument);
        let filter = AuditFilter { grant: id.clone(), method: "Gate.restore".into(), ..AuditFilter::default() };
        let mut cursor = daemon.client().await.audit().read(0, &filter);
        let all: Vec<AuditRecord> = loop {
            let all = cursor.wait().await.unwrap();
            if !all.is_empty() {
                break all;
            }
        };
        assert_eq!((all[0].verdict.as_str(), &all[0].grants), ("failed", &vec![id]));
    });
}
