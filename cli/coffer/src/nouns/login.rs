//! What is shown to registries: stored in a namespace, or read from the caller's own files.

use std::io::{IsTerminal as _, Read as _, Write as _};

use cofferdam_client::{
    Client, CredentialInfo, CredentialKind, DockerConfig, DockerCredential, PullPolicy, RunRequest, Secret, registry_of,
};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

use crate::{
    args::{Args, Command, Flag, Positional, Times, switch, value},
    cx::{Cx, Table, line},
    failure::Failure,
    nouns::container::each,
    units::show_age,
};

/// Bytes of a password that is read.
const MAX_SECRET: u64 = 64 << 10;

/// The flags of commands that speak to registries.
pub const USER: Flag =
    value("user", Some('u'), "NAME", "for registries that ask; the password comes from COFFER_PASSWORD");
/// See [`USER`].
pub const CA: Flag = value("ca", None, "FILE", "certificates (PEM) to trust besides the host's");
/// See [`USER`].
pub const CERT: Flag =
    value("cert", None, "FILE", "the certificate (PEM) that the registry is shown; its key may be in it");
/// See [`USER`].
pub const KEY: Flag = value("key", None, "FILE", "the key of --cert (PEM)");
/// See [`USER`].
pub const NO_DOCKER: Flag = switch("no-docker-config", None, "show nothing that docker's config file has");

/// What a call has for a registry of its own.
#[derive(Default)]
pub struct Own {
    pub user: String,
    pub secret: Secret,
    pub ca: Vec<u8>,
    pub certificate: Vec<u8>,
    pub key: Secret,
}

/// Reads what the flags name, and without a user what docker's config file has for the image's registry.
pub fn own(args: &Args, image: &str) -> Result<Own, Failure> {
    let read = |flag: &str| match args.value(flag) {
        Some(path) => std::fs::read(path).map_err(|e| Failure::io(&format!("--{flag} {path}"), e)),
        None => Ok(Vec::new()),
    };
    let certificate = read("cert")?;
    let key = if args.value("key").is_some() { read("key")? } else { certificate.clone() };
    if certificate.is_empty() && !key.is_empty() {
        return Err(Failure::usage(format!("{}: --key needs the certificate in --cert", args.command.name())));
    }
    let not_text = |_| Failure::usage("the key is not PEM: give --key, or --cert with the key in it");
    let own =
        Own { ca: read("ca")?, certificate, key: Secret(String::from_utf8(key).map_err(not_text)?), ..Own::default() };
    if args.value("user").is_some() {
        // Never from the command line: that is there for all to read.
        let secret = std::env::var("COFFER_PASSWORD").map_err(|_| {
            let why = "--user needs the password in the environment variable COFFER_PASSWORD";
            Failure::usage(format!("{}: {why}", args.command.name()))
        })?;
        return Ok(Own { user: args.text("user"), secret: Secret(secret), ..own });
    }
    Ok(match dockers(args, image)? {
        Some(found) => Own { user: found.user, secret: found.secret, ..own },
        None => own,
    })
}

/// What docker's config file has for an image's registry.
pub fn dockers(args: &Args, image: &str) -> Result<Option<DockerCredential>, Failure> {
    match DockerConfig::usual().filter(|_| !args.has(NO_DOCKER.name)) {
        Some(path) => match DockerConfig::load(&path)? {
            Some(config) => Ok(config.find(&registry_of(image))?),
            None => Ok(None),
        },
        None => Ok(None),
    }
}

/// The same for what a run may have to pull. Of an image that is here nobody is shown anything: then no helper is run, and a file that
/// can't be read is nobody's business.
pub async fn dockers_for_run(args: &Args, client: &Client, request: &mut RunRequest) -> Result<(), Failure> {
    let image = &request.image.reference;
    let Some(path) = DockerConfig::usual().filter(|_| !args.has(NO_DOCKER.name)) else { return Ok(()) };
    if image.is_empty() || request.pull == PullPolicy::Never {
        return Ok(());
    }
    let registry = registry_of(image);
    let config = match DockerConfig::load(&path) {
        Ok(Some(config)) if config.names(&registry) => Ok(config),
        Ok(_) => return Ok(()),
        Err(error) => Err(error),
    };
    if request.pull == PullPolicy::Missing
        && client.namespace(&request.namespace).images().get(image).info().await.is_ok()
    {
        return Ok(());
    }
    if let Some(found) = config?.find(&registry)? {
        (request.image.user, request.image.secret) = (found.user, found.secret);
    }
    Ok(())
}

