//! Who may import whom. The order of `members` in the workspace's Cargo.toml is the order of the layers; an edge that
//! points downward in that list, or through one of the walls named in [`WALLS`], is an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::Value;

use crate::{none, output, root};

/// What these members must not reach, not even through a crate of somebody else's. A name that ends in `*` is a prefix.
const WALLS: &[Wall] = &[
    Wall { members: |m| m == "schema/types", never: &["capnp*", "tokio*", "actix*", "nix"], why: "plain words only" },
    Wall {
        members: |m| m.starts_with("schema/") || m.starts_with("runtime/") || m.starts_with("cli/"),
        never: &["actix*"],
        why: "actors are the daemon's affair",
    },
    Wall {
        members: |m| m.starts_with("runtime/") && m != "runtime/shim",
        never: &["capnp*", "cofferdam-wire"],
        why: "in runtime only the shim speaks RPC",
    },
];

struct Wall {
    members: fn(&str) -> bool,
    never: &'static [&'static str],
    why: &'static str,
}

/// The folders from which the members of a folder import, where that is less than everything above them.
const IMPORTS: &[(&str, &[&str])] = &[
    ("schema/", &["schema/"]),
    ("runtime/", &["schema/", "runtime/"]),
    ("actors/", &["schema/", "runtime/", "actors/"]),
    ("cli/", &["schema/", "cli/client"]),
];

#[test]
fn imports_point_upward_only() {
    let complaints = check(&members(), &metadata());
    none(
        "A crate imports from the lines above its own in the workspace's `members`, and through no wall:",
        &complaints,
    );
}

#[test]
fn a_bad_edge_is_found() {
    let (members, good) = (members(), metadata());
    for (from, to, kind, complaint) in [
        ("schema/types", "schema/wire", None, "comes later"),
        ("actors/metadata", "actors/content", None, "comes later"),
        ("actors/metadata", "actors/content", Some("dev"), "comes later"),
        ("actors/kernel", "daemon", Some("build"), "comes later"),
        ("runtime/oci", "actors/kernel", None, "comes later"),
        ("cli/coffer", "actors/metadata", None, "cli/ imports only from schema/, cli/client"),
        ("cli/client", "runtime/sys", None, "cli/ imports only from schema/, cli/client"),
        ("cli/client", "runtime/sys", Some("dev"), "cli/ imports only from schema/, cli/client"),
        ("runtime/sys", "schema/wire", None, "reaches cofferdam-wire"),
        ("runtime/archive", "schema/wire", None, "reaches capnp-rpc"),
        ("schema/types", "nix", None, "reaches nix"),
        ("schema/types", "tokio", Some("dev"), "reaches tokio"),
        ("schema/types", "capnp", None, "reaches capnp"),
        ("runtime/shim", "actix", None, "reaches actix"),
        ("cli/coffer", "actix", None, "reaches actix"),
        ("schema/wire", "actix-rt", None, "reaches actix-rt"),
    ] {
        let mut bad = good.clone();
        add_edge(&mut bad, from, to, kind);
        let complaints = check(&members, &bad);
        assert!(
            complaints.iter().any(|c| c.starts_with(&format!("{from} ")) && c.contains(complaint)),
            "{from} -> {to} as {kind:?} was found to be {complaints:?}"
        );
    }
    // An edge through a crate of somebody else's.
    let mut bad = good.clone();
    add_edge(&mut bad, "percent-encoding", "nix", None);
    assert!(check(&members, &bad).iter().any(|c| c.starts_with("schema/types reaches nix")));
    // And one that the rules allow.
    let mut more = good.clone();
    add_edge(&mut more, "actors/transfer", "schema/wire", None);
    add_edge(&mut more, "integration", "daemon", Some("dev"));
    assert_eq!(check(&members, &more), check(&members, &good));
}

#[test]
fn a_member_that_is_missing_from_the_order_is_found() {
    let mut members = members();
    let gone = members.remove(3);
    assert!(check(&members, &metadata()).contains(&format!("{gone} is no line of `members`")));
}

/// The members in their order, read from the file: `cargo metadata` sorts them.
fn members() -> Vec<String> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, rest) = manifest.split_once("members = [").unwrap();
    let (list, _) = rest.split_once(']').unwrap();
    let members: Vec<_> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    assert!(members.len() > 10 && members.iter().all(|m| root().join(m).is_dir()), "{members:?}");
    members
}

fn metadata() -> Value {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let arguments =
        ["metadata", "--format-version=1", "--offline", "--locked", "--all-features", "--filter-platform", &platform];
    serde_json::from_str(&output(env!("CARGO"), &arguments)).unwrap()
}

