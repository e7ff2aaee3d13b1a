//! What reads bytes that somebody else wrote: each target takes any bytes, and must neither panic, hang, nor break what
//! it asserts. A folder of `corpus` has the seeds of each; the ordinary tests run the targets on them.

use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::AsFd as _,
    path::Path,
    sync::atomic::AtomicBool,
};

use capnp::{message::ReaderOptions, serialize};
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side};
use cofferdam_archive::{ApplyOptions, Limits};
use cofferdam_log::{Format, Reader};
use cofferdam_oci::{RuntimeOptions, native, seccomp, spec, systemd, update::Update, users};
use cofferdam_transfer::{Reference, normalize};
use cofferdam_types::{Algorithm, Descriptor, Digest, Filter, Id, Namespace, Timestamp};
use cofferdam_wire::{common_capnp, connect, convert, gate_capnp::gate, life, shim_capnp};
use oci_spec::{image::ImageConfiguration, runtime::Spec};

#[path = "audit.rs"]
mod audit;
#[path = "gate.rs"]
mod live_gate;
#[path = "own.rs"]
mod own;
#[path = "pages.rs"]
mod pages;

/// A target and its name, which is that of its folder in `corpus`.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("audit", audit::audit),
    ("connection", connection),
    ("documents", documents),
    ("filter", filter),
    ("gate", live_gate::gate),
    ("image-config", image_config),
    ("journal", own::journal),
    ("layer", layer),
    ("life", life_record),
    ("log", log),
    ("message", message),
    ("mountinfo", mountinfo),
    ("network", network),
    ("pages", pages::pages),
    ("records", own::records),
    ("reference", reference),
    ("resources", resources),
    ("seccomp", seccomp_filter),
    ("spec", runtime_spec),
    ("tables", own::tables),
    ("users", user_files),
    ("words", words),
];

/// A choice that the first byte makes, and the rest.
fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

