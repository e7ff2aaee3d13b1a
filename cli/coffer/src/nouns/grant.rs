//! Grants: what is handed out of a namespace, to be taken back.

use cofferdam_client::{GrantInfo, GrantOptions};
use cofferdam_types::{Timestamp, show_size};

use crate::{
    args::{Args, Command, Positional, Times, many, switch, value},
    cx::{Cx, Table, line},
    failure::Failure,
    nouns::container::{each, show_each},
    units::{cpus, number, show_age, size, span},
};

const ID: Positional = Positional { name: "GRANT", times: Times::Once };
const IDS: &[Positional] = &[Positional { name: "GRANT", times: Times::Many }];

/// `coffer grant create`.
pub static CREATE: Command = Command {
    path: &["grant", "create"],
    about: "hand out a part of a namespace, to be taken back",
    positionals: &[],
    flags: &[
        many(
            "facet",
            Some('f'),
            "FACET",
            "what may be done: observer, logs, exec, kill, events, metrics, backup, pull, deploy",
        ),
        many("right", None, "RIGHT", "read, write, run, networks or host; without it what the facets take"),
        many("container", Some('c'), "ID", "only this container"),
        many("filter", None, "FILTER", "only containers that pass, such as labels.KEY==VALUE"),
        switch("own", None, "only containers that are made through it"),
        many("image", Some('i'), "IMAGE", "only this image: a name, the beginning of one and *, or a digest"),
        many("network", None, "NETWORK", "only this network of a container: none, container, host, a path or a name"),
        value("memory", Some('m'), "SIZE", "the most memory of a container"),
        value("cpus", None, "NUMBER", "the most processors of a container"),
        value("pids", None, "NUMBER", "the most processes of a container"),
        value("storage", None, "SIZE", "the most that a container may have written"),
        value("containers", None, "NUMBER", "how many containers there may be at once that are made through it"),
        value("calls", None, "NUMBER", "how many calls may be under way through it at once, those that wait included"),
        value(
            "disk",
            None,
            "SIZE",
            "how much of the disk what comes through it may have: blobs, and what its containers may write",
        ),
        value("expires", None, "SPAN", "when it ends by itself, such as 90s, 30m, 24h or 7d"),
        value("uses", None, "NUMBER", "how often its token may be used"),
        value("label", Some('l'), "TEXT", "what to call it"),
        switch("delegate", None, "its holder may make grants that come from it"),
        switch("tokens", None, "and may have tokens made for those"),
    ],
    notes: "Prints its id, which gives nothing: \"coffer grant save\" makes a token, \"coffer grant export\" a socket.\n\
            Without --facet and --right it is for looking at everything in the namespace. --container, --filter, --own and\n\
            --image want a --facet. A container that is made through it keeps within its limits for as long as it is there.",
    failure: 1,
    action: |cx| Box::pin(create(cx)),
};

fn options(args: &Args) -> Result<GrantOptions, Failure> {
    let expires = args.read("expires", span)?;
    let end = |span: std::time::Duration| {
        Timestamp::now().0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
    };
    // To the daemon 0 is no bound: who writes it means something else.
    let bound = |name: &str, read: fn(&str) -> Result<u64, String>| {
        let some = |text: &str| match read(text)? {
            0 => Err("would be no bound: leave it out for that, or give more".to_owned()),
            most => Ok(most),
        };
        Ok::<_, Failure>(args.read(name, some)?.unwrap_or_default())
    };
    Ok(GrantOptions {
        label: args.text("label"),
        facets: args.all("facet").to_vec(),
        rights: args.all("right").to_vec(),
        containers: args.all("container").to_vec(),
        filters: args.all("filter").to_vec(),
        own: args.has("own"),
        images: args.all("image").to_vec(),
        networks: args.all("network").to_vec(),
        memory: bound("memory", size)?,
        nano_cpus: bound("cpus", cpus)?,
        pids: bound("pids", number)?,
        // As `run` has it too.
        storage: bound("storage", |text| size(text.strip_prefix("size=").unwrap_or(text)))?,
        not_after: Timestamp(expires.map(end).unwrap_or_default()),
        uses: bound("uses", number)?,
        most_containers: bound("containers", number)?,
        most_calls: bound("calls", number)?,
        most_disk: bound("disk", size)?,
        may_delegate: args.has("delegate"),
        may_save: args.has("tokens"),
    })
}

async fn create(cx: Cx) -> Result<i32, Failure> {
    cx.args.filled()?;
    let options = options(&cx.args)?;
    let info = cx.namespace().await?.grants().create(&options).info().await?;
    if cx.json {
        cx.document(&info)?
    } else {
        line(&info.id)?
    }
    Ok(0)
}

