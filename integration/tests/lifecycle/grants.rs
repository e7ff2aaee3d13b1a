//! Grants, tried from the outside: what each gives, that it gives nothing else, and that it ends. S, W and Z are ids of
//! SECURITY.md.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    future::Future,
    rc::Rc,
};

use cofferdam_client::{
    BindMount, Client, ContainerChanges, ContainerRequest, FROM_NOW, GrantOptions, ImportOptions, MountSource,
    Namespace, Network, Output, ProcessOptions, PullOptions, PullPolicy, Rlimit, Stdio, channel,
};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, output, until, until_async};
use cofferdam_types::{Code, Error, Labels, Timestamp};

use crate::{container, idle, with};

pub fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

pub fn facets(text: &str) -> GrantOptions {
    GrantOptions { facets: words(text), ..GrantOptions::default() }
}

/// Who holds a new grant: on a connection of his own, which knows nothing but the token.
pub async fn holder(daemon: &Daemon, namespace: &Namespace, options: &GrantOptions) -> (Client, String) {
    let grant = namespace.grants().create(options);
    let token = grant.save(None).await.unwrap();
    let client = Client::restore(daemon.socket(), &token).await.unwrap();
    (client, grant.info().await.unwrap().id)
}

#[track_caller]
pub fn refused<T>(answer: Result<T, Error>, code: Code) -> Error {
    let Err(error) = answer else { panic!("it was let through") };
    assert_eq!(error.code, code, "{error}");
    error
}

pub async fn denied<T>(answer: impl Future<Output = Result<T, Error>>) -> Error {
    refused(answer.await, Code::Denied)
}

async fn missing<T>(answer: impl Future<Output = Result<T, Error>>) -> Error {
    refused(answer.await, Code::NotFound)
}

async fn ids(namespace: &Namespace) -> Vec<String> {
    let all = namespace.containers().list::<&str>(&[]).all().await.unwrap();
    all.into_iter().map(|info| info.id).collect()
}

/// What a container has logged.
async fn logged(namespace: &Namespace, id: &str) -> Result<String, Error> {
    let text = Rc::new(RefCell::new(Vec::new()));
    let theirs = text.clone();
    let take = move |record: cofferdam_client::LogRecord<'_>| {
        theirs.borrow_mut().extend_from_slice(record.bytes);
        Ok(())
    };
    namespace.containers().get(id).logs(false, take).await?;
    Ok(String::from_utf8(text.take()).unwrap())
}

fn labels(text: &str) -> Labels {
    text.split_whitespace().filter_map(|kv| kv.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
}

/// One that has said its own name, and waits.
pub async fn talking(namespace: &Namespace, id: &str, given: &str) {
    let container = with(namespace, id, &format!("echo I am {id}; exec sleep 1000"), |request| {
        request.labels = labels(given);
    });
    let task = container.create_task(Stdio::default(), true);
    task.start().await.unwrap();
    until_async("it has spoken", async || logged(namespace, id).await.ok().filter(|text| text.contains(id))).await;
}

// Z2: a grant begins in one namespace, and knows of no other.
#[test]
fn z2_an_observer_sees_one_namespace_and_changes_nothing() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let client = daemon.client().await;
        client.namespaces().create("elsewhere", &Labels::new()).await.unwrap();
        let operator = daemon.open().await;
        let (_, task) = idle(&operator, "box").await;
        let (watcher, _) = holder(&daemon, &operator, &facets("observer")).await;

        let held = watcher.grant().await.unwrap().expect("it is a grant's");
        assert_eq!((held.namespace.as_str(), &*held.rights), (daemon.namespace(), &words("read")[..]));
        assert!(client.grant().await.unwrap().is_none(), "the operator has everything");
        let spaces = watcher.namespaces().list::<&str>(&[]).all().await.unwrap();
        assert_eq!(spaces.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), [daemon.namespace()]);
        missing(watcher.namespace("elsewhere").info()).await;
        missing(watcher.namespace("default").info()).await;
        denied(watcher.namespaces().create("more", &Labels::new())).await;
        denied(watcher.namespaces().remove("elsewhere")).await;
        denied(watcher.system().status()).await;
        denied(watcher.system().crash("tasks")).await;
        denied(watcher.collector().collect(false)).await;

        // By its name, or as the only one.
        let seen = watcher.namespace("");
        assert_eq!(seen.info().await.unwrap().name, daemon.namespace());
        assert_eq!(ids(&seen).await, ["box"]);
        let theirs = seen.containers().get("box");
        theirs.info().await.unwrap();
        theirs.task().metrics().await.unwrap();
        seen.images().get(BUSYBOX).detail("").await.unwrap();
        for error in [
            denied(theirs.remove(true)).await,
            denied(theirs.task().kill(9, true)).await,
            denied(theirs.rename("other").info()).await,
            denied(theirs.task().exec("", &ProcessOptions::default(), Stdio::default()).start()).await,
            denied(seen.images().remove(BUSYBOX)).await,
            denied(seen.leases().create("mine", &Labels::new(), None).info()).await,
            denied(seen.events().publish("/mine", &serde_json::json!({}))).await,
            denied(container(&seen, "mine", "true").info()).await,
        ] {
            assert!(error.message.contains("right, and this grant has read"), "{error}");
        }
        denied(seen.grants().list().all()).await;
        assert_eq!(task.state().await.unwrap().status.as_str(), "running");
    });
}

