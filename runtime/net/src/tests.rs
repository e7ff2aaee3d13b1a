//! Configurations as they are found, and chains of plugins that are scripts.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use cofferdam_types::Code;
use serde_json::{Value, json};

use crate::{Chain, Outcome, Place, Plugins, Port, Protocol, Wish, conf, find, list};

/// A directory of plugins, each of which writes down how it was called.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture { dir: tempfile::tempdir().unwrap() }
    }

    /// A plugin that is a shell script; `$CONFIG` is the file with its input, `log` notes the call.
    fn plugin(&self, kind: &str, script: &str) {
        let path = self.dir.path().join(kind);
        let dir = self.dir.path().display();
        let head = format!(
            "#!/bin/sh\nCONFIG={dir}/$CNI_COMMAND.{kind}.json\ncat > $CONFIG\nset >> {dir}/$CNI_COMMAND.{kind}.env\n"
        );
        let text = format!("{head}echo $CNI_COMMAND {kind} >> {dir}/log\n{script}\n");
        // Written by somebody else: a descriptor of ours that a program started meanwhile inherits would keep it from
        // being executed.
        let mut write = Command::new("sh");
        write.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(&path).stdin(Stdio::piped());
        let mut writer = write.spawn().unwrap();
        writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
    }

    /// One that answers to ADD.
    fn answers(&self, kind: &str, answer: &Value) {
        self.plugin(kind, &format!("[ $CNI_COMMAND = ADD ] && echo '{answer}'; exit 0"));
    }

    fn plugins(&self) -> Plugins {
        Plugins { dirs: vec![PathBuf::from("/nonexistent"), self.dir.path().into()], deadline: Duration::from_secs(20) }
    }

    fn add(&self, chain: &Chain, wish: &Wish) -> cofferdam_types::Result<Value> {
        let plugins = self.plugins();
        let keep = |answer: &Value| {
            std::fs::write(self.dir.path().join("kept"), answer.to_string()).unwrap();
            Ok(())
        };
        chain.add(&plugins, &place(self.dir.path()), &chain.version(&plugins)?, wish, keep)
    }

    fn del(&self, chain: &Chain, wish: &Wish, answer: Option<&Value>) -> cofferdam_types::Result<()> {
        let plugins = self.plugins();
        chain.del(&plugins, &place(self.dir.path()), &chain.version(&plugins)?, wish, answer)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    fn config(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }
}

fn place(netns: &Path) -> Place<'_> {
    Place { container: "c0ffee", netns, interface: "eth0" }
}

fn chain(document: Value) -> Chain {
    conf::parse(document, true).unwrap()
}

fn two(version: &str) -> Chain {
    chain(json!({ "cniVersion": version, "name": "two", "plugins": [
        { "type": "one", "capabilities": { "mac": true } },
        { "type": "map", "capabilities": { "portMappings": true, "ips": false } },
    ] }))
}

fn published() -> Wish {
    let port = Port { host_port: 8080, container_port: 80, protocol: Protocol::Tcp, host_ip: None };
    Wish { ports: vec![port], mac: Some("02:00:00:00:00:01".into()), ..Wish::default() }
}

#[test]
fn a_chain_is_run_in_order_and_undone_in_reverse() {
    let fixture = Fixture::new();
    let (first, second) = (
        json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.1.0.2/16" }] }),
        json!({ "cniVersion": "1.0.0", "dns": { "nameservers": ["10.1.0.1"] } }),
    );
    fixture.answers("one", &first);
    fixture.answers("map", &second);
    let chain = two("1.0.0");
    let answer = fixture.add(&chain, &published()).unwrap();
    assert_eq!(answer, second);
    fixture.del(&chain, &published(), Some(&answer)).unwrap();
    assert_eq!(fixture.read("log"), "ADD one\nADD map\nDEL map\nDEL one\n");
    assert_eq!(fixture.config("kept"), first, "for the case that the second never answers");
    // Each is told what it knows, and what the one before it answered.
    let one = fixture.config("ADD.one.json");
    assert_eq!((&one["name"], &one["cniVersion"], one.get("prevResult")), (&json!("two"), &json!("1.0.0"), None));
    assert_eq!(one["runtimeConfig"], json!({ "mac": "02:00:00:00:00:01" }));
    let map = fixture.config("ADD.map.json");
    assert_eq!(map["prevResult"], first);
    let port = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
    assert_eq!(map["runtimeConfig"], json!({ "portMappings": [port] }));
    for del in ["DEL.map.json", "DEL.one.json"] {
        assert_eq!(fixture.config(del)["prevResult"], second);
    }
    let env = fixture.read("ADD.one.env");
    let netns = fixture.dir.path().display();
    for line in
        ["CNI_CONTAINERID='c0ffee'", "CNI_IFNAME='eth0'", "CNI_ARGS='IgnoreUnknown=1'", &format!("CNI_NETNS='{netns}'")]
    {
        assert!(env.lines().any(|l| l == line), "{line} in {env}");
    }
    // X1: nothing of ours is in its environment.
    assert!(!env.contains("CARGO"), "{env}");
}