fn text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap_or_default()
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// What a client sends, from its first byte to its last.
fn connection(data: &[u8]) {
    struct Closed;
    impl gate::Server for Closed {}
    let serve = async {
        let (near, far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        (&near).write_all(&data[..data.len().min(64 << 10)]).expect("it fits the socket's buffer");
        near.shutdown(std::net::Shutdown::Write).expect("it is open");
        far.set_nonblocking(true).expect("it is a socket");
        let far = tokio::net::UnixStream::from_std(far).expect("it is one");
        let (network, fds) = connect::network(far, Side::Server, connect::MESSAGE);
        let gate: gate::Client = capnp_rpc::new_client(Closed);
        let _ = RpcSystem::new(Box::new(network), Some(gate.client)).await;
        assert_eq!(fds.parked(), 0, "none was sent");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, serve);
}

/// Manifests, indexes and configs of images.
fn documents(data: &[u8]) {
    let (kind, bytes) = choice(data);
    let media_type = match kind % 5 {
        0 => "application/vnd.oci.image.manifest.v1+json",
        1 => "application/vnd.oci.image.index.v1+json",
        2 => "application/vnd.docker.distribution.manifest.v2+json",
        3 => "application/vnd.docker.distribution.manifest.list.v2+json",
        _ => "application/vnd.oci.image.config.v1+json",
    };
    let descriptor = Descriptor::new(media_type, Digest::of(Algorithm::Sha256, bytes), bytes.len() as u64);
    let Ok(document) = cofferdam_images::document(&descriptor, bytes) else {
        let _ = cofferdam_images::config(&descriptor, bytes);
        return;
    };
    let children = cofferdam_images::children(&document);
    let most = cofferdam_types::USUAL.platforms.max(cofferdam_types::USUAL.layers + 1);
    assert!(children.len() as u64 <= most);
    let _ = cofferdam_images::gc_labels(&children);
}

/// A filter, over fields that are its own text.
fn filter(data: &[u8]) {
    if let Ok(filter) = Filter::parse(text(data)) {
        let field = |path: &[&str]| Some(path.concat().into());
        let _ = filter.matches(&field);
        let _ = filter.matches(&|_| None);
    }
}

/// The config of an image, of which a spec is made.
fn image_config(data: &[u8]) {
    let Ok(image) = serde_json::from_slice::<ImageConfiguration>(data) else { return };
    let _ = spec::stop_signal(&image);
    let root = File::open("/proc/self/fdinfo").expect("a directory without files of users");
    let id = Id::new("fuzz").expect("it is one");
    let look_up = |user: &str| users::resolve(&root, user);
    if let Ok(spec) = spec::generate("/fuzz", &id, &image, &spec::Options::default(), look_up) {
        native::check(&spec).expect("what is generated can be run");
    }
}

/// A layer, in place and detached: nothing leaves the directory.
fn layer(data: &[u8]) {
    let (how, archive) = choice(data);
    let scratch = scratch();
    let root = scratch.path().join("root");
    fs::create_dir(&root).expect("an empty directory");
    let limits = Limits { max_entries: 200, max_bytes: 1 << 20, ratio_free: 1 << 20, ..Limits::default() };
    let (overlay, detached) = (how % 3 != 0, how % 3 == 2);
    let options = ApplyOptions { overlay, detached, devices: false, limits, ..ApplyOptions::default() };
    let held = File::open(&root).expect("it is there");
    let cancel = AtomicBool::new(false);
    if let Ok(applied) = cofferdam_archive::apply(held.as_fd(), archive, &options, &cancel)
        && detached
    {
        let _ = cofferdam_archive::settle(held.as_fd(), &[], &applied, &cancel);
    }
    assert_eq!(fs::read_dir(scratch.path()).expect("it is there").count(), 1, "something was made beside the root");
}

/// The record that a shim leaves.
fn life_record(data: &[u8]) {
    if let Ok(record) = life::decode(data) {
        assert_eq!(life::decode(&life::encode(&record)).expect("our own"), record);
    }
}

/// A file of a log, as somebody may have left it.
fn log(data: &[u8]) {
    let (format, bytes) = choice(data);
    let format = [Format::Local, Format::Json, Format::Cri][usize::from(format % 3)];
    let scratch = scratch();
    fs::write(scratch.path().join("output.log"), bytes).expect("a log");
    let mut reader = Reader::new(scratch.path(), format, None);
    let (mut at, mut blocked) = (reader.position(), false);
    while let Ok(entries) = reader.read(4096) {
        let Some(last) = entries.last() else { break };
        assert!(last.next >= at && entries.is_sorted_by_key(|entry| entry.next), "it goes back");
        // That nothing more can be read is said once, and in place.
        assert!(!blocked, "it goes on behind its end");
        blocked = last.next == at;
        at = last.next;
    }
}

/// What structures of a message say.
fn message(data: &[u8]) {
    let (kind, bytes) = choice(data);
    let options = ReaderOptions { traversal_limit_in_words: Some(connect::MESSAGE / 8), nesting_limit: 64 };
    let Ok(message) = serialize::read_message(bytes, options) else { return };
    match kind % 5 {
        0 => drop(message.get_root::<shim_capnp::life::Reader<'_>>().map(convert::life)),
        1 => drop(message.get_root::<common_capnp::descriptor::Reader<'_>>().map(convert::descriptor)),
        2 => drop(message.get_root::<common_capnp::platform::Reader<'_>>().map(convert::platform)),
        3 => drop(message.get_root::<common_capnp::any::Reader<'_>>().map(convert::any)),
        _ => {
            let Ok(request) = message.get_root::<shim_capnp::create_request::Reader<'_>>() else { return };
            let _ = convert::mounts(request.get_rootfs());
            if let Ok(logging) = request.get_logging() {
                let _ = convert::labels(logging.get_attributes());
            }
        }
    }
}

/// The kernel's table of mounts, whose paths are anybody's.
fn mountinfo(data: &[u8]) {
    let _ = cofferdam_sys::mountinfo::parse(data);
}

/// What a plugin of a network answers, and the files that say which networks there are.
fn network(data: &[u8]) {
    if let Ok(answer) = serde_json::from_slice(data)
        && let Ok(outcome) = cofferdam_net::Outcome::read(&answer, "eth0")
    {
        assert_eq!(outcome.ips().len(), outcome.addresses.len(), "each was looked at");
    }
    let scratch = scratch();
    for name in ["a.conf", "b.conflist"] {
        fs::write(scratch.path().join(name), data).expect("a configuration");
    }
    let _ = cofferdam_net::list(scratch.path());
}

/// The name of an image. What is taken is written as it was read.
fn reference(data: &[u8]) {
    let text = text(data);
    if let Ok(reference) = Reference::parse(text) {
        let again = Reference::parse(&reference.to_string()).expect("what was taken is one");
        assert_eq!(again.to_string(), reference.to_string());
        let _ = reference.target();
    }
    if let Ok(long) = normalize(text) {
        assert_eq!(normalize(&long).expect("what was written out is one"), long);
    }
}

/// Limits to be changed, and options of a runtime.
fn resources(data: &[u8]) {
    if let Ok(update) = Update::read(data) {
        let spec = serde_json::to_vec(&Spec::default()).expect("it is one");
        let _ = update.needs_host();
        if let Ok(spec) = update.applied(&spec) {
            serde_json::from_slice::<Spec>(&spec).expect("what was a spec stays one");
        }
    }
    if let Ok(options) = RuntimeOptions::parse(data) {
        let json = options.to_json().expect("it has a form");
        RuntimeOptions::parse(&json).expect("that can be read");
    }
}

/// A filter of system calls.
fn seccomp_filter(data: &[u8]) {
    let Ok(Some(profile)) = spec::seccomp_profile(data) else { return };
    let (_, _) = (seccomp::unknown(&profile), seccomp::flags(&profile));
    if let Ok(program) = seccomp::compile(&profile) {
        assert!(!program.is_empty() && program.len() <= 4096, "the kernel takes no other");
    }
}

/// A spec that a client brings.
fn runtime_spec(data: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<Spec>(data) else { return };
    if native::check(&spec).is_ok() {
        let linux = spec.linux().as_ref().expect("there is no check without");
        if let Some(path) = linux.cgroups_path() {
            let _ = systemd::path(&path.to_string_lossy());
        }
        if let Some(profile) = linux.seccomp() {
            let _ = seccomp::compile(profile);
        }
    }
}

/// A user, looked up in files that an image brings: `user`, `passwd` and `group`, a zero byte between them.
fn user_files(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let user = text(parts.next().unwrap_or_default());
    let scratch = scratch();
    let etc = scratch.path().join("etc");
    fs::create_dir(&etc).expect("a directory");
    for (name, bytes) in ["passwd", "group"].into_iter().zip(parts) {
        fs::write(etc.join(name), bytes).expect("a file");
    }
    let root = File::open(scratch.path()).expect("it is there");
    if let Ok(user) = users::resolve(&root, user) {
        assert!([user.uid, user.gid].iter().chain(&user.groups).all(|id| *id <= i32::MAX as u32), "{user:?}");
        assert!(Path::new(&user.home).is_absolute(), "{user:?}");
    }
}

/// Words that have a pattern.
fn words(data: &[u8]) {
    let text = text(data);
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    for name in
        [Id::new(text).map(|id| id.to_string()), Namespace::new(text).map(|ns| ns.to_string())].into_iter().flatten()
    {
        assert!(
            !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..",
            "{name:?} is part of paths"
        );
    }
    if let Some(time) = Timestamp::parse_rfc3339(text) {
        assert_eq!(Timestamp::parse_rfc3339(&time.to_rfc3339()), Some(time));
    }
}
