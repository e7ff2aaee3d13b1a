//! What one authority gives is worth no more in the hands of another, also on one connection; and what was begun ends with the
//! authority by which it was, whoever is still there.

use cofferdam_client::{GrantOptions, ImportOptions};
use cofferdam_integration::{BUSYBOX, Daemon, bounded, until_async};
use cofferdam_types::{Code, Error};
use cofferdam_wire::{error::from_rpc, gate_capnp::root, image_capnp::image, namespace_capnp::namespace};

use crate::{
    ends::gate,
    grants::{facets, holder, refused, words},
};

fn namespace(root: &root::Client, name: &str) -> namespace::Client {
    let mut get = root.namespaces_request().send().pipeline.get_namespaces().get_request();
    get.get().set_name(name);
    get.send().pipeline.get_namespace()
}

fn image(namespace: &namespace::Client, name: &str) -> image::Client {
    let mut get = namespace.images_request().send().pipeline.get_images().get_request();
    get.get().set_name(name);
    get.send().pipeline.get_image()
}

async fn create(namespace: &namespace::Client, image: &image::Client, id: &str) -> Result<(), Error> {
    let mut create = namespace.containers_request().send().pipeline.get_containers().create_request();
    let mut params = create.get().init_params();
    params.set_id(id);
    params.set_image(image.clone());
    create.send().promise.await.map(drop).map_err(from_rpc)
}

// Z3: the operator's image is none of those that a deployer was given, though he holds it.
#[test]
fn z3_an_image_that_another_got_makes_no_container() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        operator.images().tag(BUSYBOX, "test/second:latest", false).info().await.unwrap();
        let options = GrantOptions { images: vec!["test/first:*".into()], may_save: true, ..facets("deploy") };
        let grant = operator.grants().create(&options);
        let token = grant.save(None).await.unwrap();
        // Both on one connection.
        let gate = gate(&daemon.socket()).await;
        let mut restore = gate.restore_request();
        restore.get().set_token(&token);
        let ours = namespace(&gate.enter_request().send().pipeline.get_root(), daemon.namespace());
        let theirs = namespace(&restore.send().pipeline.get_root(), "");
        let second = image(&ours, "test/second:latest");
        create(&ours, &second, "ours").await.unwrap();
        let error = refused(create(&theirs, &second, "theirs").await, Code::Denied);
        assert!(error.message.contains("is not among those"), "{error}");
        refused(create(&theirs, &image(&theirs, "test/second:latest"), "theirs").await, Code::NotFound);
    });
}

// One namespace's image is none of another's.
#[test]
fn an_image_of_one_namespace_makes_no_container_in_another() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        daemon.client().await.namespaces().create("other", &Default::default()).await.unwrap();
        let root = gate(&daemon.socket()).await.enter_request().send().pipeline.get_root();
        let (here, there) = (namespace(&root, daemon.namespace()), namespace(&root, "other"));
        let busybox = image(&here, BUSYBOX);
        create(&here, &busybox, "here").await.unwrap();
        let error = refused(create(&there, &busybox, "there").await, Code::InvalidArgument);
        assert!(error.message.contains("lies in namespace"), "{error}");
    });
}

// Z6: a job goes on without the connection through which it was begun, and not without the grant.
#[test]
fn z6_a_job_ends_with_its_grant() {
    let daemon = Daemon::with_busybox();
    bounded(async {
        let operator = daemon.open().await;
        let options = GrantOptions { rights: words("write"), may_save: true, ..GrantOptions::default() };
        let (client, grant) = holder(&daemon, &operator, &options).await;
        let (read, write) = nix::unistd::pipe().unwrap();
        let named = ImportOptions { name: "never/whole".into(), ..ImportOptions::default() };
        let id = client.namespace("").images().import_fd(&named, read).info().await.unwrap().id;
        let other = client.namespace("").jobs().get(&id);
        other.info().await.unwrap();
        drop((other, client));
        let job = operator.jobs().get(&id);
        let state = async || job.info().await.unwrap().state;
        let alone = async || (daemon.client().await.system().status().await.unwrap().connections <= 2).then_some(());
        until_async("they are gone", alone).await;
        assert_eq!(state().await, "running");
        operator.grants().get(&grant).revoke().await.unwrap();
        refused(job.wait().await, Code::Cancelled);
        assert_eq!(state().await, "cancelled");
        drop(write);
    });
}