#[test]
fn del_is_told_nothing_that_its_version_does_not_know_and_no_namespace_that_is_gone() {
    let fixture = Fixture::new();
    let answer = json!({ "ip4": { "ip": "10.1.0.2/16", "gateway": "10.1.0.1" } });
    fixture.answers("one", &answer);
    let old = conf::parse(json!({ "name": "old", "type": "one" }), false).unwrap();
    let answer = fixture.add(&old, &Wish::default()).unwrap();
    assert_eq!(answer["cniVersion"], "0.1.0");
    let plugins = fixture.plugins();
    old.del(&plugins, &place(Path::new("/nonexistent/ns")), "0.1.0", &Wish::default(), Some(&answer)).unwrap();
    assert_eq!(fixture.config("DEL.one.json").get("prevResult"), None);
    assert!(fixture.read("DEL.one.env").contains("CNI_NETNS=''"));
}

#[test]
fn the_newest_version_that_all_know_is_spoken() {
    let fixture = Fixture::new();
    for (kind, known) in [("one", r#"["0.3.1","0.4.0","1.0.0"]"#), ("map", r#"["0.4.0","1.0.0","1.1.0"]"#)] {
        fixture.plugin(kind, &format!("echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":{known}}}'"));
    }
    let of = |versions: Value| {
        let plugins = json!([{ "type": "one" }, { "type": "map" }]);
        chain(json!({ "name": "n", "cniVersion": "1.1.0", "cniVersions": versions, "plugins": plugins }))
    };
    let plugins = fixture.plugins();
    assert_eq!(of(json!(["0.4.0", "1.0.0", "1.1.0", "9.9.9"])).version(&plugins).unwrap(), "1.0.0");
    assert_eq!(of(json!(["0.3.0"])).version(&plugins).unwrap_err().code, Code::FailedPrecondition);
    // Where there is no choice nobody is asked.
    std::fs::remove_file(fixture.dir.path().join("log")).unwrap();
    assert_eq!(two("0.4.0").version(&plugins).unwrap(), "0.4.0");
    assert_eq!(fixture.read("log"), "");
}

#[test]
fn what_a_plugin_says_of_its_failure_is_the_error() {
    let fixture = Fixture::new();
    let chain = conf::parse(json!({ "cniVersion": "1.0.0", "name": "net", "type": "one" }), false).unwrap();
    let error = |script: &str| {
        fixture.plugin("one", script);
        fixture.add(&chain, &Wish::default()).unwrap_err()
    };
    for (script, code, part) in [
        (
            r#"echo '{"code":999,"msg":"no IP addresses available","details":"in range"}'; exit 1"#,
            Code::FailedPrecondition,
            "no IP addresses available; in range",
        ),
        (r#"echo '{"code":11,"msg":"busy"}'; exit 1"#, Code::Unavailable, "busy"),
        (r#"echo '{"code":1,"msg":"incompatible"}'; exit 1"#, Code::FailedPrecondition, "set `cniVersion`"),
        ("echo panic: oh >&2; exit 2", Code::FailedPrecondition, "panic: oh"),
        ("kill -9 $$", Code::FailedPrecondition, "signal: 9"),
        ("echo garbage", Code::FailedPrecondition, "not JSON"),
        ("true", Code::FailedPrecondition, "no object"),
        (r#"echo '{"cniVersion":"0.4.0"}'"#, Code::FailedPrecondition, "1.0.0 was spoken"),
        (r#"echo '{"ips":[{"address":"nowhere"}]}'"#, Code::FailedPrecondition, "nowhere"),
        (r#"echo '{"ips":7}'"#, Code::FailedPrecondition, "no result of CNI"),
        ("head -c 2000000 /dev/zero", Code::FailedPrecondition, "more than 1048576 bytes"),
    ] {
        let error = error(script);
        assert_eq!((error.code, &*error.kind, &*error.id), (code, "plugin", "one"), "{script}: {error}");
        assert!(error.message.starts_with("network net: ") && error.message.contains(part), "{script}: {error}");
    }
}

#[test]
fn a_plugin_that_hangs_is_killed_at_its_deadline() {
    let fixture = Fixture::new();
    fixture.plugin("one", "sleep 1000");
    let chain = conf::parse(json!({ "name": "net", "type": "one" }), false).unwrap();
    let plugins = Plugins { deadline: Duration::from_millis(300), ..fixture.plugins() };
    let began = Instant::now();
    let error = chain.add(&plugins, &place(fixture.dir.path()), "0.1.0", &Wish::default(), |_| Ok(())).unwrap_err();
    assert_eq!((error.code, &*error.id), (Code::DeadlineExceeded, "one"));
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_a_network_can_not_do_is_refused_before_anything_is_run() {
    let chain = two("1.0.0");
    chain.check(&published()).unwrap();
    let address = Wish { addresses: vec!["10.1.2.3".into()], ..Wish::default() };
    assert!(chain.check(&address).unwrap_err().message.contains("\"ips\""));
    let plain = conf::parse(json!({ "name": "plain", "type": "one" }), false).unwrap();
    assert!(plain.check(&published()).unwrap_err().message.contains("portmap"));
    plain.check(&Wish::default()).unwrap();
}

#[test]
fn answers_of_every_version_mean_the_same() {
    let newer = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "br0" }, { "name": "veth1", "mac": "02:00:00:00:00:09" }, { "name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/ns" }],
        "ips": [{ "address": "10.1.0.2/16", "gateway": "10.1.0.1", "interface": 2 }, { "address": "10.1.0.1/16", "interface": 0 }],
        "dns": { "nameservers": ["10.1.0.1"] },
    });
    let outcome = Outcome::read(&newer, "eth0").unwrap();
    assert_eq!(
        (&*outcome.addresses, &*outcome.gateways),
        (&["10.1.0.2/16".to_owned()][..], &["10.1.0.1".to_owned()][..])
    );
    assert_eq!((&*outcome.mac, &*outcome.dns.nameservers), ("02:00:00:00:00:02", &["10.1.0.1".to_owned()][..]));
    let older =
        json!({ "ip4": { "ip": "10.1.0.2/16", "gateway": "10.1.0.1" }, "dns": { "nameservers": ["10.1.0.1"] } });
    assert_eq!(Outcome::read(&older, "eth0").unwrap(), Outcome { mac: String::new(), ..outcome });
}

#[test]
fn configurations_are_found_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    assert_eq!(list(&dir.path().join("none")).unwrap().0, []);
    put("10-b.conf", r#"{"name":"b","type":"bridge","cniVersion":"1.0.0"}"#);
    put("20-b.conflist", r#"{"name":"b","plugins":[{"type":"ptp"}]}"#);
    put("30-a.json", r#"{"name":"a","type":"loopback"}"#);
    put("40-bad.conf", "{");
    put("50-c.conf.disabled", r#"{"name":"c","type":"bridge"}"#);
    let (found, errors) = list(dir.path()).unwrap();
    let names: Vec<_> = found.iter().map(|n| (n.chain.name.as_str(), n.chain.types())).collect();
    assert_eq!(names, [("a", vec!["loopback"]), ("b", vec!["ptp"])]);
    assert!(errors.len() == 1 && errors[0].id.ends_with("40-bad.conf"));
    assert_eq!(find(dir.path(), "a").unwrap().chain.versions, ["0.1.0"]);
    let error = find(dir.path(), "c").unwrap_err();
    assert_eq!((error.code, &*error.id), (Code::NotFound, "c"));
    assert!(error.message.contains("40-bad.conf"), "{error}");
    assert_eq!(find(dir.path(), "../a").unwrap_err().code, Code::InvalidArgument);
}

// F2 of the negative tests: a type is a name and not a path, in a plugin as in what it calls.
#[test]
fn f2_a_type_that_is_a_path_is_refused() {
    for kind in ["../../bin/sh", "/bin/sh", "..", ".", "", "a/b", "a\0b"] {
        for document in
            [json!({ "name": "n", "type": kind }), json!({ "name": "n", "type": "bridge", "ipam": { "type": kind } })]
        {
            let of_plugin = document["type"] == kind;
            if kind.is_empty() && !of_plugin {
                continue;
            }
            assert!(conf::parse(document.clone(), false).is_err(), "{document}");
        }
    }
}

#[test]
fn what_is_no_configuration_says_why() {
    for (document, is_list, part) in [
        (json!([]), false, "no object"),
        (json!({ "type": "x" }), false, "no `name`"),
        (json!({ "name": "../n", "type": "x" }), false, "is no name"),
        (json!({ "name": "n", "type": "x" }), true, "no list `plugins`"),
        (json!({ "name": "n", "plugins": [] }), true, "0 plugins"),
        (json!({ "name": "n", "plugins": vec![json!({ "type": "x" }); 33] }), true, "33 plugins"),
        (json!({ "name": "n", "plugins": [{}] }), true, "without a `type`"),
        (json!({ "name": "n", "cniVersion": "2.0.0", "type": "x" }), false, "CNI 2.0.0"),
    ] {
        let error = conf::parse(document.clone(), is_list).unwrap_err();
        assert!(error.message.contains(part), "{document}: {error}");
    }
}
