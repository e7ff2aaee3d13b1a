//! Lines of a Dockerfile that change what an image runs and how.

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// `CMD`.
    Cmd(Vec<String>),
    /// `ENTRYPOINT`.
    Entrypoint(Vec<String>),
    /// `ENV`, as `NAME=VALUE`.
    Env(String),
    /// `WORKDIR`.
    WorkingDir(String),
    /// `USER`.
    User(String),
    /// `LABEL`, key and value.
    Label(String, String),
    /// `EXPOSE`, as `PORT[/PROTOCOL]`.
    Expose(String),
    /// `VOLUME`.
    Volume(String),
    /// `STOPSIGNAL`.
    StopSignal(String),
}

/// Reads a line; one of several pairs is several. The error says what is wrong with it.
pub fn instructions(text: &str) -> Result<Vec<Instruction>, String> {
    let (word, rest) = text.trim().split_once(char::is_whitespace).unwrap_or_else(|| (text.trim(), ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err("give an instruction and what it says, such as 'USER nobody'".into());
    }
    let pairs = |of: fn(String, String) -> Instruction| -> Result<Vec<Instruction>, String> {
        let words = words(rest)?;
        // The old form: a key, and the rest of the line.
        if words.first().is_some_and(|word| !word.contains('=')) {
            let (key, value) = rest.split_once(char::is_whitespace).ok_or("give KEY=VALUE")?;
            return Ok(vec![of(key.to_owned(), value.trim().to_owned())]);
        }
        let pair = |word: &String| {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is not of the form KEY=VALUE"))?;
            Ok(of(key.to_owned(), value.to_owned()))
        };
        words.iter().map(pair).collect()
    };
    Ok(match &*word.to_ascii_uppercase() {
        "CMD" => vec![Instruction::Cmd(command(rest)?)],
        "ENTRYPOINT" => vec![Instruction::Entrypoint(command(rest)?)],
        "ENV" => pairs(|key, value| Instruction::Env(format!("{key}={value}")))?,
        "LABEL" => pairs(Instruction::Label)?,
        "EXPOSE" => words(rest)?.into_iter().map(Instruction::Expose).collect(),
        "VOLUME" => array(rest).unwrap_or_else(|| words(rest))?.into_iter().map(Instruction::Volume).collect(),
        "USER" => vec![Instruction::User(one(rest)?)],
        "WORKDIR" => vec![Instruction::WorkingDir(one(rest)?)],
        "STOPSIGNAL" => vec![Instruction::StopSignal(one(rest)?)],
        other => {
            let known = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR";
            return Err(format!("{other} can't be changed: give {known}"));
        }
    })
}

/// The form of JSON, or a line for a shell.
fn command(rest: &str) -> Result<Vec<String>, String> {
    array(rest).unwrap_or_else(|| Ok(vec!["/bin/sh".into(), "-c".into(), rest.to_owned()]))
}

fn array(rest: &str) -> Option<Result<Vec<String>, String>> {
    rest.starts_with('[').then(|| {
        serde_json::from_str(rest).map_err(|e| format!("is not an array of texts in JSON, with double quotes: {e}"))
    })
}

fn one(rest: &str) -> Result<String, String> {
    match &words(rest)?[..] {
        [word] => Ok(word.clone()),
        _ => Err("give one word, or put it in quotes".into()),
    }
}

/// Words as a Dockerfile has them: quotes keep blanks, a backslash what is behind it.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => word.push(chars.next().ok_or("ends with a backslash")?),
            (c, Some(mark)) if c == mark => quote = None,
            (c, Some(_)) => word.push(c),
            ('"' | '\'', None) => quote = Some(c),
            (c, None) if c.is_whitespace() => {
                if begun {
                    words.push(std::mem::take(&mut word));
                    begun = false;
                }
                continue;
            }
            (c, None) => word.push(c),
        }
        begun = true;
    }
    if quote.is_some() {
        return Err("has a quote without its end".into());
    }
    words.extend(begun.then_some(word));
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_read_as_a_dockerfile_is() {
        use Instruction as C;
        let all = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let env = |text: &str| C::Env(text.into());
        for (text, read) in [
            (r#"CMD ["/bin/app", "-v"]"#, vec![C::Cmd(all(&["/bin/app", "-v"]))]),
            ("cmd echo $HOME", vec![C::Cmd(all(&["/bin/sh", "-c", "echo $HOME"]))]),
            (r#"ENTRYPOINT ["/init"]"#, vec![C::Entrypoint(all(&["/init"]))]),
            (r#"ENV A=1 B="2 3" C=4\ 5"#, vec![env("A=1"), env("B=2 3"), env("C=4 5")]),
            ("ENV OLD a form", vec![env("OLD=a form")]),
            ("LABEL a.b=c 'd=e f'", vec![C::Label("a.b".into(), "c".into()), C::Label("d".into(), "e f".into())]),
            ("EXPOSE 80 53/udp", vec![C::Expose("80".into()), C::Expose("53/udp".into())]),
            (r#"VOLUME ["/a b", "/c"]"#, vec![C::Volume("/a b".into()), C::Volume("/c".into())]),
            ("  USER   1000:10 ", vec![C::User("1000:10".into())]),
            ("WORKDIR \"/a b\"", vec![C::WorkingDir("/a b".into())]),
            ("STOPSIGNAL SIGQUIT", vec![C::StopSignal("SIGQUIT".into())]),
        ] {
            assert_eq!(instructions(text).unwrap(), read, "{text}");
        }
        for bad in ["", "CMD", "RUN make", "CMD ['a']", "ENV A", "ENV A=1 B", "USER a b", "ENV A=\"1", "LABEL a=b\\"] {
            assert!(instructions(bad).is_err(), "{bad}");
        }
    }
}