/// `coffer login`.
pub static LOGIN: Command = Command {
    path: &["login"],
    about: "store what a registry is shown",
    positionals: &[Positional { name: "HOST", times: Times::Once }],
    flags: &[
        value("user", Some('u'), "NAME", "whose it is"),
        switch(
            "password-stdin",
            None,
            "the password is on standard input; COFFER_PASSWORD otherwise, or the terminal is asked",
        ),
        switch("identity-token", None, "it is no password but a token by which tokens are got"),
        switch("docker-config", None, "take what docker's config file, or the helper that it names, has for HOST"),
    ],
    notes: "HOST is host[:port] as in the names of images; docker.io is Docker Hub. It is kept by the daemon for the namespace, shown to\n\
            that host and to no other, and can't be read again. The next pull or push finds out whether it is right.",
    failure: 1,
    action: |cx| Box::pin(login(cx)),
};

async fn login(cx: Cx) -> Result<i32, Failure> {
    let (args, host) = (&cx.args, cx.args.at(0).to_owned());
    let found = match args.has("docker-config") {
        true => {
            let path = DockerConfig::usual();
            let config = path.as_deref().map(DockerConfig::load).transpose()?.flatten();
            let found = config.map(|config| config.find(&host)).transpose()?.flatten();
            found.ok_or_else(|| Failure::usage(format!("login: docker's config file has nothing for {host}")))?
        }
        false => given(args, &host)?,
    };
    let info = CredentialInfo { host, user: found.user, kind: found.kind, ..CredentialInfo::default() };
    let credentials = cx.namespace().await?.credentials();
    credentials.put(&info, &found.secret).await?;
    let stored = credentials.get(&info.host).await?;
    if cx.json {
        cx.document(&stored)?
    } else {
        line(&stored.host)?
    }
    Ok(0)
}

fn given(args: &Args, host: &str) -> Result<DockerCredential, Failure> {
    let (user, identity) = (args.text("user"), args.has("identity-token"));
    if user.is_empty() && !identity {
        return Err(Failure::usage("login: --user says whose password it is"));
    }
    let secret = match (args.has("password-stdin"), std::env::var("COFFER_PASSWORD")) {
        (true, _) => {
            let mut text = String::new();
            let read = std::io::stdin().lock().take(MAX_SECRET).read_to_string(&mut text);
            read.map_err(|e| Failure::io("standard input", e))?;
            text
        }
        (false, Ok(text)) => text,
        (false, Err(_)) if std::io::stdin().is_terminal() => asked(&format!("password of {user} for {host}: "))?,
        (false, Err(_)) => {
            return Err(Failure::usage("login: give the password with --password-stdin, or in COFFER_PASSWORD"));
        }
    };
    let secret = secret.trim_end_matches(['\r', '\n']).to_owned();
    let kind = if identity { CredentialKind::Identity } else { CredentialKind::Password };
    Ok(DockerCredential { user, secret: Secret(secret), kind })
}

/// Asks at the terminal, which doesn't show what is typed.
fn asked(question: &str) -> Result<String, Failure> {
    let (stdin, io) = (std::io::stdin(), |e: nix::Error| Failure::io("the terminal", e));
    let before = tcgetattr(&stdin).map_err(io)?;
    let mut silent = before.clone();
    silent.local_flags &= !LocalFlags::ECHO;
    let _ = std::io::stderr().write_all(question.as_bytes());
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent).map_err(io)?;
    let mut text = String::new();
    let read = stdin.read_line(&mut text);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &before).map_err(io)?;
    let _ = std::io::stderr().write_all(b"\n");
    read.map_err(|e| Failure::io("standard input", e))?;
    Ok(text)
}

/// `coffer logout`.
pub static LOGOUT: Command = Command {
    path: &["logout"],
    about: "forget what registries are shown",
    positionals: &[Positional { name: "HOST", times: Times::Many }],
    flags: &[],
    notes: "Tokens that the registry has given stay good until they end: take them back there.",
    failure: 1,
    action: |cx| Box::pin(logout(cx)),
};

async fn logout(cx: Cx) -> Result<i32, Failure> {
    let credentials = cx.namespace().await?.credentials();
    each(&cx, async |host| Ok(credentials.remove(host).await?)).await
}

/// `coffer credential ls`.
pub static LS: Command = Command {
    path: &["credential", "ls"],
    about: "list the registries that are shown something",
    positionals: &[],
    flags: &[switch("quiet", Some('q'), "hosts alone")],
    notes: "The secrets themselves can't be read again. -o json: one array",
    failure: 1,
    action: |cx| Box::pin(ls(cx)),
};

async fn ls(cx: Cx) -> Result<i32, Failure> {
    let list = cx.namespace().await?.credentials().list().all().await?;
    if cx.args.has("quiet") {
        cx.names(list.iter().map(|info| info.host.as_str()))?;
    } else if cx.json {
        cx.document(&list)?;
    } else {
        let mut table = Table::new(&["HOST", "USER", "KIND", "STORED"]);
        for info in &list {
            let kind = match info.kind {
                CredentialKind::Password => "password",
                CredentialKind::Identity => "identity token",
            };
            let user = if info.user.is_empty() { "-" } else { &info.user };
            table.row([info.host.clone(), user.to_owned(), kind.to_owned(), show_age(info.updated)]);
        }
        table.print()?;
    }
    Ok(0)
}