/// Everything that is wrong with the edges of the graph.
fn check(members: &[String], metadata: &Value) -> Vec<String> {
    let graph = Graph::read(metadata);
    let mut complaints = Vec::new();
    for (id, member) in &graph.members {
        let Some(place) = members.iter().position(|m| m == member) else {
            complaints.push(format!("{member} is no line of `members`"));
            continue;
        };
        for dep in &graph.edges[id].all {
            let Some(target) = graph.members.get(dep) else { continue };
            if members.iter().position(|m| m == target).is_some_and(|t| t >= place) {
                complaints.push(format!("{member} imports {target}, which comes later in the order of layers"));
            }
            for (folder, sources) in IMPORTS {
                if member.starts_with(folder) && !sources.iter().any(|s| target.starts_with(s)) {
                    complaints
                        .push(format!("{member} imports {target}: {folder} imports only from {}", sources.join(", ")));
                }
            }
        }
        let reached = graph.reached(id);
        for wall in WALLS.iter().filter(|wall| (wall.members)(member)) {
            for name in reached.iter().filter(|name| wall.never.iter().any(|pattern| matches(pattern, name))) {
                complaints.push(format!("{member} reaches {name}: {}", wall.why));
            }
        }
    }
    complaints.sort();
    complaints
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
}

/// Who depends on whom, by package id.
struct Graph<'a> {
    /// Workspace members: their folder.
    members: BTreeMap<&'a str, &'a str>,
    names: BTreeMap<&'a str, &'a str>,
    edges: BTreeMap<&'a str, Edges<'a>>,
}

struct Edges<'a> {
    /// Dependencies of every kind.
    all: Vec<&'a str>,
    /// Those that are linked into what depends on the crate: neither for its build script nor for its tests.
    linked: Vec<&'a str>,
}

impl<'a> Graph<'a> {
    fn read(metadata: &'a Value) -> Graph<'a> {
        let root = text(&metadata["workspace_root"]);
        let mut graph = Graph { members: BTreeMap::new(), names: BTreeMap::new(), edges: BTreeMap::new() };
        let own: BTreeSet<&str> = list(&metadata["workspace_members"]).iter().map(text).collect();
        for package in list(&metadata["packages"]) {
            let id = text(&package["id"]);
            graph.names.insert(id, text(&package["name"]));
            if own.contains(id) {
                let manifest = text(&package["manifest_path"]);
                let folder = manifest.strip_prefix(root).and_then(|m| m.strip_suffix("/Cargo.toml")).unwrap();
                graph.members.insert(id, folder.trim_start_matches('/'));
            }
        }
        for node in list(&metadata["resolve"]["nodes"]) {
            let mut edges = Edges { all: Vec::new(), linked: Vec::new() };
            for dep in list(&node["deps"]) {
                let id = text(&dep["pkg"]);
                edges.all.push(id);
                if list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                    edges.linked.push(id);
                }
            }
            graph.edges.insert(text(&node["id"]), edges);
        }
        graph
    }

    /// The names of all that a crate declares, whatever for, and of what that links in turn.
    fn reached(&self, from: &str) -> BTreeSet<&'a str> {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut open = self.edges[from].all.clone();
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                open.extend(&self.edges[id].linked);
            }
        }
        seen.into_iter().map(|id| self.names[id]).collect()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("cargo metadata: {value} is no text"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("cargo metadata: {value} is no list"))
}

/// Adds an edge to what cargo said. Both ends are a member's folder or a package's name.
fn add_edge(metadata: &mut Value, from: &str, to: &str, kind: Option<&str>) {
    let find = |what: &str| {
        let packages = list(&metadata["packages"]).iter();
        let manifest = root().canonicalize().unwrap().join(what).join("Cargo.toml");
        let mut found =
            packages.filter(|p| text(&p["name"]) == what || manifest == Path::new(text(&p["manifest_path"])));
        text(&found.next().unwrap_or_else(|| panic!("no package {what}"))["id"]).to_owned()
    };
    let (from, to) = (find(from), find(to));
    let nodes = metadata["resolve"]["nodes"].as_array_mut().unwrap();
    let node = nodes.iter_mut().find(|node| text(&node["id"]) == from).unwrap();
    let edge = serde_json::json!({ "name": "added", "pkg": to, "dep_kinds": [{ "kind": kind, "target": null }] });
    node["deps"].as_array_mut().unwrap().push(edge);
}
