//! Filters over lists and events: the grammar of the reference, section 4.5.
//!
//! ```text
//! filter    := selector ( "," selector )*          ; comma = AND; a list of filters = OR; empty = everything
//! selector  := fieldpath [ ( "==" | "!=" | "~=" ) value ]
//! fieldpath := field ( "." field )*
//! field     := quoted | [A-Za-z0-9_]+
//! value     := quoted | bare                       ; bare: graphic characters up to white space or a comma
//! quoted    := "..."                               ; also /.../ and |...| as the value of ~=
//! ```

use std::borrow::Cow;

use regex_lite::{Regex, RegexBuilder};

use crate::{Error, Result};

/// A compiled expression stays below this, so that a hostile one costs an event no more than a moment.
const MAX_REGEX: usize = 10 * 1024;
/// Bytes of all filters of a list, what they ask for, and how much of that is an expression: a list is kept for as long as
/// somebody goes through it.
const MAX_LENGTH: usize = 16 * 1024;
const MAX_SELECTORS: usize = 256;
const MAX_REGEXES: usize = 8;

/// A filter, or several of which any may match.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Empty: everything matches.
    any: Vec<Vec<Selector>>,
}

#[derive(Clone, Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    Differs(String),
    Finds(Regex),
}

impl Filter {
    /// The filter that everything matches.
    pub fn everything() -> Filter {
        Filter::default()
    }

    /// Reads one filter. An empty text matches everything.
    pub fn parse(text: &str) -> Result<Filter> {
        if text.is_empty() {
            return Ok(Filter::everything());
        }
        Filter::read(&[text], None)
    }

    /// [`Filter::any`] over things whose fields are all `known`: asking for another is a slip of the pen, and an empty
    /// list would hide it. `labels.KEY` stands for whatever follows `labels.`.
    pub fn of<S: AsRef<str>>(texts: &[S], known: &[&str]) -> Result<Filter> {
        Filter::read(texts, Some(known))
    }

    /// Reads filters of which any may match. No filter, or an empty one among them, matches everything.
    pub fn any<S: AsRef<str>>(texts: &[S]) -> Result<Filter> {
        Filter::read(texts, None)
    }

    fn read<S: AsRef<str>>(texts: &[S], known: Option<&[&str]>) -> Result<Filter> {
        let length: usize = texts.iter().map(|text| text.as_ref().len()).sum();
        if length > MAX_LENGTH {
            let why = format!("has {length} bytes, of all that are to match: at most {MAX_LENGTH} are allowed");
            return Err(Error::invalid("filter", "", why));
        }
        let mut room = Room { selectors: MAX_SELECTORS, regexes: MAX_REGEXES };
        let mut parse = |text: &S| match text.as_ref() {
            "" => Ok(None),
            text => Parser { text, at: 0, known, room: &mut room }.selectors().map(Some),
        };
        let all: Vec<Option<Vec<_>>> = texts.iter().map(&mut parse).collect::<Result<_>>()?;
        let any: Option<Vec<_>> = all.into_iter().collect();
        Ok(Filter { any: any.unwrap_or_default() })
    }

    /// Whether there is nothing to ask.
    pub fn is_everything(&self) -> bool {
        self.any.is_empty()
    }

    /// Whether the thing matches whose fields `field` gives. It gets the path in its parts: where the rest of a path
    /// is one key (labels), it joins them with `.` again ([`label`] does).
    pub fn matches<'v>(&self, field: &dyn Fn(&[&str]) -> Option<Cow<'v, str>>) -> bool {
        self.is_everything() || self.any.iter().any(|all| all.iter().all(|selector| selector.matches(field)))
    }
}

/// The label that the parts of a path after `labels` name.
pub fn label<'v>(labels: &'v crate::Labels, rest: &[&str]) -> Option<Cow<'v, str>> {
    labels.get(rest.join(".").as_str()).map(|value| Cow::Borrowed(value.as_str()))
}

