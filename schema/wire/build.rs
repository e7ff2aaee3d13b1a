//! Generates the Rust side of the schema, and the table of what each method needs. Needs the `capnp` compiler (Debian:
//! capnproto).

use std::{collections::BTreeMap, env, error::Error, fmt::Write as _, fs, path::Path};

use capnp::{message::ReaderOptions, schema_capnp as schema, serialize};

const FILES: [&str; 17] = [
    "common",
    "audit",
    "gate",
    "namespace",
    "grant",
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
    "credential",
    "shim",
];

/// The one file that no client sees.
const SHIM: &str = "shim.capnp";

fn main() {
    let mut command = capnpc::CompilerCommand::new();
    command.src_prefix("capnp").import_path("capnp/vendor");
    for file in FILES {
        command.file(format!("capnp/{file}.capnp"));
        println!("cargo::rerun-if-changed=capnp/{file}.capnp");
    }
    let out = env::var("OUT_DIR").unwrap_or_default();
    let request = Path::new(&out).join("schema.bin");
    if let Err(error) = command.raw_code_generator_request_path(&request).run() {
        // A build script has no other way to say what to do.
        println!("cargo::error=the schema can't be compiled ({error}): install capnproto, or run deploy/setup");
        return;
    }
    type Table = fn(&[u8]) -> Result<String, Box<dyn Error>>;
    for (name, table) in [("needs.rs", needs as Table), ("shapes.rs", shapes)] {
        let table = fs::read(&request).map_err(Into::into).and_then(|bytes| table(&bytes));
        let written = table.and_then(|text| fs::write(Path::new(&out).join(name), text).map_err(Into::into));
        if let Err(error) = written {
            println!("cargo::error=what the methods of the schema need can't be made out: {error}");
        }
    }
}

/// An interface that clients see.
struct Interface {
    /// As its file has it, without the file.
    name: String,
    parents: Vec<u64>,
    /// By their ordinals.
    methods: Vec<Method>,
}

struct Method {
    name: String,
    /// What it needs, and what a call of it leaves in the audit log, as Rust has them.
    needs: String,
    leaves: String,
}

/// What every method needs and leaves, as Rust.
fn needs(request: &[u8]) -> Result<String, Box<dyn Error>> {
    let message = serialize::read_message(request, ReaderOptions::new())?;
    let request = message.get_root::<schema::code_generator_request::Reader<'_>>()?;
    let (mut right, mut audit) = (None, None);
    for node in request.get_nodes()? {
        let name = node.get_display_name()?.to_str()?;
        if name.ends_with("common.capnp:needs") {
            right = Some(node.get_id());
        } else if name.ends_with("common.capnp:audit") {
            audit = Some(node.get_id());
        }
    }
    let mut interfaces = BTreeMap::new();
    for node in request.get_nodes()? {
        let name = node.get_display_name()?.to_str()?;
        let schema::node::Interface(body) = node.which()? else { continue };
        if name.contains(SHIM) {
            continue;
        }
        let name = name.rsplit(':').next().unwrap_or(name).to_owned();
        let mut methods = Vec::new();
        for method in body.get_methods()? {
            let method_name = method.get_name()?.to_str()?.to_owned();
            let (mut needs, mut leaves) = (None, None);
            for annotation in method.get_annotations()? {
                let schema::value::Text(value) = annotation.get_value()?.which()? else { continue };
                let (id, value) = (Some(annotation.get_id()), value?.to_str()?.to_owned());
                if id == right {
                    needs = Some(value);
                } else if id == audit {
                    leaves = Some(value);
                }
            }
            let needs = needs.ok_or_else(|| format!("{name}.{method_name} has no $needs"))?;
            // Who only looks leaves nothing; what all else leaves is somebody's decision.
            let leaves = leaves.or_else(|| (needs == "read").then(|| "none".to_owned()));
            let leaves = leaves.ok_or_else(|| format!("{name}.{method_name} has no $audit: say what a call leaves"))?;
            let (needs, leaves) = (variant(&needs)?, trail(&leaves)?);
            methods.push(Method { name: method_name, needs, leaves });
        }
        let parents = body.get_superclasses()?.iter().map(|parent| parent.get_id()).collect();
        interfaces.insert(node.get_id(), Interface { name, parents, methods });
    }
    let (mut text, mut trails) = ("match interface {\n".to_owned(), "match interface {\n".to_owned());
    let mut all = "&[\n".to_owned();
    for (own, interface) in &interfaces {
        let list = |part: fn(&Method) -> &str| interface.methods.iter().map(part).collect::<Vec<_>>().join(", ");
        writeln!(text, "{own:#018x} => &[{}],", list(|method| &method.needs))?;
        writeln!(trails, "{own:#018x} => &[{}],", list(|method| &method.leaves))?;
        let mut open = vec![*own];
        while let Some(id) = open.pop() {
            let one = interfaces.get(&id).ok_or("an interface extends what is not one")?;
            open.extend(&one.parents);
            for (method, Method { name, needs, leaves }) in one.methods.iter().enumerate() {
                let whose = &interface.name;
                writeln!(
                    all,
                    "Method {{ own: {own:#018x}, interface: {id:#018x}, method: {method}, name: \"{whose}.{name}\", needs: {needs}, leaves: {leaves} }},"
                )?;
            }
        }
    }
    Ok(format!(
        "/// What the methods of an interface need, by their ordinals.\nconst fn rights(interface: u64) -> &'static [Right] {{\n{text}_ => &[],\n}}\n}}\n\n\
         /// What a call of them leaves.\nconst fn trails(interface: u64) -> &'static [Trail] {{\n{trails}_ => &[],\n}}\n}}\n\n\
         /// Every method that a client can call, with those that an interface has from another.\npub static METHODS: &[Method] = {all}];\n"
    ))
}

