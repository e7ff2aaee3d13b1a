//! What coffer says and how it ends when something fails.

use cofferdam_client::is_lost;
use cofferdam_types::{Code, Error};

/// A failure: the sentence, and the exit code if the command's own isn't right.
#[derive(Debug)]
pub struct Failure {
    /// What stands behind `coffer: `; empty where nothing is to be said.
    pub text: String,
    /// The exit code.
    pub code: Option<i32>,
}

impl Failure {
    /// The command line is wrong.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), code: None }
    }

    /// A system call of coffer's own failed.
    pub fn io(what: &str, error: impl Into<std::io::Error>) -> Failure {
        Failure { text: format!("{what}: {}", error.into()), code: None }
    }

    /// What was written was not taken. A reader who has seen enough, as in `coffer logs x | head`, is not told of it.
    pub fn output(error: std::io::Error) -> Failure {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure { text: String::new(), code: Some(128 + libc::SIGPIPE) },
            _ => Failure::io("standard output", error),
        }
    }

    /// A signal has ended coffer.
    pub fn signal(text: impl Into<String>, signal: u32) -> Failure {
        Failure { text: text.into(), code: Some(128 + signal as i32) }
    }

    /// With this exit code where it has none of its own.
    pub fn or_code(self, code: i32) -> Failure {
        Failure { code: self.code.or(Some(code)), ..self }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        // The codes that a shell gives for its own commands.
        let code = match (&*error.kind, error.code) {
            ("command", Code::NotFound) => Some(127),
            ("command", _) => Some(126),
            _ => None,
        };
        let thing = if error.id.is_empty() { error.kind.to_string() } else { format!("{} {}", error.kind, error.id) };
        // The code is for programs; it is said where the sentence isn't one about the thing.
        let predicate =
            ["is ", "has ", "does ", "can't ", "was ", "holds "].iter().any(|word| error.message.starts_with(word));
        let words = match error.code {
            Code::InvalidArgument | Code::FailedPrecondition | Code::Unavailable => String::new(),
            _ if predicate => String::new(),
            code => format!("{}: ", code.as_str().replace('_', " ")),
        };
        let hint = if is_lost(&error) { " (is cofferd running?)" } else { "" };
        Failure { text: format!("{thing}: {words}{}{hint}", error.message), code }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_read_well_and_have_the_codes_of_a_shell() {
        let image = Failure::from(Error::not_found("image", "x", "pull it, or import it"));
        assert_eq!((image.text.as_str(), image.code), ("image x: not found: pull it, or import it", None));
        assert_eq!(Failure::from(Error::not_found("image", "x", "is not here")).text, "image x: is not here");
        assert_eq!(Failure::from(Error::not_found("command", "nope", "no such file")).code, Some(127));
        assert_eq!(Failure::from(Error::failed_precondition("command", "/etc", "a directory")).code, Some(126));
        assert_eq!(Failure::from(Error::invalid("id", "a b", "has a blank")).text, "id a b: has a blank");
    }
}