impl Selector {
    fn matches<'v>(&self, field: &dyn Fn(&[&str]) -> Option<Cow<'v, str>>) -> bool {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let value = field(&path);
        // An absent field counts as the empty string, except for presence and equality.
        let text = value.as_deref().unwrap_or_default();
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some() && text == wanted,
            Test::Differs(wanted) => text != wanted,
            Test::Finds(regex) => regex.is_match(text),
        }
    }
}

/// Whether a known field is meant by a path.
fn names(known: &str, path: &[String]) -> bool {
    match known.strip_suffix(".KEY") {
        Some(prefix) => path.len() > 1 && path[0] == prefix,
        None => known.split('.').eq(path.iter().map(String::as_str)),
    }
}

/// What may still be asked for.
struct Room {
    selectors: usize,
    regexes: usize,
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    room: &'t mut Room,
    /// The fields that there are, where that is known.
    known: Option<&'t [&'t str]>,
}

impl Parser<'_> {
    fn selectors(&mut self) -> Result<Vec<Selector>> {
        let mut all = vec![self.selector()?];
        while let Some(next) = self.peek() {
            if next != ',' {
                return Err(self.error(self.at, format!("unexpected input: {next}")));
            }
            self.at += 1;
            all.push(self.selector()?);
        }
        Ok(all)
    }

    fn selector(&mut self) -> Result<Selector> {
        self.skip_space();
        let start = self.at;
        self.room.selectors = self.room.selectors.checked_sub(1).ok_or_else(|| {
            self.error(start, format!("too much is asked for: at most {MAX_SELECTORS} selectors, of all filters"))
        })?;
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.at += 1;
            path.push(self.field()?);
        }
        if let Some(known) = self.known.filter(|known| !known.iter().any(|field| names(field, &path))) {
            let why = format!("there is no field {:?}; there are {}", path.join("."), known.join(", "));
            return Err(self.error(start, why));
        }
        let test = match self.peek() {
            None | Some(',') => Test::Present,
            Some(_) => match self.operator()? {
                "==" => Test::Equal(self.value(&['"'])?),
                "!=" => Test::Differs(self.value(&['"'])?),
                _ => {
                    self.skip_space();
                    let start = self.at;
                    self.room.regexes = self.room.regexes.checked_sub(1).ok_or_else(|| {
                        let most = format!("at most {MAX_REGEXES} regular expressions are allowed, of all filters");
                        self.error(start, most)
                    })?;
                    let pattern = self.value(&['"', '/', '|'])?;
                    // The reference says nothing and never matches.
                    let regex = RegexBuilder::new(&pattern).size_limit(MAX_REGEX).build();
                    Test::Finds(regex.map_err(|e| self.error(start, format!("not a regular expression: {e}")))?)
                }
            },
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String> {
        self.skip_space();
        match self.peek() {
            Some(quote @ ('"' | '/' | '|')) => self.quoted(quote, &['"']),
            _ => match self.take_while(|c| c == '_' || c.is_ascii_alphanumeric()) {
                "" => Err(self.error(self.at, "expected field or quoted")),
                field => Ok(field.to_owned()),
            },
        }
    }

    fn operator(&mut self) -> Result<&'static str> {
        self.skip_space();
        let start = self.at;
        // The longest run counts, so that `===` is not `==` and a value that begins with `=`.
        let run = self.take_while(|c| matches!(c, '=' | '!' | '~')).to_owned();
        match run.as_str() {
            "" => Err(self.error(start, r#"expected an operator ("=="|"!="|"~=")"#)),
            _ => ["==", "!=", "~="]
                .into_iter()
                .find(|known| *known == run)
                .ok_or_else(|| self.error(start, format!("unsupported operator {run:?}"))),
        }
    }

    fn value(&mut self, quotes: &[char]) -> Result<String> {
        self.skip_space();
        let start = self.at;
        match self.peek() {
            Some(quote @ ('"' | '/' | '|')) => self.quoted(quote, quotes),
            Some('.' | '=' | '!' | '~') => Err(self.error(start, "expected value or quoted")),
            _ => match self.take_while(|c| c != ',' && !c.is_whitespace() && !c.is_control()) {
                "" => Err(self.error(start, "expected value or quoted")),
                value => Ok(value.to_owned()),
            },
        }
    }

    /// Reads from one `quote` to the next and undoes the escapes between them, which are those of Go strings.
    fn quoted(&mut self, quote: char, allowed: &[char]) -> Result<String> {
        let start = self.at;
        if !allowed.contains(&quote) {
            return Err(self.error(start, "invalid quote encountered"));
        }
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            match self.next() {
                None | Some('\n') => return Err(self.error(start, "quoted literal not terminated")),
                Some('\0') => return Err(self.error(start, "unexpected null")),
                Some('\\') => {
                    self.escape(quote, &mut bytes).ok_or_else(|| self.error(start, "illegal escape sequence"))?;
                }
                Some(c) if c == quote => break,
                Some(c) => push(&mut bytes, c),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.error(start, "the escapes make no valid text"))
    }

    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Option<()> {
        let c = self.next()?;
        match c {
            'a' => bytes.push(7),
            'b' => bytes.push(8),
            'f' => bytes.push(12),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'v' => bytes.push(11),
            '\\' => bytes.push(b'\\'),
            'x' => bytes.push(u8::try_from(self.number(16, 2)?).ok()?),
            'u' => push(bytes, char::from_u32(self.number(16, 4)?)?),
            'U' => push(bytes, char::from_u32(self.number(16, 8)?)?),
            '0'..='7' => {
                self.at -= 1;
                bytes.push(u8::try_from(self.number(8, 3)?).ok()?);
            }
            c if c == quote => push(bytes, c),
            _ => return None,
        }
        Some(())
    }

    fn number(&mut self, base: u32, digits: usize) -> Option<u32> {
        (0..digits).try_fold(0u32, |value, _| value.checked_mul(base)?.checked_add(self.next()?.to_digit(base)?))
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn skip_space(&mut self) {
        self.take_while(char::is_whitespace);
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let rest = &self.text[self.at..];
        let len = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn error(&self, at: usize, why: impl std::fmt::Display) -> Error {
        let (before, rest) = self.text.split_at(at);
        let mut chars = rest.chars();
        let place = match chars.next() {
            Some(c) => format!("{before} >|{c}|< {}", chars.as_str()),
            None => before.to_owned(),
        };
        Error::invalid("filter", "", format!("filters: parse error: [{place}]: {why}"))
    }
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Code, Labels};

    struct Record {
        name: &'static str,
        other: &'static str,
        labels: Labels,
    }

    fn record(name: &'static str, other: &'static str, labels: &[(&str, &str)]) -> Record {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Record { name, other, labels }
    }

    fn corpus() -> Vec<Record> {
        vec![
            record("foo", "", &[("foo", "true")]),
            record("bar", "", &[]),
            record("foo", "", &[("foo", "present"), ("more complex label", "present")]),
            record("bar", "", &[("bar", "true")]),
            record("fooer", "", &[("more complex label with \\ and \"", "present")]),
            record("fooer", "", &[("more complex label with \\ and \".post", "present")]),
            record("baz", "too complex, yo", &[]),
            record("bazo", "abc", &[]),
            record("compound", "", &[("foo", "omg_asdf.asdf-qwer")]),
        ]
    }

    #[test]
    fn what_is_asked_for_is_bounded() {
        let many = |n: usize, one: &str| vec![one; n].join(",");
        let said = |texts: &[String]| Filter::any(texts).map(drop).map_err(|e| (e.code, e.message));
        said(&[many(256, "name==a")]).unwrap();
        said(&[many(8, "name~=a")]).unwrap();
        for (texts, why) in [
            (vec![many(257, "name==a")], "at most 256 selectors"),
            (vec![many(200, "name"), many(57, "name")], "at most 256 selectors"),
            (vec![many(9, "name~=a")], "at most 8 regular expressions"),
            (vec!["name~=a".into(); 9], "at most 8 regular expressions"),
            (vec!["name~=(a{1000}){1000}".into()], "not a regular expression"),
            (vec![format!("name=={}", "a".repeat(16 << 10))], "at most 16384 are allowed"),
            (vec![format!("name=={}", "a".repeat(9 << 10)); 2], "at most 16384 are allowed"),
        ] {
            let (code, message) = said(&texts).unwrap_err();
            assert!(code == Code::InvalidArgument && message.contains(why), "{message}");
        }
    }

    fn chosen(filter: &Filter) -> Vec<usize> {
        let present = |text: &'static str| (!text.is_empty()).then_some(Cow::Borrowed(text));
        corpus()
            .iter()
            .enumerate()
            .filter(|(_, r)| {
                filter.matches(&|path| match path {
                    ["name"] => present(r.name),
                    ["other"] => present(r.other),
                    ["labels", rest @ ..] => label(&r.labels, rest),
                    _ => None,
                })
            })
            .map(|(index, _)| index)
            .collect()
    }

    const ALL: &[usize] = &[0, 1, 2, 3, 4, 5, 6, 7, 8];

    // TestFilters of the reference, section 4.6.
    #[test]
    fn the_filter_table_of_the_reference() {
        let table: &[(&str, &[usize])] = &[
            ("", ALL),
            ("name", ALL),
            ("labels.foo", &[0, 2, 8]),
            ("labels.foo,name", &[0, 2, 8]),
            ("labels.foo==true", &[0]),
            ("labels.foo==omg_asdf.asdf-qwer", &[8]),
            ("name==bar", &[1, 3]),
            ("name!=bar", &[0, 2, 4, 5, 6, 7, 8]),
            ("labels.foo!=true", &[1, 2, 3, 4, 5, 6, 7, 8]),
            ("name==bar,labels.bar", &[3]),
            (r#"other=="too complex, yo""#, &[6]),
            ("other~=[abc]+,name!=foo", &[6, 7]),
            ("other~=/[abc]+/,name!=foo", &[6, 7]),
            ("other~=|[abc]+|,name!=foo", &[6, 7]),
            ("other~=/[abc]{1,2}/,name!=foo", &[6, 7]),
            (r#"other~=/[abc]{0,1}"\//,name!=foo"#, &[]),
            ("other~=^$", &[0, 1, 2, 3, 4, 5, 8]),
            ("name==bar,labels.bar==true", &[3]),
            ("name==bar,labels.bar==wrong", &[]),
            (r#"name==foo,labels."more complex label""#, &[2]),
            (r#"labels."more complex label with \\ and \""==present"#, &[4]),
            (r#"labels."more complex label with \\ and \"".post==present"#, &[5]),
            ("  name ==  bar,  labels.bar", &[3]),
            (r#""name"=="b\x61\162\u0020""#, &[]),
            (r#""name"=="b\x61\162""#, &[1, 3]),
        ];
        for (text, wanted) in table {
            assert_eq!(&chosen(&Filter::parse(text).unwrap()), wanted, "{text}");
        }
    }

    #[test]
    fn errors_show_the_place() {
        for (text, wanted) in [
            ("labels.|foo|==omg", "filters: parse error: [labels. >|||< foo|==omg]: invalid quote encountered"),
            ("name==/bar/", "filters: parse error: [name== >|/|< bar/]: invalid quote encountered"),
            (
                r#"labels.?"a".post==x"#,
                r#"filters: parse error: [labels. >|?|< "a".post==x]: expected field or quoted"#,
            ),
            ("name==foo,", "filters: parse error: [name==foo,]: expected field or quoted"),
            ("labels.", "filters: parse error: [labels.]: expected field or quoted"),
            ("image~=,id?=?fbaq", "filters: parse error: [image~= >|,|< id?=?fbaq]: expected value or quoted"),
            ("image~=", "filters: parse error: [image~=]: expected value or quoted"),
            ("name~=.*x", "filters: parse error: [name~= >|.|< *x]: expected value or quoted"),
            ("name===x", "filters: parse error: [name >|=|< ==x]: unsupported operator \"===\""),
            ("name=x", "filters: parse error: [name >|=|< x]: unsupported operator \"=\""),
            ("name==bar ", "filters: parse error: [name==bar >| |< ]: unexpected input:  "),
            ("name==a b", "filters: parse error: [name==a >| |< b]: unexpected input:  "),
            ("labels .x", "filters: parse error: [labels  >|.|< x]: expected an operator (\"==\"|\"!=\"|\"~=\")"),
            ("a\0b", "filters: parse error: [a >|\0|< b]: expected an operator (\"==\"|\"!=\"|\"~=\")"),
            ("name==\"bar", "filters: parse error: [name== >|\"|< bar]: quoted literal not terminated"),
            (r"name~=/\d/", r"filters: parse error: [name~= >|/|< \d/]: illegal escape sequence"),
            (r#"name=="\400""#, r#"filters: parse error: [name== >|"|< \400"]: illegal escape sequence"#),
        ] {
            let error = Filter::parse(text).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (Code::InvalidArgument, wanted));
        }
    }

    #[test]
    fn several_filters_are_alternatives() {
        assert_eq!(chosen(&Filter::any(&["name==bar", "other==abc"]).unwrap()), [1, 3, 7]);
        assert_eq!(chosen(&Filter::any::<&str>(&[]).unwrap()), ALL);
        assert_eq!(chosen(&Filter::any(&["name==bar", ""]).unwrap()), ALL);
        assert!(Filter::any(&["name==bar", "x=="]).is_err());
    }

    #[test]
    fn other_scripts_and_punctuation() {
        let one = |text: &str, value: &'static str| {
            Filter::parse(text).unwrap().matches(&|path| (path == ["name"]).then_some(Cow::Borrowed(value)))
        };
        assert!(one("name~=牛", "ein 牛 hier"));
        assert!(one("name~=|牛|", "牛"));
        assert!(one("name~=|foo/bar|", "a foo/bar b"));
        assert!(one(r"name~=/foo\/bar/", "foo/bar"));
        assert!(one(r"name~=[abc]\+", "b+"));
        assert!(one("name==docker.io/library/redis:7@sha256", "docker.io/library/redis:7@sha256"));
        assert!(one(r#"name=="asdf\n\tfooo""#, "asdf\n\tfooo"));
    }

    #[test]
    fn what_cant_be_asked_is_an_error() {
        let known = ["id", "runtime.name", "labels.KEY"];
        let of = |texts: &[&str]| Filter::of(texts, &known);
        for text in ["id==x", "runtime.name!=x,labels.a.b", r#"labels."a/b"~=x"#, "", "labels.x,id"] {
            assert!(of(&[text]).is_ok(), "{text}");
        }
        assert!(of(&["id==x", ""]).unwrap().is_everything() && of(&[]).unwrap().is_everything());
        for (text, place) in [
            ("nosuch==x", " >|n|< osuch==x"),
            ("id==x, labels", "id==x,  >|l|< abels"),
            ("runtime==x", " >|r|< untime==x"),
            ("id.x", " >|i|< d.x"),
        ] {
            let error = of(&[text]).unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument);
            let said = format!("filters: parse error: [{place}]: there is no field ");
            assert!(error.message.starts_with(&said), "{error}");
            assert!(error.message.ends_with("there are id, runtime.name, labels.KEY"), "{error}");
        }
        for (text, place) in [("id~=[", "id~= >|[|< "), ("id~=x{1000}{1000}{1000}", "id~= >|x|< {1000}{1000}{1000}")] {
            let error = of(&[text]).unwrap_err();
            let said = format!("filters: parse error: [{place}]: not a regular expression: ");
            assert!(error.code == Code::InvalidArgument && error.message.starts_with(&said), "{error}");
        }
    }
}