#[test]
fn z2_logs_by_label_and_nothing_else() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        talking(&operator, "web", "tier=front").await;
        talking(&operator, "db", "tier=back").await;
        let options = GrantOptions { filters: vec!["labels.tier==front".into()], ..facets("logs") };
        let (reader, _) = holder(&daemon, &operator, &options).await;
        let seen = reader.namespace("");
        assert_eq!(ids(&seen).await, ["web"]);
        assert_eq!(logged(&seen, "web").await.unwrap(), "I am web\n");
        // As if there were none, and the same as of one that isn't.
        let (hidden, none) = (missing(logged(&seen, "db")).await, missing(logged(&seen, "nothing")).await);
        assert_eq!(hidden.message, none.message);
        denied(seen.containers().get("web").info()).await;
        denied(seen.containers().get("web").task().kill(9, false)).await;
        denied(seen.containers().get("web").remove(true)).await;
        denied(seen.events().last()).await;
        denied(seen.images().get(BUSYBOX).info()).await;
        denied(seen.snapshots("").get("db").info()).await;
        denied(seen.explain("container", "db")).await;

        // It is looked at again at each call, also of an object that is held already.
        let held = seen.containers().get("web");
        held.logs(false, |_| Ok(())).await.unwrap();
        let changes = ContainerChanges { labels: labels("tier=back"), ..ContainerChanges::default() };
        operator.containers().get("web").update(&changes, &["labels"]).await.unwrap();
        missing(held.logs(false, |_| Ok(()))).await;
        assert!(ids(&seen).await.is_empty());
    });
}

// Z2: a call that is under way is asked again too.
#[test]
fn z2_a_log_that_is_followed_ends_when_its_container_is_chosen_no_more() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let web = with(&operator, "web", "while :; do echo tick; usleep 20000; done", |request| {
            request.labels = labels("tier=front");
        });
        web.create_task(Stdio::default(), true).start().await.unwrap();
        let options = GrantOptions { filters: vec!["labels.tier==front".into()], ..facets("logs") };
        let (reader, _) = holder(&daemon, &operator, &options).await;
        let heard = Rc::new(Cell::new(0));
        let count = heard.clone();
        let follow = reader.namespace("").containers().get("web").logs(true, move |_| {
            count.set(count.get() + 1);
            Ok(())
        });
        let mut follow = std::pin::pin!(follow);
        tokio::select! {
            ended = &mut follow => panic!("it has ended: {:?}", ended.err()),
            () = until_async("it is followed", async || (heard.get() > 2).then_some(())) => {}
        }
        let changes = ContainerChanges { labels: labels("tier=back"), ..ContainerChanges::default() };
        web.update(&changes, &["labels"]).await.unwrap();
        missing(follow).await;
    });
}

// Z2: neither does what goes on beside calls outlive the choice.
#[test]
fn z2_what_was_begun_in_a_container_ends_when_it_is_chosen_no_more() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let start = async |id: &str| {
            let made = with(&operator, id, "while :; do echo tick; usleep 20000; done", |request| {
                request.labels = labels("tier=front");
            });
            let (stdout, heard) = output();
            let task = made.create_task(Stdio { stdout, ..Stdio::default() }, true);
            task.start().await.unwrap();
            heard.contains("tick").await;
            (made, task)
        };
        let ((web, task), (_db, _)) = (start("web").await, start("db").await);
        let options = GrantOptions { filters: vec!["labels.tier==front".into()], ..facets("exec deploy") };
        let (user, _) = holder(&daemon, &operator, &options).await;
        let begin = async |id: &str| {
            let theirs = user.namespace("").containers().get(id).task();
            let (stdout, said) = output();
            let talk = ProcessOptions {
                args: vec!["sh".into(), "-c".into(), "while :; do echo tock; usleep 20000; done".into()],
                ..ProcessOptions::default()
            };
            let exec = theirs.exec("theirs", &talk, Stdio { stdout, ..Stdio::default() });
            exec.start().await.unwrap();
            let (stdout, heard) = output();
            let attached = theirs.attach(Stdio { stdout, ..Stdio::default() });
            said.contains("tock").await;
            heard.contains("tick").await;
            let waits = (theirs.wait(), attached.wait());
            (theirs, attached, waits, said, heard)
        };
        let (theirs, _attached, (mut ends, detached), said, heard) = begin("web").await;
        let (_theirs, _other, (mut others, _), goes_on, _heard) = begin("db").await;
        // What waits is under way: what is asked behind it is answered.
        tokio::select! {
            biased;
            ended = &mut ends => panic!("it has ended: {:?}", ended.err()),
            ended = &mut others => panic!("it has ended: {:?}", ended.err()),
            state = theirs.state() => drop(state.unwrap()),
        }
        let change = async |tier: &str| {
            let changes = ContainerChanges { labels: labels(tier), ..ContainerChanges::default() };
            web.update(&changes, &["labels"]).await.unwrap();
        };
        change("tier=back").await;
        missing(ends).await;
        missing(detached).await;
        missing(theirs.state()).await;
        // Both outputs come to their end; what was run is killed, and the container goes on.
        said.all().await;
        heard.all().await;
        assert_eq!(task.process("theirs").wait().await.unwrap().status, 137);
        assert_eq!(task.state().await.unwrap().status.as_str(), "running");
        let so_far = goes_on.so_far().len();
        until_async("the other's goes on", async || (goes_on.so_far().len() > so_far).then_some(())).await;
        // It is reached again when it is chosen again.
        change("tier=front").await;
        let say = ProcessOptions { args: words("echo again"), ..ProcessOptions::default() };
        let (stdout, said) = output();
        let again = theirs.exec("", &say, Stdio { stdout, ..Stdio::default() });
        again.start().await.unwrap();
        assert_eq!(again.wait().await.unwrap().status, 0);
        said.contains("again").await;
    });
}

