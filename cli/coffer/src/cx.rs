//! What every command has at hand: its arguments, the daemon, and where its output goes.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
};

use cofferdam_client::{Client, Namespace};
use serde::Serialize;

use crate::{args::Args, failure::Failure};

const SOCKET: &str = "/run/cofferdam/cofferd.sock";

/// By which authority something is done.
enum By {
    /// What the socket gives.
    Socket,
    /// The grant that the socket is.
    Grant,
    /// That of a token.
    Token(String),
}

/// One invocation.
pub struct Cx {
    /// What was given.
    pub args: Args,
    /// Where the daemon listens.
    pub socket: PathBuf,
    /// By which authority it is done.
    by: By,
    /// Where to work.
    pub namespace: String,
    /// For programs.
    pub json: bool,
}

impl Cx {
    /// Reads the global flags and the environment.
    pub fn new(args: Args) -> Result<Cx, Failure> {
        let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        if args.value("socket").is_some_and(str::is_empty) {
            return Err(Failure::usage("--socket is empty: give the path of the daemon's socket, or leave it out"));
        }
        let mut socket = args.value("socket").map(PathBuf::from).or_else(|| env("COFFER_SOCKET").map(PathBuf::from));
        let grant = match args.value("as") {
            Some("") => return Err(Failure::usage("--as is empty: give a token, @FILE, or a socket, or leave it out")),
            Some(given) => Some(given.to_owned()),
            None => env("COFFER_AS").map(|grant| grant.to_string_lossy().into_owned()),
        };
        let mut by = By::Socket;
        match grant.as_deref().map(|grant| (grant, grant.strip_prefix('@'))) {
            Some((_, Some(file))) => {
                let unreadable = |e: std::io::Error| Failure::usage(format!("--as @{file}: {e}"));
                by = By::Token(std::fs::read_to_string(file).map_err(unreadable)?.trim().to_owned());
            }
            Some((place, None)) if place.contains('/') => {
                let place = PathBuf::from(place);
                socket = Some(if place.is_dir() { place.join("cofferdam.sock") } else { place });
                by = By::Grant;
            }
            Some((given, None)) => by = By::Token(given.to_owned()),
            None => {}
        }
        let namespace = args.value("namespace").map(str::to_owned);
        let namespace = namespace.or_else(|| env("COFFER_NAMESPACE").map(|name| name.to_string_lossy().into_owned()));
        let json = match args.value("output") {
            None | Some("table") => false,
            Some("json") => true,
            Some(other) => return Err(Failure::usage(format!("--output {other:?}: give table or json"))),
        };
        Ok(Cx {
            args,
            socket: socket.unwrap_or_else(|| SOCKET.into()),
            by,
            // A grant begins in one: whatever that is called.
            namespace: namespace.unwrap_or_else(|| if grant.is_some() { "" } else { "default" }.to_owned()),
            json,
        })
    }

    /// The daemon.
    pub async fn client(&self) -> Result<Client, Failure> {
        let name = format!("coffer {}", self.args.command.name());
        Ok(match &self.by {
            By::Socket => Client::connect_as(&self.socket, &name).await?,
            By::Grant => Client::by_grant_as(&self.socket, &name).await?,
            By::Token(token) => Client::restore_as(&self.socket, &name, token).await?,
        })
    }

    /// The namespace to work in.
    pub async fn namespace(&self) -> Result<Namespace, Failure> {
        Ok(self.client().await?.namespace(&self.namespace))
    }

    /// The namespace to make something in, as a lease's where one is named.
    pub async fn namespace_to_fill(&self) -> Result<Namespace, Failure> {
        let namespace = self.namespace().await?;
        Ok(match self.args.value("lease") {
            Some(id) => namespace.leases().get(id).namespace(),
            None => namespace,
        })
    }

    /// Names: a line each, or one array for programs.
    pub fn names<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<(), Failure> {
        if self.json {
            return self.document(&names.into_iter().collect::<Vec<_>>());
        }
        names.into_iter().try_for_each(line)
    }

    /// One JSON document: laid out for people, on one line for programs.
    pub fn document(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = if self.json { serde_json::to_string(value) } else { serde_json::to_string_pretty(value) };
        line(&text.map_err(|e| Failure::usage(format!("the answer can't be written as JSON: {e}")))?)
    }
}

/// Whether somebody looks at standard error.
pub fn watched() -> bool {
    std::io::stderr().is_terminal()
}

/// Tells people something on standard error. That they can't be told changes nothing else.
pub fn say(text: &str) {
    // A terminal that is in raw mode doesn't go back to the line's beginning by itself.
    let back = if crate::terminal::is_raw(std::io::stderr()) { "\r" } else { "" };
    let _ = std::io::stderr().write_all(format!("coffer: {text}{back}\n").as_bytes());
}

/// Writes a line to standard output.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    written.map_err(Failure::output)
}

/// A table with aligned columns.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(heads: &[&str]) -> Table {
        Table { rows: vec![heads.iter().map(|&head| head.to_owned()).collect()] }
    }

    /// Puts a row below.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        // A control character in a name could move the cursor of who looks at it.
        let clean = |cell: String| cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// As a text, without a line's end at its end.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width =
            |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
        let lines = self.rows.iter().map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Writes it.
    pub fn print(&self) -> Result<(), Failure> {
        line(&self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        table.row(["é".to_owned(), "1 B".to_owned()]);
        table.row(["a long\x1b[2J name".to_owned(), String::new()]);
        assert_eq!(table.text(), "NAME              SIZE\né                 1 B\na long?[2J name");
    }
}