/// What every method takes and gives, as Rust.
fn shapes(request: &[u8]) -> Result<String, Box<dyn Error>> {
    let message = serialize::read_message(request, ReaderOptions::new())?;
    let request = message.get_root::<schema::code_generator_request::Reader<'_>>()?;
    let mut structs = BTreeMap::new();
    for node in request.get_nodes()? {
        if let schema::node::Struct(body) = node.which()? {
            structs.insert(node.get_id(), body);
        }
    }
    let mut text = "&[\n".to_owned();
    for node in request.get_nodes()? {
        let schema::node::Interface(body) = node.which()? else { continue };
        if node.get_display_name()?.to_str()?.contains(SHIM) {
            continue;
        }
        for (n, method) in body.get_methods()?.iter().enumerate() {
            let params = structs.get(&method.get_param_struct_type()).ok_or("a method takes what is no struct")?;
            let results = structs.get(&method.get_result_struct_type()).ok_or("a method gives what is no struct")?;
            let (mut texts, mut gives) = (Vec::new(), Vec::new());
            for field in params.get_fields()? {
                if let schema::field::Slot(slot) = field.which()?
                    && let schema::type_::Text(()) = slot.get_type()?.which()?
                {
                    texts.push(slot.get_offset());
                }
            }
            for field in results.get_fields()? {
                if let schema::field::Slot(slot) = field.which()?
                    && let schema::type_::Interface(of) = slot.get_type()?.which()?
                {
                    gives.push((slot.get_offset(), of.get_type_id()));
                }
            }
            writeln!(
                text,
                "Shape {{ interface: {:#018x}, method: {n}, data: {}, pointers: {}, texts: &{texts:?}, gives: &{gives:?} }},",
                node.get_id(),
                params.get_data_word_count(),
                params.get_pointer_count(),
            )?;
        }
    }
    Ok(format!("/// Every method that a client can call.\npub static SHAPES: &[Shape] = {text}];\n"))
}

/// A right as Rust has it.
fn variant(word: &str) -> Result<String, String> {
    match word {
        "none" | "read" | "write" | "run" | "host" | "root" => {
            Ok(format!("Right::{}{}", word[..1].to_uppercase(), &word[1..]))
        }
        other => Err(format!("$needs has {other:?}, which is no right")),
    }
}

/// What a call leaves, likewise.
fn trail(word: &str) -> Result<String, String> {
    match word {
        "none" | "use" | "give" | "take" => Ok(format!("Trail::{}{}", word[..1].to_uppercase(), &word[1..])),
        other => Err(format!("$audit has {other:?}, which nothing leaves")),
    }
}