// Z2: what is beside the containers that a grant chooses may be of others.
#[test]
fn z2_who_chooses_containers_gets_no_image_out_and_who_has_logs_no_labels_of_the_namespace() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        idle(&operator, "web").await;
        let (watcher, _) =
            holder(&daemon, &operator, &GrantOptions { containers: words("web"), ..facets("observer backup") }).await;
        let seen = watcher.namespace("");
        seen.images().get(BUSYBOX).info().await.unwrap();
        let (sink, _heard) = channel();
        denied(seen.images().get(BUSYBOX).export(sink.clone()).wait()).await;
        denied(seen.images().export(&[BUSYBOX], "", sink).wait()).await;

        let client = daemon.client().await;
        client.namespaces().create("shop", &labels("owner=me")).await.unwrap();
        let shop = client.namespace("shop");
        for (facet, told) in [("observer", "owner=me"), ("logs", "")] {
            let (client, _) = holder(&daemon, &shop, &facets(facet)).await;
            let all = client.namespaces().list::<&str>(&[]).all().await.unwrap();
            assert_eq!((all.len(), all[0].name.as_str(), &all[0].labels), (1, "shop", &labels(told)), "{facet}");
            assert_eq!(all[0].created == Timestamp(0), told.is_empty(), "{facet}");
            let found = client.namespaces().list(&["labels.owner==me"]).all().await.unwrap();
            assert_eq!(found.is_empty(), told.is_empty(), "{facet}");
        }
    });
}

#[test]
fn an_exec_in_one_container_is_not_its_task() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let (_, task) = idle(&operator, "web").await;
        idle(&operator, "db").await;
        let options = GrantOptions { containers: words("web"), ..facets("exec") };
        let (user, _) = holder(&daemon, &operator, &options).await;
        let seen = user.namespace("");
        let say = |what: &str| ProcessOptions { args: vec!["echo".into(), what.into()], ..ProcessOptions::default() };
        let (stdout, arrivals) = output();
        let theirs = seen.containers().get("web").task();
        let exec = theirs.exec("", &say("hello"), Stdio { stdout, ..Stdio::default() });
        exec.start().await.unwrap();
        assert_eq!(exec.wait().await.unwrap().status, 0);
        arrivals.contains("hello").await;
        exec.delete().await.unwrap();
        // By no name of another process, and by no signal to all of them.
        refused(theirs.process("").kill(9, false).await, Code::InvalidArgument);
        let long = ProcessOptions { args: words("sleep 1000"), ..ProcessOptions::default() };
        let second = theirs.exec("second", &long, Stdio::default());
        second.start().await.unwrap();
        denied(second.kill(9, true)).await;
        second.kill(9, false).await.unwrap();
        assert_eq!(second.wait().await.unwrap().status, 137);
        // The first process has the same methods, and they are not given.
        denied(theirs.kill(9, true)).await;
        denied(theirs.attach(Stdio::default()).wait()).await;
        denied(theirs.pause()).await;
        denied(theirs.delete()).await;
        denied(theirs.exec("", &ProcessOptions { cap_add: words("SYS_ADMIN"), ..say("x") }, Stdio::default()).start())
            .await;
        missing(seen.containers().get("db").task().exec("", &say("x"), Stdio::default()).start()).await;
        assert_eq!(task.state().await.unwrap().status.as_str(), "running");
    });
}

#[test]
fn killers_readers_of_events_and_of_figures_have_just_that() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let (_, task) = idle(&operator, "web").await;
        let (killer, _) =
            holder(&daemon, &operator, &GrantOptions { containers: words("web"), ..facets("kill") }).await;
        let (figures, _) = holder(&daemon, &operator, &facets("metrics")).await;
        let (events, _) = holder(&daemon, &operator, &facets("events")).await;
        let mut happening = events.namespace("").events().subscribe::<&str>(FROM_NOW, &[]);
        events.namespace("").events().last().await.unwrap();
        denied(events.namespace("").containers().get("web").info()).await;
        denied(events.namespace("").events().publish("/x", &serde_json::json!({}))).await;

        let measured = figures.namespace("").containers().get("web").task();
        assert!(measured.metrics().await.unwrap().pids.is_some());
        denied(measured.kill(9, true)).await;
        denied(figures.namespace("").containers().get("web").logs(false, |_| Ok(()))).await;

        let theirs = killer.namespace("").containers().get("web");
        denied(theirs.task().exec("", &ProcessOptions::default(), Stdio::default()).start()).await;
        denied(theirs.task().metrics()).await;
        denied(theirs.remove(true)).await;
        theirs.task().kill(9, true).await.unwrap();
        assert_eq!(task.wait().await.unwrap().status, 137);
        let seen = happening.next().await.unwrap().unwrap();
        assert_eq!(seen.namespace.as_str(), daemon.namespace());
    });
}