/// What it is for, in a few words.
fn what(info: &GrantInfo) -> String {
    let options = &info.options;
    let mut words = Vec::new();
    words.push(if options.facets.is_empty() { info.rights.join("+") } else { options.facets.join("+") });
    let list = |name: &str, all: &[String]| (!all.is_empty()).then(|| format!("{name} {}", all.join("|")));
    words.extend(list("of", &options.containers));
    words.extend(list("where", &options.filters));
    words.extend(options.own.then(|| "its own".to_owned()));
    words.extend(list("from", &options.images));
    words.extend(list("in", &options.networks));
    let bound = |name: &str, n: u64, text: String| (n != 0).then(|| format!("{name}<={text}"));
    words.extend(bound("memory", options.memory, show_size(options.memory)));
    words.extend(bound("cpus", options.nano_cpus, (options.nano_cpus as f64 / 1e9).to_string()));
    words.extend(bound("pids", options.pids, options.pids.to_string()));
    words.extend(bound("storage", options.storage, show_size(options.storage)));
    words.extend(bound("containers", options.most_containers, options.most_containers.to_string()));
    words.extend(bound("disk", options.most_disk, show_size(options.most_disk)));
    words.extend(bound("calls", options.most_calls, options.most_calls.to_string()));
    words.join(", ")
}

fn how(info: &GrantInfo) -> String {
    let mut ways = Vec::new();
    if info.saved {
        let whose = info.sealed_to.map_or_else(|| "token".to_owned(), |uid| format!("token of user {uid}"));
        ways.push(match info.options.uses {
            _ if info.used_up => format!("{whose}: used up"),
            0 => whose,
            left => format!("{whose}: {left} more"),
        });
    }
    if !info.exported.is_empty() {
        ways.push(info.exported.clone());
    }
    if ways.is_empty() { "-".to_owned() } else { ways.join(", ") }
}

/// `coffer grant ls`.
pub static LS: Command = Command {
    path: &["grant", "ls"],
    about: "list what was handed out, as a tree",
    positionals: &[],
    flags: &[switch("quiet", Some('q'), "ids alone"), switch("all", Some('a'), "of all namespaces")],
    notes: "-o json: one array, each before those that come from it",
    failure: 1,
    action: |cx| Box::pin(ls(cx)),
};

async fn ls(cx: Cx) -> Result<i32, Failure> {
    let mut list = Vec::new();
    let all = cx.args.has("all");
    if all {
        let client = cx.client().await?;
        for namespace in client.namespaces().list::<&str>(&[]).all().await? {
            list.extend(client.namespace(&namespace.name).grants().list().all().await?);
        }
    } else {
        list = cx.namespace().await?.grants().list().all().await?;
    }
    if cx.args.has("quiet") {
        cx.names(list.iter().map(|info| info.id.as_str()))?;
        return Ok(0);
    }
    if cx.json {
        cx.document(&list)?;
        return Ok(0);
    }
    let heads = ["NAMESPACE", "GRANT", "LABEL", "GIVES", "BY", "USED", "CREATED", "EXPIRES"];
    let mut table = Table::new(&heads[usize::from(!all)..]);
    // Each comes behind the one that it comes from.
    let mut path: Vec<&str> = Vec::new();
    for info in &list {
        let depth = path.iter().position(|id| *id == info.parent).map_or(0, |place| place + 1);
        path.truncate(depth);
        path.push(&info.id);
        let end = info.options.not_after;
        let row = [
            info.namespace.clone(),
            format!("{}{}", "  ".repeat(depth), info.id),
            info.options.label.clone(),
            what(info),
            how(info),
            info.holders.to_string(),
            show_age(info.created),
            if end == Timestamp::default() { "-".to_owned() } else { end.to_rfc3339() },
        ];
        table.row(row.into_iter().skip(usize::from(!all)));
    }
    table.print()?;
    Ok(0)
}

/// `coffer grant show`.
pub static SHOW: Command = Command {
    path: &["grant", "show"],
    about: "show all that is known of grants, as JSON",
    positionals: IDS,
    flags: &[],
    notes: "one JSON document for each; -o json puts each on one line",
    failure: 1,
    action: |cx| Box::pin(show(cx)),
};

async fn show(cx: Cx) -> Result<i32, Failure> {
    let grants = cx.namespace().await?.grants();
    show_each(&cx, async |id| grants.get(id).info().await).await
}

