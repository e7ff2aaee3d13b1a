//! Generates the Rust side of the schema. Needs the `capnp` compiler (Debian: capnproto).

const FILES: [&str; 14] = [
    "common",
    "gate",
    "namespace",
    "job",
    "image",
    "content",
    "snapshot",
    "event",
    "lease",
    "gc",
    "container",
    "metrics",
    "system",
    "shim",
];

fn main() {
    let mut command = capnpc::CompilerCommand::new();
    command.src_prefix("capnp").import_path("capnp/vendor");
    for file in FILES {
        command.file(format!("capnp/{file}.capnp"));
        println!("cargo::rerun-if-changed=capnp/{file}.capnp");
    }
    if let Err(error) = command.run() {
        // A build script has no other way to say what to do.
        println!("cargo::error=the schema can't be compiled ({error}): install capnproto, or run deploy/setup");
    }
}