#[test]
fn a_backup_reads_content_and_a_puller_goes_one_way() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let (backup, _) = holder(&daemon, &operator, &facets("backup")).await;
        let content = backup.namespace("").content();
        let all = content.list::<&str>(&[]).all().await.unwrap();
        assert!(all.len() >= 3, "{all:?}");
        for blob in &all {
            content.get(&blob.digest.to_string()).info().await.unwrap();
            denied(content.remove(&blob.digest.to_string())).await;
        }
        backup.namespace("").images().get(BUSYBOX).info().await.unwrap();
        denied(content.ingest("mine", 0, "", "").info()).await;
        denied(backup.namespace("").containers().get("x").info()).await;

        let options = GrantOptions { images: words("registry.invalid/team/*"), ..facets("pull") };
        let (puller, _) = holder(&daemon, &operator, &options).await;
        let images = puller.namespace("").images();
        let ask = |reference: &str| PullOptions { reference: reference.into(), ..PullOptions::default() };
        assert!(images.list::<&str>(&[]).all().await.unwrap().is_empty(), "busybox is of another route");
        missing(images.get(BUSYBOX).info()).await;
        for other in ["docker.io/library/redis:7", "registry.invalid/other/app:1", BUSYBOX] {
            denied(images.obtain(&ask(other), PullPolicy::Always).info()).await;
            denied(images.pull(&ask(other)).wait()).await;
        }
        // On its way, and no further than that.
        let route = ask("registry.invalid/team/app:1");
        let error = images.pull(&route).wait().await.unwrap_err();
        assert_ne!(error.code, Code::Denied, "{error}");
        denied(images.pull(&PullOptions { plain_http: true, ..route.clone() }).wait()).await;
        denied(images.pull(&PullOptions { ca_certificates: b"mine".to_vec(), ..route }).wait()).await;
        denied(images.remove("registry.invalid/team/app:1")).await;
    });
}

fn request(id: &str) -> ContainerRequest {
    let mut request = ContainerRequest { id: id.into(), ..ContainerRequest::default() };
    request.options.args = words("sleep 1000");
    request
}

