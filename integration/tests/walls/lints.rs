//! Rules of the code that neither the compiler nor clippy checks. Test code is free of them.

use std::sync::LazyLock;

use crate::{
    none,
    source::{Source, sources},
    tracked,
};

/// The one file in which the daemon makes a client of a server object: the guard is around it there.
const GUARD: &str = "daemon/src/server/guard.rs";
/// Objects that do nothing but fail.
const FAILING: &str = "daemon/src/server/chained.rs";
/// Where `hand_out` is, which counts what it hands out: it alone calls the guard.
const HAND_OUT: &str = "daemon/src/server/session.rs";
/// Longest file, in lines.
const LONG: usize = 600;
/// Longer files, and why each is one idea all the same.
const LONGER: &[(&str, &str)] = &[];

#[test]
fn every_object_of_the_daemon_is_handed_out_through_the_guard() {
    let complaints = check(unguarded);
    none(&format!("An object without a guard answers to no grant. Only {GUARD} makes clients:"), &complaints);
}

#[test]
fn the_guard_is_where_these_rules_look_for_it() {
    let calls = |path: &str, call: &[&str]| {
        let source = SHIPPED.iter().find(|s| s.path == path).unwrap_or_else(|| panic!("{path} is gone"));
        source.find(call).len()
    };
    assert_eq!((calls(GUARD, &["new_client", "("]), calls(HAND_OUT, &["guard", "("])), (1, 1));
}

#[test]
fn nothing_is_queued_without_bound() {
    none("A queue needs a bound, or a slow reader takes all memory:", &check(unbounded));
}

#[test]
fn a_panic_has_a_reason() {
    none("Return an error, or say above it why it can't happen (`// PANIC: why`):", &check(panics));
}

#[test]
fn no_file_is_long() {
    none(
        &format!("Over {LONG} lines there is more than one idea in a file: split it, or list it with a reason:"),
        &check(|s| long(s, LONGER)),
    );
    for (path, _) in LONGER {
        let still = SHIPPED.iter().any(|s| s.path == *path && !long(s, &[]).is_empty());
        assert!(still, "{path} is short now: take it off the list");
    }
}

/// Everything that ships. Read once: it takes a second.
static SHIPPED: LazyLock<Vec<Source>> = LazyLock::new(|| sources(&tracked()));

fn check(rule: impl Fn(&Source) -> Vec<String>) -> Vec<String> {
    SHIPPED.iter().flat_map(rule).collect()
}

fn unguarded(source: &Source) -> Vec<String> {
    if !source.path.starts_with("daemon/src/") || [GUARD, FAILING].contains(&&*source.path) {
        return Vec::new();
    }
    // The ways of capnp-rpc from a server to a client; and the guard itself has one caller.
    let makers = ["new_client", "new_client_from_rc", "CapabilityServerSet"];
    let mut found: Vec<_> = makers.iter().flat_map(|maker| at(source, source.find(&[maker]), maker)).collect();
    if source.path != HAND_OUT {
        found.extend(at(source, source.find(&["guard", "("]), "guard"));
    }
    found
}

fn unbounded(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for name in ["unbounded_channel", "unbounded"] {
        found.extend(at(source, source.find(&[name]), name));
    }
    // `channel` without an argument is std's, which has no bound: elsewhere the argument is the bound.
    let texts: Vec<&str> = source.tokens.iter().map(|token| token.text.as_str()).collect();
    for (n, token) in source.tokens.iter().enumerate().filter(|(_, token)| token.text == "channel") {
        // Another module's, a method, or a definition.
        let other = match &texts[..n] {
            [.., module, ":", ":"] => *module != "mpsc",
            before => matches!(before.last(), Some(&("." | "fn"))),
        };
        let rest = &texts[n + 1..];
        let called = match rest {
            // With its type: the parenthesis that follows.
            [":", ":", "<", ..] => rest.iter().position(|t| *t == "(").map_or(&[][..], |open| &rest[open..]),
            _ => rest,
        };
        if !other && called.starts_with(&["(", ")"]) {
            found.extend(at(source, vec![token.line], "channel()"));
        }
    }
    found
}

fn panics(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let ways: [(&[&str], &str); 8] = [
        (&[".", "unwrap", "(", ")"], ".unwrap()"),
        (&[".", "expect", "("], ".expect()"),
        (&[".", "unwrap_err", "(", ")"], ".unwrap_err()"),
        (&[".", "expect_err", "("], ".expect_err()"),
        (&["panic", "!"], "panic!"),
        (&["unreachable", "!"], "unreachable!"),
        (&["todo", "!"], "todo!"),
        (&["unimplemented", "!"], "unimplemented!"),
    ];
    let mut found = Vec::new();
    for (tokens, name) in ways {
        let bare = source.find(tokens).into_iter().filter(|line| !excused(&lines, *line)).collect();
        found.extend(at(source, bare, name));
    }
    found
}

