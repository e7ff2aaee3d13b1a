//! What was published stays: `frozen.txt` lists every id, ordinal, type, discriminant, default and required right of
//! the schema, and the schema as it is must still contain every line of it. More is allowed, less or different is not:
//! clients and shims of every earlier version speak to this one.
//!
//! To freeze what is new: `COFFERDAM_FREEZE=1 cargo test -p cofferdam-wire --test frozen`. That adds lines and refuses
//! to drop any. A line that was never in a release may be deleted from the file by hand.

// All of this is test code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
};

use capnp::{message::ReaderOptions, schema_capnp as schema, serialize};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/frozen.txt");
const HEAD: &str =
    "# Every id, ordinal and type that was published. Never edit or drop a line; tests/frozen.rs says how to add.\n";
/// The values that `$needs` takes: the rights of a grant, and `none` for what every holder may do.
const RIGHTS: [&str; 6] = ["none", "read", "write", "run", "host", "root"];
/// The one file that no client sees.
const SHIM: &str = "shim.capnp";
const NO_DISCRIMINANT: u16 = 0xffff;

#[test]
fn the_schema_holds_everything_that_was_frozen() {
    let listing = own().listing();
    let frozen = fs::read_to_string(FILE).unwrap_or_default();
    let lost = lost(&frozen, &listing);
    assert!(
        lost.is_empty(),
        "the schema no longer holds what frozen.txt says was published:\n  {}\nBring it back and add something new \
         beside it.",
        lost.join("\n  ")
    );
    let fresh = listing.len() - lines(&frozen).count();
    if std::env::var_os("COFFERDAM_FREEZE").is_some() {
        fs::write(FILE, format!("{HEAD}{}\n", listing.join("\n"))).unwrap();
        println!("{fresh} lines are new in frozen.txt");
    } else {
        assert!(!frozen.is_empty(), "{FILE} is missing: COFFERDAM_FREEZE=1 makes it");
        println!("{fresh} lines of the schema are not frozen yet: COFFERDAM_FREEZE=1 adds them");
    }
}

#[test]
fn every_method_that_a_client_can_call_says_which_right_it_needs() {
    let faults = own().needs();
    assert!(faults.is_empty(), "without a right that the guard can check:\n  {}", faults.join("\n  "));
}

#[test]
fn ids_are_written_down() {
    let derived = own().derived_ids();
    assert!(derived.is_empty(), "give these an id of their own (`capnp id`):\n  {}", derived.join("\n  "));
}

/// A schema small enough to see every change of it that clients would notice.
const SAMPLE: &str = r#"@0xa93fc509624c72d9;
annotation needs @0xcc13fd54f4681bf0 (method) :Text;
struct A @0x9e3779b97f4a7c15 { a @0 :UInt32; b @1 :List(B); union { c @2 :Text; d @3 :Void; } e :group { f @4 :Bool = true; } }
struct B @0xbf58476d1ce4e5b9 { a @0 :UInt32; }
enum E @0x94d049bb133111eb { x @0; y @1; }
interface I @0xd6e8feb86659fd93 { m @0 (a :A) -> (b :B) $needs("read"); n @1 () -> stream $needs("none"); }
"#;

#[test]
fn a_change_that_clients_would_notice_is_found() {
    let before = sample(SAMPLE).listing().join("\n");
    assert!(lost(&before, &sample(SAMPLE).listing()).is_empty());
    for (what, from, to) in [
        ("a struct's id", "0x9e3779b97f4a7c15", "0x9e3779b97f4a7c16"),
        ("a type", "{ a @0 :UInt32; b", "{ a @0 :Int32; b"),
        ("a list's element", ":List(B)", ":List(UInt32)"),
        ("a list's struct", ":List(B)", ":List(A)"),
        ("a name", "b @1 :List", "bb @1 :List"),
        ("an ordinal", "a @0 :UInt32; b @1 :List(B)", "b @0 :List(B); a @1 :UInt32"),
        ("a discriminant", "union { c @2 :Text; d @3 :Void; }", "union { d @2 :Void; c @3 :Text; }"),
        ("a union", "union { c @2 :Text; d @3 :Void; }", "c @2 :Text; d @3 :Void;"),
        ("a default", ":Bool = true", ":Bool = false"),
        ("a group", "e :group { f @4", "g :group { f @4"),
        ("a struct less", "struct B @0xbf58476d1ce4e5b9 { a @0 :UInt32; }", "using B = A;"),
        ("an enumerant less", "x @0; y @1;", "x @0;"),
        (
            "a method's number",
            "m @0 (a :A) -> (b :B) $needs(\"read\"); n @1",
            "n @0 () -> (); m @1 (a :A) -> (b :B); o @2",
        ),
        ("a parameter's type", "(a :A)", "(a :B)"),
        ("a result's name", "-> (b :B)", "-> (c :B)"),
        ("a stream", "-> stream", "-> ()"),
        ("a right", "$needs(\"read\")", "$needs(\"write\")"),
        ("a right less", " $needs(\"none\")", ""),
    ] {
        let changed = SAMPLE.replace(from, to);
        assert_ne!(changed, SAMPLE, "{what}: the sample has no {from}");
        assert!(!lost(&before, &sample(&changed).listing()).is_empty(), "{what} changed, and nothing was found");
    }
    for (what, from, to) in [
        ("a field", "{ a @0 :UInt32; }", "{ a @0 :UInt32; b @1 :Text; }"),
        ("a member of a union", "d @3 :Void; }", "d @3 :Void; g @5 :Text; }"),
        ("an enumerant", "y @1;", "y @1; z @2;"),
        ("a method", "$needs(\"none\");", "$needs(\"none\"); o @2 () -> ();"),
        ("a parameter", "(a :A)", "(a :A, b :Text)"),
        ("a type", "enum E", "struct C @0xbf58476d1ce4e5c0 {} enum E"),
    ] {
        let more = SAMPLE.replace(from, to);
        assert_ne!(more, SAMPLE, "{what}: the sample has no {from}");
        assert_eq!(lost(&before, &sample(&more).listing()), [""; 0], "{what} more is no loss");
    }
}