// Z3, Z5: what a deployer makes keeps within what he was given, whoever changes it.
#[test]
fn z3_what_a_deployer_makes_keeps_within_his_grant() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        idle(&operator, "others").await;
        let source = std::fs::File::open(cofferdam_integration::images().join("rootfs/busybox")).unwrap();
        let second = cofferdam_client::ImportOptions {
            name: "test/second:latest".into(),
            format: cofferdam_client::ImportFormat::Rootfs,
            ..Default::default()
        };
        operator.images().import_fd(&second, source.into()).wait().await.unwrap();
        let most = 64 << 20;
        let options = GrantOptions {
            own: true,
            images: vec![BUSYBOX.into()],
            memory: most,
            pids: 50,
            nano_cpus: 500_000_000,
            most_disk: 1 << 30,
            ..facets("deploy")
        };
        let (deployer, id) = holder(&daemon, &operator, &options).await;
        let theirs = deployer.namespace("");
        let (containers, image) = (theirs.containers(), theirs.images().get(BUSYBOX));
        let made = containers.create(&image, &request("mine"));
        let task = made.create_task(Stdio::default(), true);
        task.start().await.unwrap();
        assert_eq!(ids(&theirs).await, ["mine"]);
        assert_eq!(ids(&operator).await, ["mine", "others"]);
        missing(containers.get("others").info()).await;

        // Who asks for no limit has that of the grant.
        let spec = |info: cofferdam_client::ContainerInfo| -> serde_json::Value {
            serde_json::from_slice(&info.spec.value).unwrap()
        };
        let resources = spec(made.info().await.unwrap())["linux"]["resources"].clone();
        assert_eq!((&resources["memory"]["limit"], &resources["pids"]["limit"]), (&most.into(), &50.into()));

        // At creation.
        for change in [
            (|r: &mut ContainerRequest| r.options.memory = 65 << 20) as fn(&mut ContainerRequest),
            |r| r.options.pids = 51,
            |r| r.options.nano_cpus = 600_000_000,
            |r| r.options.cap_add = words("SYS_ADMIN"),
            |r| r.options.seccomp_unconfined = true,
            |r| r.options.network = cofferdam_client::Network::Host,
            |r| r.group = "shared".into(),
            |r| r.options.rlimits = vec![Rlimit { name: "RLIMIT_RTPRIO".into(), soft: 0, hard: 99 }],
            |r| r.log_options = Labels::from([("max-size".to_owned(), "1g".to_owned())]),
            |r| {
                let source = MountSource::Host("/etc".into());
                r.options.mounts = vec![BindMount { target: "/mnt".into(), source, read_only: true, options: vec![] }];
            },
            |r| r.checkpoint = true,
        ] {
            let mut bad = request("bad");
            change(&mut bad);
            denied(containers.create(&image, &bad).info()).await;
        }
        denied(containers.create_from_spec(Some(&image), &request("bad"), b"{}").info()).await;
        missing(theirs.images().get("test/second:latest").info()).await;
        let wanted = PullOptions { reference: "test/second:latest".into(), ..PullOptions::default() };
        denied(theirs.images().obtain(&wanted, PullPolicy::Missing).info()).await;
        // By another's network.
        let mut shared = request("bad");
        shared.options.network = cofferdam_client::Network::Container("others".into());
        missing(containers.create(&image, &shared).info()).await;

        // Later: by the deployer, by the operator, on the task and on the container.
        let more = format!(r#"{{"memory":{{"limit":{}}}}}"#, most + 1);
        let less = br#"{"memory":{"limit":33554432}}"#;
        let ours = operator.containers().get("mine");
        for error in [
            denied(task.update(more.as_bytes())).await,
            denied(made.update_resources(more.as_bytes())).await,
            denied(ours.update_resources(more.as_bytes())).await,
            denied(ours.task().update(br#"{"memory":{"limit":-1}}"#)).await,
            denied(ours.update_resources(br#"{"pids":{"limit":-1}}"#)).await,
            denied(ours.update_resources(br#"{"cpu":{"period":50000}}"#)).await,
            denied(ours.update_resources(br#"{"hugepageLimits":[{"pageSize":"2MB","limit":2097152}]}"#)).await,
        ] {
            assert!(error.message.contains("the grant lets it"), "{error}");
        }
        made.update_resources(less).await.unwrap();
        let mut whole = spec(ours.info().await.unwrap());
        let changes = |spec: &serde_json::Value| ContainerChanges {
            spec: cofferdam_types::Any { type_url: String::new(), value: spec.to_string().into_bytes() },
            ..ContainerChanges::default()
        };
        // A spec of his own is none of a deployer's, whatever is in it.
        let error = denied(made.update(&changes(&whole), &["spec"])).await;
        assert!(error.message.contains("needs the host right"), "{error}");
        whole["linux"]["resources"]["memory"]["limit"] = (most + 1).into();
        denied(ours.update(&changes(&whole), &["spec"])).await;
        denied(made.update(&changes(&whole), &["spec"])).await;

        // The grant goes, and the bounds stay; so does what runs.
        operator.grants().get(&id).revoke().await.unwrap();
        refused(made.info().await, Code::Revoked);
        denied(ours.update_resources(more.as_bytes())).await;
        ours.rename("renamed").info().await.unwrap_err();
        assert_eq!(ours.task().state().await.unwrap().status.as_str(), "running");
        ours.task().kill(9, true).await.unwrap();
        ours.task().wait().await.unwrap();
        let renamed = ours.rename("renamed");
        renamed.info().await.unwrap();
        denied(renamed.update_resources(more.as_bytes())).await;
    });
}

// Z3: of the networks that his rights allow a deployer asks for those that he was given.
#[test]
fn z3_a_deployer_has_the_networks_that_he_was_given() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let mut shared = request("shared");
        shared.options.network = Network::Host;
        let image = operator.images().get(BUSYBOX);
        operator.containers().create(&image, &shared).create_task(Stdio::default(), true).start().await.unwrap();
        let deployer = async |rights: &str, networks: &str, above: Option<&Namespace>| {
            let options = GrantOptions {
                rights: words(rights),
                networks: words(networks),
                may_delegate: true,
                may_save: true,
                ..facets("deploy")
            };
            let giver = above.unwrap_or(&operator);
            holder(&daemon, giver, &options).await.0.namespace("")
        };
        let asks = async |who: &Namespace, id: &str, network: Network| {
            let mut request = request(id);
            request.options.network = network;
            who.containers().create(&who.images().get(BUSYBOX), &request).info().await.map(drop)
        };
        let alone = deployer("write run host", "none", None).await;
        asks(&alone, "alone", Network::None).await.unwrap();
        for network in [
            Network::Host,
            Network::Path("/proc/1/ns/net".into()),
            Network::Container("shared".into()),
            Network::Named("any".into()),
        ] {
            let error = denied(asks(&alone, "more", network)).await;
            assert!(error.message.contains("which networks there are: none"), "{error}");
        }
        // What is derived has what both allow; a list never brings a right.
        let both = deployer("write run host", "none host", None).await;
        asks(&both, "with-host", Network::Host).await.unwrap();
        let less = deployer("write run host", "host container", Some(&both)).await;
        asks(&less, "with-host-too", Network::Host).await.unwrap();
        denied(asks(&less, "own", Network::None)).await;
        denied(asks(&less, "shares", Network::Container("shared".into()))).await;
        let poor = deployer("write run", "none host", None).await;
        let error = denied(asks(&poor, "poor", Network::Host)).await;
        assert!(error.message.contains("needs the host right"), "{error}");
        // To be in another one's network is to be in that network.
        let shares = deployer("write run host", "none container", None).await;
        asks(&shares, "shares", Network::Container("shared".into())).await.unwrap();
        denied(shares.containers().get("shares").create_task(Stdio::default(), true).made()).await;
        let any = deployer("write run", "", None).await;
        asks(&any, "by-another", Network::Container("shared".into())).await.unwrap();
        let error = denied(any.containers().get("by-another").create_task(Stdio::default(), true).made()).await;
        assert!(error.message.contains("to share that needs the host right"), "{error}");
        refused(
            operator.grants().create(&GrantOptions { networks: vec![String::new()], ..facets("deploy") }).info().await,
            Code::InvalidArgument,
        );
    });
}

/// Bytes that nobody else has.
fn bytes(seed: u8, size: usize) -> std::os::fd::OwnedFd {
    use std::io::{Seek as _, Write as _};
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![seed; size]).unwrap();
    file.rewind().unwrap();
    file.into()
}

// Z3, Z5: what comes through a grant has so much of the disk together, whatever becomes of the daemon.
#[test]
fn z3_a_grant_has_so_much_of_the_disk_with_what_comes_from_it() {
    let daemon = Daemon::with_busybox();
    let options = |most: u64| GrantOptions {
        rights: words("write"),
        most_disk: most,
        may_delegate: true,
        may_save: true,
        ..GrantOptions::default()
    };
    let put = async |namespace: &Namespace, seed: u8, size: usize| -> Result<String, Error> {
        let reference = format!("ingest-{seed}");
        let ingest = namespace.content().ingest(&reference, 0, "", "sha256");
        ingest.copy_fd(bytes(seed, size)).await?;
        Ok(ingest.commit(0, "", &Labels::new()).await?.to_string())
    };
    let (token, id, first) = bounded(async {
        let operator = daemon.open().await;
        let grant = operator.grants().create(&options(1 << 20));
        let (token, id) = (grant.save(None).await.unwrap(), grant.info().await.unwrap().id);
        let top = Client::restore(daemon.socket(), &token).await.unwrap().namespace("");
        // What comes from it asks for more, and has the least of both.
        let (below, child) = holder(&daemon, &top, &options(2 << 20)).await;
        assert_eq!(top.grants().get(&child).info().await.unwrap().options.most_disk, 1 << 20);
        let below = below.namespace("");
        let first = put(&top, 1, 600_000).await.unwrap();
        assert_eq!(grant.info().await.unwrap().stored, 600_000);
        let error = refused(put(&below, 2, 600_000).await, Code::ResourceExhausted);
        assert!(error.to_string().contains(&id) && error.message.contains("are taken"), "{error}");
        // What was begun and not ended is there too, until it is given up.
        for one in below.content().ingests::<&str>(&[]).all().await.unwrap() {
            below.content().abort(&one.reference).await.unwrap();
        }
        let begun = below.content().ingest("begun", 0, "", "sha256");
        begun.copy_fd(bytes(3, 400_000)).await.unwrap();
        refused(put(&top, 4, 100_000).await, Code::ResourceExhausted);
        top.content().abort("ingest-4").await.unwrap();
        drop(begun);
        top.content().abort("begun").await.unwrap();
        put(&below, 5, 400_000).await.unwrap();
        assert_eq!(grant.info().await.unwrap().stored, 1_000_000);
        // An image is as much as its blobs; nothing is left of one that is too much.
        let archive = std::fs::File::open(cofferdam_integration::images().join("archive/busybox.oci.tar")).unwrap();
        let named = ImportOptions { name: "too/much".into(), ..ImportOptions::default() };
        let job = top.images().import_fd(&named, archive.into());
        refused(job.wait().await, Code::ResourceExhausted);
        assert_eq!(grant.info().await.unwrap().stored, 1_000_000);
        // What a snapshot may have counts as it was made.
        let snapshot = top.snapshots("").prepare("limited", "", &Labels::new());
        snapshot.info().await.unwrap();
        let error = denied(snapshot.limit(1 << 30)).await;
        assert!(error.message.contains("counts as it was made"), "{error}");
        snapshot.remove().await.unwrap();
        // The operator has what there is.
        put(&operator, 6, 2 << 20).await.unwrap();
        (token, id, first)
    });
    daemon.kill9();
    daemon.restart();
    bounded(async {
        let top = Client::restore(daemon.socket(), &token).await.unwrap().namespace("");
        refused(put(&top, 7, 100_000).await, Code::ResourceExhausted);
        top.content().abort("ingest-7").await.unwrap();
        top.content().remove(&first).await.unwrap();
        put(&top, 7, 100_000).await.unwrap();
        assert_eq!(daemon.open().await.grants().get(&id).info().await.unwrap().stored, 500_000);
    });
}

// Z6: what waits, what streams, what is sent behind it, and what comes from it.
#[test]
fn z6_revoking_ends_everything_at_once() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let script = "while read line; do echo got $line; done";
        let made = with(&operator, "web", script, |request| request.options.terminal = true);
        let task = made.create_task(Stdio::default(), true);
        task.start().await.unwrap();
        let options = GrantOptions {
            rights: words("read write run"),
            may_delegate: true,
            may_save: true,
            ..GrantOptions::default()
        };
        let (holder_of, id) = holder(&daemon, &operator, &options).await;
        let theirs = holder_of.namespace("");
        let child = theirs.grants().create(&GrantOptions { rights: words("read run"), ..GrantOptions::default() });
        let token = child.save(None).await.unwrap();
        let below = Client::restore(daemon.socket(), &token).await.unwrap();
        let further = below.namespace("");
        denied(further.grants().list().all()).await;

        // Under way, in both: waits, a log that is followed, a subscription, a terminal.
        let (stdout, arrivals) = output();
        let (stdin, mut typing) = cofferdam_integration::input();
        let attached = further.containers().get("web").task().attach(Stdio { stdin, stdout, ..Stdio::default() });
        std::io::Write::write_all(&mut typing, b"one\n").unwrap();
        arrivals.contains("got one").await;
        let waits = [&theirs, &further].map(|one| one.containers().get("web").task().wait());
        let follows = [&theirs, &further].map(|one| one.containers().get("web").logs(true, |_| Ok(())));
        let mut happening = theirs.events().subscribe::<&str>(FROM_NOW, &[]);
        further.info().await.unwrap();
        let detached = attached.wait();
        // What he ran in it, though he is gone by now; and what one that he made writes into a stream of his.
        let gone = Client::restore(daemon.socket(), &token).await.unwrap();
        let long = ProcessOptions { args: words("sleep 1000"), ..ProcessOptions::default() };
        let his = gone.namespace("").containers().get("web").task().exec("his", &long, Stdio::default());
        his.start().await.unwrap();
        drop((his, gone));
        let (sink, mut heard) = channel();
        let talker = container(&theirs, "talker", "while echo tick; do sleep 0.01; done; exec sleep 1000");
        let talks = talker.create_task(Stdio { stdout: Output::Stream(sink), ..Stdio::default() }, false);
        talks.start().await.unwrap();
        heard.next().await.expect("it talks");

        operator.grants().get(&id).revoke().await.unwrap();
        for wait in waits {
            refused(wait.await, Code::Revoked);
        }
        for follow in follows {
            refused(follow.await, Code::Revoked);
        }
        refused(happening.next().await, Code::Revoked);
        refused(detached.await, Code::Revoked);
        refused(further.info().await, Code::Revoked);
        // A chain of calls on what was held, all of it sent at once.
        refused(
            theirs.containers().get("web").task().exec("", &ProcessOptions::default(), Stdio::default()).start().await,
            Code::Revoked,
        );
        refused(theirs.grants().list().all().await, Code::Revoked);
        // What was typed into the terminal goes nowhere now.
        until("it is detached", || std::io::Write::write_all(&mut typing, b"two\n").err());
        for token in [&token] {
            let again = Client::restore(daemon.socket(), token).await.unwrap();
            denied(again.namespace("").info()).await;
        }
        while heard.next().await.is_some() {}
        assert_eq!(task.process("his").wait().await.unwrap().status, 137);
        assert_eq!(task.state().await.unwrap().status.as_str(), "running", "calls end, and no container");
        operator.containers().get("talker").task().state().await.unwrap();
    });
}

