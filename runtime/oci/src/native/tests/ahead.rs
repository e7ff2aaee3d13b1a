//! What is made before a container is asked for.

use std::os::linux::fs::MetadataExt as _;

use super::*;

const INSIDE: &str = "readlink /proc/self/ns/net; cat /sys/class/net/lo/flags; ls /sys/class/net";

fn own() -> String {
    std::fs::read_link("/proc/thread-self/ns/net").unwrap().to_str().unwrap().to_owned()
}

/// The namespace that a container has, in which the loopback interface is up and alone.
fn network(f: &mut Fixture) -> String {
    let text = f.output(INSIDE);
    let (namespace, rest) = text.split_once('\n').unwrap();
    assert_eq!(rest, "0x9\nlo\n");
    namespace.to_owned()
}

#[test]
fn a_network_made_ahead_is_the_first_containers_alone() {
    let before = own();
    let mut f = Fixture::new();
    f.native = Native::new().unwrap().ahead().unwrap();
    assert_eq!(own(), before, "who makes it stays where it is");
    let made = f.native.ahead.left().0.unwrap();
    let made = format!("net:[{}]", File::from(made).metadata().unwrap().st_ino());
    let first = network(&mut f);
    assert_eq!(first, made);
    let second = network(&mut f);
    assert!(second != first && second != before, "{second}");
}

#[test]
fn a_network_made_ahead_goes_unused_where_another_is_named() {
    let mut f = Fixture::new();
    f.native = Native::new().unwrap().ahead().unwrap();
    let namespaces = f.spec["linux"]["namespaces"].as_array_mut().unwrap();
    let network = namespaces.iter_mut().find(|namespace| namespace["type"] == "network").unwrap();
    network["path"] = json!("/proc/thread-self/ns/net");
    assert_eq!(f.output("readlink /proc/self/ns/net").trim(), own());
    assert!(f.native.ahead.left().0.is_none(), "it goes unused");
}

#[test]
fn file_systems_made_ahead_are_the_first_containers_alone_and_look_like_others() {
    const LOOK: &str = "sed 's/^[0-9]* [0-9]* [0-9:]* //' /proc/self/mountinfo | sort; ls -lR /dev | grep -v pts \
        | sed 's/ [A-Z][a-z][a-z] .*[0-9] / /'; touch /run/mine /dev/shm/mine; ls /run /dev/shm";
    let mut f = Fixture::new();
    f.spec["mounts"] = json!(crate::spec::mounts_of(&crate::spec::Options::default()).unwrap());
    let without = f.output(LOOK);
    f.native = Native::new().unwrap().ahead().unwrap();
    let (_, made) = f.native.ahead.left();
    assert!(made >= 5, "{made}");
    let with = f.output(LOOK);
    let (network, mounts) = f.native.ahead.left();
    assert!(network.is_none() && mounts == 0, "all of it is of use");
    assert_eq!(with, without);
    assert_eq!(f.output(LOOK), without);
}
