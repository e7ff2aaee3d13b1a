//! Checks of text that is to become part of a spec. Whatever could end a line, a field or a path early in one of the
//! files and calls behind it is refused here, where the field's name is still known.

use cofferdam_types::{Error, Result};

/// An error about one of the options.
pub(super) fn wrong(field: &'static str, message: impl Into<String>) -> Error {
    Error::invalid("options", field, message)
}

/// Text without NUL and without control characters.
pub(super) fn clean<'a>(field: &'static str, text: &'a str) -> Result<&'a str> {
    if text.chars().any(char::is_control) {
        return Err(wrong(field, format!("holds a control character: {}", shown(text))));
    }
    Ok(text)
}

/// An absolute path without `..`, control characters and anything superfluous.
pub(super) fn path(field: &'static str, text: &str) -> Result<String> {
    if !clean(field, text)?.starts_with('/') {
        return Err(wrong(field, format!("must be an absolute path, and is {}", shown(text))));
    }
    if text.len() >= libc::PATH_MAX as usize {
        return Err(wrong(field, format!("has {} bytes: at most {} are possible", text.len(), libc::PATH_MAX - 1)));
    }
    let mut cleaned = String::with_capacity(text.len());
    for part in text.split('/').filter(|part| !matches!(*part, "" | ".")) {
        if part == ".." {
            return Err(wrong(field, format!("holds a `..`, which may mean anything: {}", shown(text))));
        }
        cleaned.push('/');
        cleaned.push_str(part);
    }
    Ok(if cleaned.is_empty() { "/".into() } else { cleaned })
}

/// What an error repeats of a text: not all of it, and nothing that acts on a terminal.
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(100).collect::<String>())
}