// Z6: through which grant a process was run its shim knows, and a daemon that comes later asks it.
#[test]
fn z6_what_was_run_ends_with_its_grant_under_a_daemon_that_came_later_too() {
    let daemon = Daemon::with_busybox();
    let soon = Timestamp(Timestamp::now().0 + 8_000_000_000);
    let [top, kept] = bounded(async {
        let operator = daemon.open().await;
        idle(&operator, "web").await;
        let all = GrantOptions { rights: words("run"), may_delegate: true, may_save: true, ..GrantOptions::default() };
        let (parent, top) = holder(&daemon, &operator, &all).await;
        let child = parent.namespace("").grants().create(&GrantOptions { rights: words("run"), ..Default::default() });
        let child = Client::restore(daemon.socket(), &child.save(None).await.unwrap()).await.unwrap();
        let (other, kept) = holder(&daemon, &operator, &all).await;
        let (short, _) = holder(&daemon, &operator, &GrantOptions { not_after: soon, ..all }).await;
        let long = ProcessOptions { args: words("sleep 1000"), ..ProcessOptions::default() };
        for (client, id) in [(&parent, "parents"), (&child, "childs"), (&other, "others"), (&short, "shorts")] {
            let run = client.namespace("").containers().get("web").task().exec(id, &long, Stdio::default());
            run.start().await.unwrap();
        }
        operator.containers().get("web").task().exec("mine", &long, Stdio::default()).start().await.unwrap();
        [top, kept]
    });
    daemon.kill9();
    until("a grant's time is over while there is no daemon", || (Timestamp::now() > soon).then_some(()));
    daemon.restart();
    bounded(async {
        let operator = daemon.open().await;
        let task = operator.containers().get("web").task();
        let state = async |id: &str| task.process(id).state().await.unwrap().status.as_str().to_owned();
        assert_eq!(task.process("shorts").wait().await.unwrap().status, 137, "its time was over before");
        for id in ["parents", "childs", "others", "mine"] {
            assert_eq!(state(id).await, "running", "{id}");
        }
        operator.grants().get(&top).revoke().await.unwrap();
        for id in ["parents", "childs"] {
            assert_eq!(task.process(id).wait().await.unwrap().status, 137, "{id}");
        }
        for id in ["others", "mine"] {
            assert_eq!(state(id).await, "running", "{id}");
        }
        // And a crash of the actor alone forgets nothing either.
        daemon.client().await.system().crash("tasks").await.unwrap();
        operator.grants().get(&kept).revoke().await.unwrap();
        let others = until_async("the actor is there again, and has ended it", async || {
            match task.process("others").wait().await {
                Ok(exit) => Some(exit.status),
                Err(error) => (error.code != Code::Unavailable).then(|| panic!("{error}")),
            }
        });
        assert_eq!(others.await, 137);
        assert_eq!(state("mine").await, "running");
    });
}