#[test]
fn a_method_without_a_right_is_found() {
    assert_eq!(sample(SAMPLE).needs(), [""; 0]);
    let bare = sample(&SAMPLE.replace(" $needs(\"none\")", "")).needs();
    assert_eq!(bare, ["sample.capnp:I.n has no $needs"]);
    let odd = sample(&SAMPLE.replace("\"none\"", "\"nothing\"")).needs();
    assert_eq!(odd, ["sample.capnp:I.n needs \"nothing\", which is none of none, read, write, run, host, root"]);
}

#[test]
fn an_id_that_is_not_written_down_is_found() {
    assert_eq!(sample(SAMPLE).derived_ids(), [""; 0]);
    let derived = sample(&SAMPLE.replace("enum E @0x94d049bb133111eb", "enum E")).derived_ids();
    assert_eq!(derived, ["sample.capnp:5: enum E { x @0; y @1; }"]);
}

/// The lines of a listing that the other doesn't have.
fn lost<'a>(frozen: &'a str, listing: &[String]) -> Vec<&'a str> {
    let now: BTreeSet<&str> = listing.iter().map(String::as_str).collect();
    lines(frozen).filter(|line| !now.contains(line)).collect()
}

fn lines(frozen: &str) -> impl Iterator<Item = &str> {
    frozen.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The schema of this crate.
fn own() -> Schema {
    compile(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/capnp")))
}

fn sample(source: &str) -> Schema {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("sample.capnp"), source).unwrap();
    compile(dir.path())
}

/// Compiles every `.capnp` file directly in a directory.
fn compile(dir: &Path) -> Schema {
    let mut sources = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "capnp") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            sources.push((name, fs::read_to_string(path).unwrap()));
        }
    }
    sources.sort();
    let output = Command::new("capnp")
        .args(["compile", "--no-standard-import", "-o-", "-I"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/capnp/vendor"))
        .args(sources.iter().map(|(name, _)| name))
        .current_dir(dir)
        .output()
        .expect("the `capnp` compiler (Debian: capnproto) is needed");
    assert!(output.status.success(), "capnp: {}", String::from_utf8_lossy(&output.stderr));
    Schema { request: output.stdout, sources }
}

/// A compiled schema: a `CodeGeneratorRequest` as the compiler wrote it.
struct Schema {
    request: Vec<u8>,
    sources: Vec<(String, String)>,
}

impl Schema {
    fn with<T>(&self, f: impl FnOnce(&[schema::node::Reader<'_>], &Names<'_>) -> T) -> T {
        let message = serialize::read_message(self.request.as_slice(), ReaderOptions::new()).unwrap();
        let request = message.get_root::<schema::code_generator_request::Reader<'_>>().unwrap();
        let mut nodes: Vec<_> = request.get_nodes().unwrap().iter().collect();
        nodes.sort_by_key(|node| (name(*node).to_owned(), node.get_id()));
        let names = Names(nodes.iter().map(|node| (node.get_id(), name(*node))).collect());
        f(&nodes, &names)
    }

    /// Everything that another program may rely on, a line each.
    fn listing(&self) -> Vec<String> {
        self.with(|nodes, names| nodes.iter().flat_map(|node| describe(*node, names)).collect())
    }

    /// Declarations whose id the compiler derives from their name: it would change with the name.
    fn derived_ids(&self) -> Vec<String> {
        let mut derived = Vec::new();
        for (name, source) in &self.sources {
            for (n, line) in source.lines().enumerate() {
                let mut words = line.split_whitespace();
                let kind = words.next().unwrap_or_default();
                if ["struct", "enum", "interface", "annotation", "const"].contains(&kind)
                    && !words.nth(1).is_some_and(|id| id.starts_with("@0x"))
                {
                    derived.push(format!("{name}:{}: {}", n + 1, line.trim()));
                }
            }
        }
        derived
    }

    /// The methods of client-facing interfaces whose right is missing or unknown.
    fn needs(&self) -> Vec<String> {
        self.with(|nodes, names| {
            let mut faults = Vec::new();
            for node in nodes.iter().filter(|node| !name(**node).starts_with(SHIM)) {
                let Ok(schema::node::Interface(interface)) = node.which() else { continue };
                for method in interface.get_methods().unwrap() {
                    let path = format!("{}.{}", name(*node), text(method.get_name()));
                    let mut right = None;
                    for annotation in method.get_annotations().unwrap() {
                        if names.bare(annotation.get_id()).ends_with(":needs") {
                            let Ok(schema::value::Text(value)) = annotation.get_value().unwrap().which() else {
                                continue;
                            };
                            right = Some(text(value));
                        }
                    }
                    match right {
                        None => faults.push(format!("{path} has no $needs")),
                        Some(right) if !RIGHTS.contains(&right) => {
                            faults.push(format!("{path} needs {right:?}, which is none of {}", RIGHTS.join(", ")));
                        }
                        Some(_) => {}
                    }
                }
            }
            faults
        })
    }
}

/// The display names of all nodes, by id.
struct Names<'a>(HashMap<u64, &'a str>);

impl Names<'_> {
    fn bare(&self, id: u64) -> &str {
        self.0.get(&id).copied().unwrap_or("?")
    }

    /// A name with its id, so that a line says what it means on the wire.
    fn full(&self, id: u64) -> String {
        format!("{}@{id:#018x}", self.bare(id))
    }
}