/// `coffer grant explain`.
pub static EXPLAIN: Command = Command {
    path: &["grant", "explain"],
    about: "list everything that the holder of a grant can do",
    positionals: &[ID],
    flags: &[],
    notes: "One method of the API to a line, as schema/wire/capnp has them. -o json: one array",
    failure: 1,
    action: |cx| Box::pin(explain(cx)),
};

async fn explain(cx: Cx) -> Result<i32, Failure> {
    let methods = cx.namespace().await?.grants().get(cx.args.at(0)).explain().await?;
    cx.names(methods.iter().map(String::as_str))?;
    Ok(0)
}

/// `coffer grant save`.
pub static SAVE: Command = Command {
    path: &["grant", "save"],
    about: "make a token of a grant",
    positionals: &[ID],
    flags: &[value("user", None, "UID", "the only user who can use it")],
    notes: "Prints the token, which is told once: who has it has the grant, by \"coffer --as TOKEN\". An older token of the\n\
            same grant is worth nothing from then on.",
    failure: 1,
    action: |cx| Box::pin(save(cx)),
};

async fn save(cx: Cx) -> Result<i32, Failure> {
    let uid = |text: &str| text.parse::<u32>().map_err(|_| "give the number of a user".to_owned());
    let user = cx.args.read("user", uid)?;
    let token = cx.namespace().await?.grants().get(cx.args.at(0)).save(user).await?;
    if cx.json {
        cx.document(&token)?
    } else {
        line(&token)?
    }
    Ok(0)
}

/// `coffer grant revoke`.
pub static REVOKE: Command = Command {
    path: &["grant", "revoke"],
    about: "take grants back, with all that come from them",
    positionals: IDS,
    flags: &[],
    notes: "What is under way through them ends with it. Containers that were made through them go on.",
    failure: 1,
    action: |cx| Box::pin(revoke(cx)),
};

async fn revoke(cx: Cx) -> Result<i32, Failure> {
    let grants = cx.namespace().await?.grants();
    each(&cx, async |id| Ok(grants.get(id).revoke().await?)).await
}

/// `coffer grant export`.
pub static EXPORT: Command = Command {
    path: &["grant", "export"],
    about: "make a socket that is a grant",
    positionals: &[ID, Positional { name: "DIRECTORY", times: Times::Once }],
    flags: &[],
    notes: "DIRECTORY is on the daemon's host, and made for root alone if it isn't there; in it is cofferdam.sock then, also after a\n\
            restart of the daemon. Whoever can connect to that holds the grant: make the directory before for whom it is to be.\n\
            \"coffer run --mount type=bind,src=DIRECTORY,dst=/grant,ro\" gives it to a container, and \"coffer --as DIRECTORY\" uses it.",
    failure: 1,
    action: |cx| Box::pin(export(cx)),
};

async fn export(cx: Cx) -> Result<i32, Failure> {
    let given = cx.args.at(1);
    let path = std::path::absolute(given).map_err(|e| Failure::usage(format!("grant export: {given:?}: {e}")))?;
    cx.namespace().await?.grants().get(cx.args.at(0)).export(&path.to_string_lossy()).await?;
    line(&path.join("cofferdam.sock").to_string_lossy())?;
    Ok(0)
}

/// `coffer grant unexport`.
pub static UNEXPORT: Command = Command {
    path: &["grant", "unexport"],
    about: "remove the sockets of grants, and end the connections that came by them",
    positionals: IDS,
    flags: &[],
    notes: "The grants stay, and so do their tokens.",
    failure: 1,
    action: |cx| Box::pin(unexport(cx)),
};

async fn unexport(cx: Cx) -> Result<i32, Failure> {
    let grants = cx.namespace().await?.grants();
    each(&cx, async |id| Ok(grants.get(id).unexport().await?)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flags: &[&str]) -> Result<GrantOptions, Failure> {
        let words = ["grant", "create"].iter().chain(flags).map(|&word| word.to_owned());
        options(&crate::commands::parse(words.collect())?)
    }

    #[test]
    fn bounds_are_as_their_help_says_and_none_of_nothing() {
        for flag in ["memory", "cpus", "pids", "storage", "containers", "calls", "disk", "uses"] {
            let failure = read(&[&format!("--{flag}"), "0"]).err().unwrap();
            assert!(failure.text.contains("would be no bound: leave it out"), "{}", failure.text);
        }
        for storage in ["10M", "size=10M"] {
            assert_eq!(read(&["--storage", storage]).unwrap().storage, 10 << 20);
        }
        assert_eq!(read(&["--cpus", "0.5"]).unwrap().nano_cpus, 500_000_000);
        assert_eq!(read(&[]).unwrap(), GrantOptions::default());
    }
}