/// Whether a `// PANIC:` is in this line (counted from 1) or in the comment above the statement that it is part of.
fn excused(lines: &[&str], line: usize) -> bool {
    if lines[line - 1].contains("// PANIC:") {
        return true;
    }
    let mut comment = false;
    for above in lines[..line - 1].iter().rev().map(|l| l.trim()) {
        if above.starts_with("//") {
            comment = true;
            if above.starts_with("// PANIC:") {
                return true;
            }
        } else if comment || above.is_empty() || above.ends_with([';', '{', '}', ',']) {
            return false;
        }
    }
    false
}

fn long(source: &Source, listed: &[(&str, &str)]) -> Vec<String> {
    let length = source.text.lines().count();
    let over = length > LONG && !listed.iter().any(|(path, _)| *path == source.path);
    over.then(|| format!("{}: {length} lines", source.path)).into_iter().collect()
}

fn at(source: &Source, lines: Vec<usize>, what: &str) -> Vec<String> {
    lines.into_iter().map(|line| format!("{}:{line}: {what}", source.path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a rule says of one file.
    fn of(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> Vec<String> {
        sources(&[(path.to_owned(), text.to_owned())]).iter().flat_map(rule).collect()
    }

    #[test]
    fn an_object_without_a_guard_is_found() {
        let found = |path: &str, text: &str| of(unguarded, path, text);
        let call = "fn f() {\n    let c: x::Client = capnp_rpc::new_client(X);\n}";
        assert_eq!(found("daemon/src/server/gate.rs", call), ["daemon/src/server/gate.rs:2: new_client"]);
        assert_eq!(found("daemon/src/a.rs", "fn f() { new_client_from_rc::<A>(b) }").len(), 1);
        assert_eq!(found("daemon/src/a.rs", "fn f() { set.new_client(b) } fn g() { guard::guard(b) }").len(), 2);
        assert_eq!(found(GUARD, call), [""; 0]);
        assert_eq!(found(HAND_OUT, "fn f() { guard::guard(b) }"), [""; 0]);
        assert_eq!(found(HAND_OUT, "fn f() { new_client(b) }").len(), 1);
        assert_eq!(found("runtime/shim/src/a.rs", call), [""; 0]);
        assert_eq!(
            found("daemon/src/a.rs", "// new_client(\n#[cfg(test)] mod tests { fn f() { new_client(a) } }"),
            [""; 0]
        );
    }

    #[test]
    fn a_queue_without_bound_is_found() {
        let found = |text: &str| of(unbounded, "a/src/b.rs", text);
        assert_eq!(
            found("fn f() {\n let (a, b) = mpsc::unbounded_channel::<u8>();\n}"),
            ["a/src/b.rs:2: unbounded_channel"]
        );
        assert_eq!(found("fn f() { futures::channel::mpsc::unbounded() }").len(), 1);
        assert_eq!(found("fn f() { let (a, b) = std::sync::mpsc::channel(); }").len(), 1);
        assert_eq!(found("use std::sync::mpsc::channel; fn f() { channel::<Vec<u8>>() }").len(), 1);
        assert_eq!(
            found(
                "fn f() { mpsc::channel(8); mpsc::channel::<u8>(n()); oneshot::channel(); client::channel(); mpsc::sync_channel(1) }"
            ),
            [""; 0]
        );
    }

    #[test]
    fn a_panic_without_a_reason_is_found() {
        let found = |text: &str| of(panics, "a/src/b.rs", text);
        assert_eq!(found("fn f() {\n    a.b()\n        .unwrap();\n}"), ["a/src/b.rs:3: .unwrap()"]);
        for bare in ["a.expect(\"b\")", "panic!(\"a\")", "unreachable!()", "vec![a.unwrap()]", "a().unwrap_err()"] {
            assert_eq!(found(&format!("fn f() {{\n    {bare}\n}}")).len(), 1, "{bare}");
        }
        for above in ["// Why not.", "// PANIC: another statement\n    b();", "// PANIC: elsewhere\n\n", "/* PANIC: */"]
        {
            assert_eq!(found(&format!("fn f() {{\n    {above}\n    a.unwrap();\n}}")).len(), 1, "{above}");
        }
        for fine in [
            "// PANIC: why\n    a.unwrap()",
            "// PANIC: why, at\n    // some length\n    #[allow(x)]\n    a.unwrap()",
            "// PANIC: why\n    let b = a\n        .c()\n        .unwrap();",
            "a.unwrap() // PANIC: why",
            "a.unwrap_or(b); a.unwrap_or_else(|| b); \".unwrap()\"",
            "// a.unwrap()",
        ] {
            assert_eq!(found(&format!("fn f() {{\n    {fine}\n}}")), [""; 0], "{fine}");
        }
        assert_eq!(found("#[cfg(test)]\nmod tests {\n    fn f() { a.unwrap() }\n}"), [""; 0]);
    }

    #[test]
    fn a_long_file_is_found() {
        let file = |lines: usize| sources(&[("a/src/b.rs".to_owned(), "\n".repeat(lines))]).remove(0);
        assert_eq!(long(&file(LONG), &[]), [""; 0]);
        assert_eq!(long(&file(LONG + 1), &[]), ["a/src/b.rs: 601 lines"]);
        assert_eq!(long(&file(LONG + 1), &[("a/src/b.rs", "why")]), [""; 0]);
    }
}