fn text(field: capnp::Result<capnp::text::Reader<'_>>) -> &str {
    field.unwrap().to_str().unwrap()
}

fn name(node: schema::node::Reader<'_>) -> &str {
    text(node.get_display_name())
}

fn describe(node: schema::node::Reader<'_>, names: &Names<'_>) -> Vec<String> {
    let own = name(node);
    let mut lines = Vec::new();
    let mut say = |what: String| lines.push(format!("{own} {what}"));
    let id = node.get_id();
    match node.which().unwrap() {
        schema::node::File(()) => say(format!("file {id:#018x}")),
        schema::node::Struct(body) => {
            if body.get_is_group() {
                // The id of a group is derived and not on the wire; its fields have the ordinals of its struct.
                say("group".to_owned());
            } else {
                say(format!("struct {id:#018x}"));
            }
            for field in body.get_fields().unwrap() {
                say(describe_field(field, names));
            }
        }
        schema::node::Enum(body) => {
            say(format!("enum {id:#018x}"));
            for (n, enumerant) in body.get_enumerants().unwrap().iter().enumerate() {
                say(format!("@{n} {}", text(enumerant.get_name())));
            }
        }
        schema::node::Interface(body) => {
            say(format!("interface {id:#018x}"));
            for parent in body.get_superclasses().unwrap() {
                say(format!("extends {}", names.full(parent.get_id())));
            }
            for (n, method) in body.get_methods().unwrap().iter().enumerate() {
                let method_name = text(method.get_name());
                let (params, results) = (method.get_param_struct_type(), method.get_result_struct_type());
                say(format!("@{n} {method_name} ({}) -> ({})", names.full(params), names.full(results)));
                for annotation in method.get_annotations().unwrap() {
                    // What is audited is no promise to clients.
                    if names.bare(annotation.get_id()).ends_with(":audit") {
                        continue;
                    }
                    let value = value(annotation.get_value().unwrap());
                    say(format!("@{n} {method_name} ${} {value}", names.full(annotation.get_id())));
                }
            }
        }
        schema::node::Const(body) => {
            let kind = spell(body.get_type().unwrap(), names);
            say(format!("const {id:#018x} {kind} = {}", value(body.get_value().unwrap())));
        }
        schema::node::Annotation(body) => {
            say(format!("annotation {id:#018x} {}", spell(body.get_type().unwrap(), names)))
        }
    }
    lines
}