#[test]
fn z8_grants_outlive_the_daemon_and_so_does_their_end() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let grants = operator.grants();
        let (kept, gone) = (grants.create(&facets("observer")), grants.create(&facets("observer")));
        let (kept, ended) = (kept.save(None).await.unwrap(), gone.save(None).await.unwrap());
        let mine = grants.create(&facets("observer"));
        let sealed = mine.save(Some(12_345)).await.unwrap();
        gone.revoke().await.unwrap();
        // The last: what is done before its time is over is a commit or two.
        let soon = Timestamp(Timestamp::now().0 + 5_000_000_000);
        let short = grants.create(&GrantOptions { not_after: soon, ..facets("observer") });
        let tokens = [kept, ended, short.save(None).await.unwrap()];
        let holds = Client::restore(daemon.socket(), &tokens[2]).await.unwrap();
        let seen = holds.namespace("");
        seen.info().await.unwrap();
        until_async("its time is over", async || seen.info().await.err()).await;
        refused(seen.info().await, Code::Revoked);

        daemon.kill9();
        daemon.restart();
        let ask = async |token: &str| {
            let client = Client::restore(daemon.socket(), token).await.unwrap();
            client.namespace("").info().await
        };
        ask(&tokens[0]).await.unwrap();
        refused(ask(&tokens[1]).await, Code::Denied);
        refused(ask(&tokens[2]).await, Code::Denied);
        let error = refused(ask(&sealed).await, Code::Denied);
        assert!(error.message.contains("is not for user"), "{error}");
        refused(ask("nonsense").await, Code::InvalidArgument);
        for token in tokens.iter().chain([&sealed]) {
            assert!(!daemon.log().contains(&token[20..]), "a token stands in the log");
        }
        let listed = daemon.open().await.grants().list().all().await.unwrap();
        assert_eq!(listed.len(), 2, "{listed:?}");
    });
}

