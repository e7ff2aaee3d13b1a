//! Rust source as the checks see it: the tokens of what ships, without comments and without tests.

use std::collections::BTreeSet;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A file of Rust source.
pub struct Source {
    pub path: String,
    pub text: String,
    /// The tokens outside test code, groups flattened.
    pub tokens: Vec<Token>,
}

pub struct Token {
    pub text: String,
    /// Counted from 1.
    pub line: usize,
}

impl Source {
    /// Where a sequence of tokens begins.
    pub fn find(&self, sequence: &[&str]) -> Vec<usize> {
        let fits = |window: &[Token]| window.iter().zip(sequence).all(|(token, wanted)| token.text == *wanted);
        self.tokens.windows(sequence.len()).filter(|window| fits(window)).map(|window| window[0].line).collect()
    }
}

/// The Rust sources among some files, less those that are nothing but tests: the crate `integration`, the folders
/// `tests`, `benches` and `examples` of a crate, and what a `#[cfg(test)] mod name;` names.
pub fn sources(files: &[(String, String)]) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut tests = BTreeSet::new();
    for (path, text) in files {
        let outside = ["integration/", "/tests/", "/benches/", "/examples/"];
        let in_crate = path.contains("/src/");
        if !path.ends_with(".rs")
            || path.starts_with(outside[0])
            || !in_crate && outside[1..].iter().any(|f| path.contains(f))
        {
            continue;
        }
        let stream: TokenStream = text.parse().unwrap_or_else(|e| panic!("{path}: {e}"));
        let mut reader = Reader { tokens: Vec::new(), test_modules: Vec::new() };
        reader.read(stream);
        let base = match path.rsplit_once('/') {
            Some((folder, "lib.rs" | "main.rs" | "mod.rs")) => folder,
            _ => path.trim_end_matches(".rs"),
        };
        for module in reader.test_modules {
            tests.insert(format!("{base}/{module}.rs"));
            tests.insert(format!("{base}/{module}/"));
        }
        sources.push(Source { path: path.clone(), text: text.clone(), tokens: reader.tokens });
    }
    sources.retain(|source| !tests.iter().any(|t| source.path == *t || t.ends_with('/') && source.path.starts_with(t)));
    sources
}

struct Reader {
    tokens: Vec<Token>,
    test_modules: Vec<String>,
}

impl Reader {
    fn read(&mut self, stream: TokenStream) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        while at < trees.len() {
            if is_punct(&trees[at], '#') && trees.get(at + 1).is_some_and(is_test) {
                at = self.skip_item(&trees, at + 2);
                continue;
            }
            self.take(&trees[at]);
            at += 1;
        }
    }

    fn take(&mut self, tree: &TokenTree) {
        let mut push = |text: &str, line| self.tokens.push(Token { text: text.to_owned(), line });
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                push(open, group.span_open().start().line);
                self.read(group.stream());
                self.tokens.push(Token { text: close.to_owned(), line: group.span_close().start().line });
            }
            other => push(&other.to_string(), other.span().start().line),
        }
    }

    /// Passes over the item that begins here (its other attributes too), to its block, semicolon or comma.
    fn skip_item(&mut self, trees: &[TokenTree], mut at: usize) -> usize {
        let mut angles = 0;
        let mut previous = None;
        while at < trees.len() {
            let tree = &trees[at];
            at += 1;
            match tree {
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => break,
                TokenTree::Punct(punct) => match punct.as_char() {
                    ';' => break,
                    ',' if angles == 0 => break,
                    '<' => angles += 1,
                    '>' if previous != Some('-') => angles -= 1,
                    _ => {}
                },
                TokenTree::Ident(word) if *word == "mod" => {
                    if let [TokenTree::Ident(name), end, ..] = &trees[at..]
                        && is_punct(end, ';')
                    {
                        self.test_modules.push(name.to_string());
                    }
                }
                _ => {}
            }
            previous = if let TokenTree::Punct(punct) = tree { Some(punct.as_char()) } else { None };
        }
        at
    }
}

fn is_punct(tree: &TokenTree, wanted: char) -> bool {
    matches!(tree, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

/// Whether the bracket of an attribute says that what follows is there for tests only.
fn is_test(tree: &TokenTree) -> bool {
    let TokenTree::Group(group) = tree else { return false };
    let text = group.stream().to_string().replace(' ', "");
    text == "test" || text.ends_with("::test") || text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

#[test]
fn tests_are_left_out_and_nothing_else() {
    let files = [
        (
            "a/src/lib.rs",
            "mod b;\n#[cfg(test)]\nmod tests;\n#[cfg(test)] pub(crate) mod testing { fn gone() {} }\nfn one() {}",
        ),
        ("a/src/tests.rs", "mod deep;"),
        ("a/src/tests/deep.rs", "fn gone() {}"),
        (
            "a/src/b.rs",
            "// not_a_token\nconst S: &str = \"not_a_token\";\n#[cfg(not(test))] fn two() {}\n#[cfg(test)] mod tests;",
        ),
        ("a/src/b/tests.rs", "fn gone() {}"),
        (
            "a/src/c.rs",
            "struct C { #[cfg(test)] gone: Vec<A, B>, three: u8 }\n#[cfg(test)] #[x] impl<A, B> D<A> { fn gone() {} }\n#[tokio::test] async fn gone() -> A {} fn four() {}",
        ),
        ("a/tests/whole.rs", "fn gone() {}"),
        ("integration/src/lib.rs", "fn gone() {}"),
    ];
    let sources = sources(&files.map(|(path, text)| (path.to_owned(), text.to_owned())));
    let paths: Vec<_> = sources.iter().map(|s| s.path.as_str()).collect();
    assert_eq!(paths, ["a/src/lib.rs", "a/src/b.rs", "a/src/c.rs"]);
    let words: Vec<_> = sources.iter().flat_map(|s| &s.tokens).map(|t| t.text.as_str()).collect();
    for kept in ["one", "two", "three", "four"] {
        assert!(words.contains(&kept), "{kept} is not in {words:?}");
    }
    for gone in ["gone", "not_a_token"] {
        assert!(!words.contains(&gone), "{gone} is in {words:?}");
    }
    assert_eq!(sources[2].find(&["fn", "four", "("]), [3]);
}