fn describe_field(field: schema::field::Reader<'_>, names: &Names<'_>) -> String {
    let mut line = match field.get_ordinal().which().unwrap() {
        schema::field::ordinal::Explicit(n) => format!("@{n}"),
        // A parameter or a group. A parameter's place on the wire is told by its offset.
        schema::field::ordinal::Implicit(()) => "@-".to_owned(),
    };
    write!(line, " {}", text(field.get_name())).unwrap();
    match field.which().unwrap() {
        schema::field::Slot(slot) => {
            let (kind, default) = (spell(slot.get_type().unwrap(), names), value(slot.get_default_value().unwrap()));
            write!(line, " {kind} offset {} default {default}", slot.get_offset()).unwrap();
        }
        schema::field::Group(_) => line.push_str(" group"),
    }
    if field.get_discriminant_value() != NO_DISCRIMINANT {
        write!(line, " union {}", field.get_discriminant_value()).unwrap();
    }
    line
}

fn spell(kind: schema::type_::Reader<'_>, names: &Names<'_>) -> String {
    use schema::type_ as t;
    match kind.which().unwrap() {
        t::Void(()) => "Void".to_owned(),
        t::Bool(()) => "Bool".to_owned(),
        t::Int8(()) => "Int8".to_owned(),
        t::Int16(()) => "Int16".to_owned(),
        t::Int32(()) => "Int32".to_owned(),
        t::Int64(()) => "Int64".to_owned(),
        t::Uint8(()) => "UInt8".to_owned(),
        t::Uint16(()) => "UInt16".to_owned(),
        t::Uint32(()) => "UInt32".to_owned(),
        t::Uint64(()) => "UInt64".to_owned(),
        t::Float32(()) => "Float32".to_owned(),
        t::Float64(()) => "Float64".to_owned(),
        t::Text(()) => "Text".to_owned(),
        t::Data(()) => "Data".to_owned(),
        t::List(list) => format!("List({})", spell(list.get_element_type().unwrap(), names)),
        t::Enum(e) => names.full(e.get_type_id()),
        t::Struct(s) => names.full(s.get_type_id()) + &brand(s.get_brand().unwrap(), names),
        t::Interface(i) => names.full(i.get_type_id()) + &brand(i.get_brand().unwrap(), names),
        t::AnyPointer(pointer) => match pointer.which().unwrap() {
            t::any_pointer::Unconstrained(kind) => match kind.which().unwrap() {
                t::any_pointer::unconstrained::AnyKind(()) => "AnyPointer".to_owned(),
                t::any_pointer::unconstrained::Struct(()) => "AnyStruct".to_owned(),
                t::any_pointer::unconstrained::List(()) => "AnyList".to_owned(),
                t::any_pointer::unconstrained::Capability(()) => "Capability".to_owned(),
            },
            t::any_pointer::Parameter(p) => {
                format!("Parameter({:#018x} {})", p.get_scope_id(), p.get_parameter_index())
            }
            t::any_pointer::ImplicitMethodParameter(p) => format!("Parameter(method {})", p.get_parameter_index()),
        },
    }
}

/// The arguments of a generic type.
fn brand(brand: schema::brand::Reader<'_>, names: &Names<'_>) -> String {
    let mut arguments = Vec::new();
    for scope in brand.get_scopes().unwrap() {
        match scope.which().unwrap() {
            schema::brand::scope::Inherit(()) => arguments.push("inherit".to_owned()),
            schema::brand::scope::Bind(bindings) => {
                for binding in bindings.unwrap() {
                    arguments.push(match binding.which().unwrap() {
                        schema::brand::binding::Unbound(()) => "unbound".to_owned(),
                        schema::brand::binding::Type(kind) => spell(kind.unwrap(), names),
                    });
                }
            }
        }
    }
    if arguments.is_empty() { String::new() } else { format!("({})", arguments.join(", ")) }
}

fn value(value: schema::value::Reader<'_>) -> String {
    use schema::value as v;
    match value.which().unwrap() {
        v::Void(()) => "void".to_owned(),
        v::Bool(b) => b.to_string(),
        v::Int8(n) => n.to_string(),
        v::Int16(n) => n.to_string(),
        v::Int32(n) => n.to_string(),
        v::Int64(n) => n.to_string(),
        v::Uint8(n) => n.to_string(),
        v::Uint16(n) | v::Enum(n) => n.to_string(),
        v::Uint32(n) => n.to_string(),
        v::Uint64(n) => n.to_string(),
        v::Float32(n) => n.to_string(),
        v::Float64(n) => n.to_string(),
        v::Text(t) => format!("{:?}", text(t)),
        v::Data(d) => format!("{:?}", d.unwrap()),
        v::Interface(()) => "null".to_owned(),
        // A default that is itself a message. Nobody needs one: refuse it rather than freeze half of it.
        v::List(p) | v::Struct(p) | v::AnyPointer(p) => {
            assert!(p.is_null(), "a default that is a list or a struct can't be frozen: leave it out");
            "null".to_owned()
        }
    }
}