// What `explain` says is what can be called, for every facet.
#[test]
fn explain_says_what_a_grant_gives() {
    let daemon = Daemon::start();
    bounded(async {
        let operator = daemon.open().await;
        let all = ["observer", "logs", "exec", "kill", "events", "metrics", "backup", "pull", "deploy"];
        let mut seen = BTreeSet::new();
        for one in all {
            let methods = operator.grants().create(&facets(one)).explain().await.unwrap();
            assert!(!methods.is_empty() && methods.is_sorted(), "{one}: {methods:?}");
            assert!(seen.insert(methods), "{one} is what another is");
        }
        let (watcher, _) = holder(&daemon, &operator, &facets("events")).await;
        let seen = watcher.namespace("");
        seen.events().last().await.unwrap();
        denied(seen.content().list::<&str>(&[]).all()).await;
        for bad in [facets("everything"), GrantOptions { rights: words("root"), ..GrantOptions::default() }] {
            refused(operator.grants().create(&bad).info().await, Code::InvalidArgument);
        }
        let unfounded = GrantOptions { containers: words("web"), ..GrantOptions::default() };
        refused(operator.grants().create(&unfounded).info().await, Code::InvalidArgument);
    });
}

/// What comes back from whoever is sent these bytes, until he hangs up.
fn said_to(socket: &std::path::Path, bytes: &[u8]) -> Vec<u8> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(cofferdam_integration::DEADLINE)).unwrap();
    // Who hangs up before all is written has heard enough.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(e) if e.kind() != std::io::ErrorKind::ConnectionReset => panic!("the connection is not cut: {e}"),
        _ => answer,
    }
}

// W2, W6, and R6 of a socket that is in a stranger's hands.
#[test]
fn w2_the_holder_of_a_socket_harms_himself_alone() {
    let daemon = Daemon::with_flags(&["--connections", "64"]);
    bounded(async {
        let operator = daemon.open().await;
        let directory = daemon.path().join("strange");
        let grant = operator.grants().create(&facets("observer"));
        grant.export(directory.to_str().unwrap()).await.unwrap();
        let socket = directory.join("cofferdam.sock");
        let good = Client::connect(&socket).await.unwrap();
        good.namespace("").info().await.unwrap();
        let table = |segments: u32, words: u32| {
            let mut bytes = (segments - 1).to_le_bytes().to_vec();
            for _ in 0..segments {
                bytes.extend_from_slice(&words.to_le_bytes());
            }
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes
        };
        // On the daemon's own as on this one.
        for (socket, bytes) in [&socket, &daemon.socket()].into_iter().flat_map(|socket| {
            [
                vec![0xff; 64],
                table(511, 0x7fff_ffff),
                table(511, (1 << 17) / 511 + 1),
                table(1, u32::MAX),
                table(1, 1 << 29),
                // One word that points outside of its message.
                [table(1, 1), vec![0xfc, 0xff, 0xff, 0x7f, 1, 0, 1, 0]].concat(),
            ]
            .map(|bytes| (socket, bytes))
        }) {
            said_to(socket, &bytes);
        }
        good.namespace("").info().await.unwrap();

        // As many as one such socket has, of which one is there: the next is told why, and the operator gets in.
        let more: Vec<_> = (0..7).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect();
        let refusal = String::from_utf8_lossy(&said_to(&socket, b"")).into_owned();
        assert!(refusal.contains("hold this grant"), "{refusal:?}");
        daemon.client().await.namespaces().list::<&str>(&[]).all().await.unwrap();
        drop(more);
        good.namespace("").info().await.unwrap();
        grant.revoke().await.unwrap();
        until("the socket is gone", || (!socket.exists()).then_some(()));
        refused(good.namespace("").info().await, Code::Revoked);
    });
}

// Who holds a grant may ask for copies and take nothing of them, as often as he likes.
#[test]
fn copies_that_nobody_takes_hold_up_nothing_of_the_operators() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let script = "dd if=/dev/zero of=/large bs=1M count=8 2> /dev/null; echo I am web; exec sleep 1000";
        with(&operator, "web", script, |_| ()).create_task(Stdio::default(), true).start().await.unwrap();
        until_async("it has its file", async || logged(&operator, "web").await.ok().filter(|text| !text.is_empty()))
            .await;
        let (hostile, _) = holder(&daemon, &operator, &facets("deploy")).await;
        let (other, _) = holder(&daemon, &operator, &facets("deploy")).await;
        let web = hostile.namespace("").containers().get("web");
        let mut untaken: Vec<_> = (0..20)
            .map(|_| {
                let (sink, heard) = channel();
                (web.copy_out("/large", &sink), sink, heard)
            })
            .collect();
        for (_, _, heard) in &mut untaken[..4] {
            heard.next().await.expect("its turn has come");
        }
        for namespace in [&operator, &other.namespace("")] {
            let (sink, mut heard) = channel();
            let copying = namespace.containers().get("web").copy_out("/etc/passwd", &sink);
            drop(sink);
            let mut got = 0;
            while let Some(chunk) = heard.next().await {
                got += chunk.len();
            }
            copying.await.unwrap();
            assert!(got >= 1024, "a tar of {got} bytes");
        }
    });
}

// An export and its end are several steps each, and may be sent in one burst: the record says what is there.
#[test]
fn an_export_that_is_taken_back_at_once_leaves_no_socket() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        for n in 0..20 {
            let grant = operator.grants().create(&facets("observer"));
            grant.info().await.unwrap();
            let directory = daemon.path().join(format!("export{n}"));
            let both = [grant.export(directory.to_str().unwrap()), grant.unexport()];
            for answer in both {
                answer.await.unwrap();
            }
            let exported = grant.info().await.unwrap().exported;
            until("the socket is what the record says", || {
                (directory.join("cofferdam.sock").exists() != exported.is_empty()).then_some(())
            });
        }
    });
}
