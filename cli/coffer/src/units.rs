//! Sizes, times, signals and other small texts, read and written.

use std::time::Duration;

use cofferdam_client::{BindMount, Device, IdMap, MountSource, Network, PortMapping, Protocol, Rlimit};
use cofferdam_types::Timestamp;
pub use cofferdam_types::show_size;

/// A size such as `512m`, `1.5GiB` or `4096`; units are powers of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let power = match unit {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err("give a number of bytes, or one with k, m, g or t behind it".into()),
    };
    let scale = 1u64 << (10 * power);
    let value = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(scale),
        Err(_) => number.parse::<f64>().ok().map(|part| part * scale as f64).filter(|v| *v < 9e18).map(|v| v as u64),
    };
    value.ok_or_else(|| "give a number of bytes, or one with k, m, g or t behind it".into())
}

/// A size of something that must have one: 0 would be no limit at all to a tmpfs.
pub fn room(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("give a size over 0".into()),
        bytes => Ok(bytes),
    }
}

/// The room that a container has for what it writes: `size=` and a size.
pub fn storage(text: &str) -> Result<u64, String> {
    text.strip_prefix("size=").ok_or_else(|| "give size=SIZE, such as size=10g".to_owned()).and_then(room)
}

/// A number of processors such as `1.5`, in billionths; 0 is no limit.
pub fn cpus(text: &str) -> Result<u64, String> {
    let value: f64 = text.parse().map_err(|_| "give a number of processors, such as 1.5")?;
    if value != 0.0 && !(0.01..=65536.0).contains(&value) {
        return Err("give a number of processors between 0.01 and 65536, or 0 for no limit".into());
    }
    Ok((value * 1e9).round() as u64)
}

/// A plain number.
pub fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "give a whole number".into())
}

/// A signal: a number, or a name with or without SIG.
pub fn signal(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse::<u32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err("signals go from 1 to 64".into()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    if let Some(offset) = name.strip_prefix("SIGRTMIN+").and_then(|n| n.parse::<u32>().ok()).filter(|n| *n <= 30) {
        return Ok(34 + offset);
    }
    let signal: nix::sys::signal::Signal =
        name.parse().map_err(|_| "give a number or a name such as TERM, HUP or KILL")?;
    Ok(signal as u32)
}

/// A number of things, in words.
pub fn counted(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A time in UTC such as `2026-11-25T03:40:17Z` or `2026-11-25`, or an age such as `90s`, `10m`, `1h30m` or `2d`.
pub fn moment(text: &str) -> Result<Timestamp, String> {
    const FORM: &str = "give a time in UTC such as 2026-11-25T03:40:17Z, or an age such as 90s, 10m, 1h30m or 2d";
    let day = Timestamp::parse_rfc3339(&format!("{text}T00:00:00Z"));
    if let Some(time) = Timestamp::parse_rfc3339(text).or(day) {
        return Ok(time);
    }
    let seconds = seconds(text).ok_or(FORM)?;
    // An age beyond 1970 is everything.
    Ok(Timestamp(Timestamp::now().0.saturating_sub(seconds.saturating_mul(1_000_000_000)).max(1)))
}

/// A span of time such as `90s`, `10m`, `1h30m` or `2d`; not of nothing.
pub fn span(text: &str) -> Result<Duration, String> {
    let some = seconds(text).filter(|seconds| *seconds > 0);
    some.map(Duration::from_secs).ok_or_else(|| "give a span of time such as 90s, 10m, 1h30m or 2d".to_owned())
}

fn seconds(text: &str) -> Option<u64> {
    let (mut seconds, mut number) = (0u64, String::new());
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        let part = number.parse::<u64>().ok()?.checked_mul(unit)?;
        seconds = seconds.checked_add(part)?;
        number.clear();
    }
    (!text.is_empty() && number.is_empty()).then_some(seconds)
}

/// A stream of the daemon's host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostStream {
    /// A FIFO.
    Fifo(String),
    /// A file.
    File(String),
}

/// `fifo:///PATH` or `file:///PATH`.
pub fn host_stream(text: &str) -> Result<HostStream, String> {
    let path = |scheme| text.strip_prefix(scheme).filter(|path: &&str| path.starts_with('/')).map(str::to_owned);
    let found = path("fifo://").map(HostStream::Fifo).or_else(|| path("file://").map(HostStream::File));
    found.ok_or_else(|| "give fifo:///PATH or file:///PATH, a path of the daemon's host".to_owned())
}

/// `KEY=VALUE`; the value may be empty.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("give KEY=VALUE".into()),
    }
}

/// `KEY=VALUE`, or `KEY` for the value that it has here; `None` if it has none.
pub fn env(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() || text.starts_with('=') {
        return Err("give KEY=VALUE, or KEY for the value that it has here".into());
    }
    if text.contains('=') {
        return Ok(Some(text.to_owned()));
    }
    Ok(std::env::var(text).ok().map(|value| format!("{text}={value}")))
}

/// `type=bind,src=PATH,dst=PATH[,ro]` or `type=tmpfs,dst=PATH[,size=64m]`; `options=a:b` gives mount options.
pub fn mount(text: &str) -> Result<BindMount, String> {
    const FORM: &str = "give type=bind,src=PATH,dst=PATH[,ro] or type=tmpfs,dst=PATH[,size=64m]";
    let (mut kind, mut source, mut target, mut read_only) = ("bind", None, None, false);
    let (mut limit, mut options) = (None, Vec::new());
    for part in text.split(',') {
        let (key, value) = part.split_once('=').map_or((part, None), |(key, value)| (key, Some(value)));
        match (key, value) {
            ("type", Some(value)) => kind = value,
            ("src" | "source", Some(value)) => source = Some(value),
            ("dst" | "destination" | "target", Some(value)) => target = Some(value),
            ("ro" | "readonly", None | Some("true")) => read_only = true,
            ("ro" | "readonly", Some("false")) | ("rw", None) => read_only = false,
            ("size" | "tmpfs-size", Some(value)) => limit = Some(room(value)?),
            ("options", Some(value)) => options.extend(value.split(':').map(str::to_owned)),
            _ => return Err(format!("{part:?} is not known here: {FORM}")),
        }
    }
    let target = target.ok_or_else(|| format!("dst is missing: {FORM}"))?.to_owned();
    let source = match (kind, source, limit) {
        ("bind", Some(source), None) if source.starts_with('/') => MountSource::Host(source.to_owned()),
        ("bind", Some(source), None) => return Err(format!("src {source:?} must begin with '/'")),
        ("bind", None, _) => return Err(format!("src is missing: {FORM}")),
        ("bind", _, Some(_)) => return Err("size is for tmpfs".into()),
        ("tmpfs", None, limit) => MountSource::Tmpfs(limit.unwrap_or_default()),
        ("tmpfs", Some(_), _) => return Err("a tmpfs has no src".into()),
        (other, ..) => return Err(format!("type {other:?} is not known: {FORM}")),
    };
    Ok(BindMount { target, source, read_only, options })
}

/// `nofile=1024:2048`, or one number for both.
pub fn ulimit(text: &str) -> Result<Rlimit, String> {
    const FORM: &str = "give NAME=SOFT[:HARD], such as nofile=1024:2048; unlimited is a number too";
    let (name, limits) = text.split_once('=').ok_or(FORM)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let read = |text: &str| match text {
        "unlimited" | "-1" => Ok(u64::MAX),
        number => number.parse().map_err(|_| FORM),
    };
    let name = name.to_ascii_uppercase();
    let name = if name.starts_with("RLIMIT_") { name } else { format!("RLIMIT_{name}") };
    Ok(Rlimit { name, soft: read(soft)?, hard: read(hard)? })
}

/// `0:100000:65536`: the first id in the container, what it is on the host, how many.
pub fn id_map(text: &str) -> Result<IdMap, String> {
    const FORM: &str = "give CONTAINER:HOST:SIZE, such as 0:100000:65536";
    let numbers: Option<Vec<u32>> = text.split(':').map(|number| number.parse().ok()).collect();
    match numbers.as_deref() {
        Some([container, host, size @ 1..=u32::MAX]) => Ok(IdMap { container: *container, host: *host, size: *size }),
        _ => Err(FORM.into()),
    }
}

/// `/dev/fuse`, `/dev/sda:/dev/disk` or `/dev/sda:/dev/disk:r`.
pub fn device(text: &str) -> Result<Device, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let rights = |text: &str| !text.starts_with('/');
    let (host, target, access) = match parts[..] {
        [host] => (host, "", ""),
        [host, access] if rights(access) => (host, "", access),
        [host, target] => (host, target, ""),
        [host, target, access] => (host, target, access),
        _ => ("", "", ""),
    };
    if !host.starts_with('/') || !access.chars().all(|c| "rwm".contains(c)) {
        return Err("give HOST[:CONTAINER][:rwm], such as /dev/fuse or /dev/sda:/dev/disk:r".into());
    }
    Ok(Device { host_path: host.to_owned(), target: target.to_owned(), access: access.to_owned() })
}

/// -1000 to 1000.
pub fn oom_score(text: &str) -> Result<i32, String> {
    let score = text.parse().ok().filter(|score| (-1000..=1000).contains(score));
    score.ok_or_else(|| "give a number from -1000 to 1000".into())
}

/// `host` or a path.
pub fn namespace(text: &str) -> Result<String, String> {
    match text {
        "host" => Ok(text.to_owned()),
        path if path.starts_with('/') => Ok(text.to_owned()),
        _ => Err("give host, or the path of a namespace".into()),
    }
}

/// `none`, `host`, `path:PATH`, `container:ID`, or the name of a network.
pub fn network(text: &str) -> Result<Network, String> {
    Ok(match text.split_once(':') {
        None if text == "none" => Network::None,
        None if text == "host" => Network::Host,
        None if !text.is_empty() => Network::Named(text.to_owned()),
        Some(("path", path)) if path.starts_with('/') => Network::Path(path.to_owned()),
        Some(("container", id)) if !id.is_empty() => Network::Container(id.to_owned()),
        _ => return Err("give none, host, path:/PATH, container:ID or the name of a network".into()),
    })
}

/// `[ADDRESS:]HOST[-HOST]:CONTAINER[-CONTAINER][/PROTOCOL]`: one mapping for each port of the range.
pub fn ports(text: &str) -> Result<Vec<PortMapping>, String> {
    const FORM: &str = "give [ADDRESS:]HOST:CONTAINER[/tcp|udp|sctp], such as 8080:80 or 127.0.0.1:5353:53/udp; for both \
                        ports a range such as 8000-8009 will do";
    let (text, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((text, "tcp")) => (text, Protocol::Tcp),
        Some((text, "udp")) => (text, Protocol::Udp),
        Some((text, "sctp")) => (text, Protocol::Sctp),
        Some(_) => return Err(FORM.into()),
    };
    let (host, container) = text.rsplit_once(':').ok_or(FORM)?;
    let (address, host) = host.rsplit_once(':').map_or((None, host), |(address, host)| (Some(address), host));
    let bare = address.map(|a| a.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(a));
    let host_address = bare.map(str::parse).transpose().map_err(|_| FORM)?;
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        (0 < first && first <= last).then_some(first..=last)
    };
    let (host, container) = (range(host).ok_or(FORM)?, range(container).ok_or(FORM)?);
    if host.len() != container.len() {
        return Err(format!("{} ports can't lead to {}: give ranges of one length", host.len(), container.len()));
    }
    let both = host.zip(container);
    Ok(both
        .map(|(host_port, container_port)| PortMapping { host_port, container_port, protocol, host_address })
        .collect())
}

/// `NAME:ADDRESS`, where the address may have colons of its own; or `NAME=ADDRESS`.
pub fn host(text: &str) -> Result<(String, String), String> {
    let (name, address) = text.split_once(['=', ':']).ok_or("give NAME:ADDRESS, such as db:10.1.2.3")?;
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    Ok((name.to_owned(), bare.to_owned()))
}

/// How long something takes, roughly: `3 minutes`.
pub fn show_span(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    counted(number, unit)
}

/// How long ago something was: `3 minutes ago`.
pub fn show_age(time: Timestamp) -> String {
    if time.0 == 0 {
        return "-".to_owned();
    }
    format!("{} ago", show_span(Timestamp::now().seconds().saturating_sub(time.seconds())))
}

/// The beginning of a text, with a mark where it was cut.
pub fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_one_by_one_and_in_ranges() {
        let shown = |text: &str| ports(text).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown("8080:80"), ["8080->80/tcp"]);
        assert_eq!(shown("127.0.0.1:5353:53/udp"), ["127.0.0.1:5353->53/udp"]);
        assert_eq!(shown("[::1]:8000-8001:80-81"), ["[::1]:8000->80/tcp", "[::1]:8001->81/tcp"]);
        for bad in ["", "80", "0:80", "80:0", "80:65536", "2-1:2-1", "1-2:1", "x:80:80", "80:80/icmp", ":80:80", "a:b"]
        {
            assert!(ports(bad).is_err(), "{bad}");
        }
        assert_eq!(host("db:fd00::3").unwrap(), ("db".into(), "fd00::3".into()));
        assert_eq!(host("db=[fd00::3]").unwrap(), ("db".into(), "fd00::3".into()));
    }

    #[test]
    fn networks_are_told_apart() {
        assert_eq!(network("blue").unwrap(), Network::Named("blue".into()));
        assert_eq!(network("path:/run/netns/x").unwrap(), Network::Path("/run/netns/x".into()));
        assert_eq!(network("container:box").unwrap(), Network::Container("box".into()));
        for bad in ["", "path:x", "path:", "container:", "other:x"] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64M", 64 << 20),
            ("512m", 512 << 20),
            ("1.5g", 3 << 29),
            ("2GiB", 2 << 30),
            ("1kb", 1024),
            ("0", 0),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "m", "12x", "-1", "1.2.3", "99999999999t", "1e3"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn processors() {
        assert_eq!(cpus("1.5"), Ok(1_500_000_000));
        assert_eq!(cpus("0.01"), Ok(10_000_000));
        assert_eq!(cpus("0"), Ok(0));
        assert!(cpus("0.001").is_err() && cpus("-1").is_err() && cpus("NaN").is_err() && cpus("two").is_err());
    }

    #[test]
    fn signals() {
        for (text, number) in [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("hup", 1), ("usr1", 10), ("RTMIN+3", 37)] {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        assert!(signal("0").is_err() && signal("65").is_err() && signal("NOPE").is_err());
    }

    #[test]
    fn one_is_not_many() {
        let said = [0, 1, 2].map(|n| counted(n, "connection"));
        assert_eq!(said, ["0 connections", "1 connection", "2 connections"]);
    }

    #[test]
    fn mounts() {
        let bind = mount("type=bind,src=/srv,dst=/data,ro").unwrap();
        assert_eq!((bind.target.as_str(), bind.read_only), ("/data", true));
        assert_eq!(bind.source, MountSource::Host("/srv".into()));
        let tmpfs = mount("type=tmpfs,target=/tmp,size=64m,options=nosuid:noexec").unwrap();
        assert_eq!(tmpfs.source, MountSource::Tmpfs(64 << 20));
        assert_eq!(tmpfs.options, ["nosuid", "noexec"]);
        for bad in [
            "",
            "src=/a",
            "dst=/a",
            "src=a,dst=/b",
            "type=volume,src=/a,dst=/b",
            "type=tmpfs,src=/a,dst=/b",
            "src=/a,dst=/b,size=1m",
            "src=/a,dst=/b,colour=red",
            "type=tmpfs,dst=/b,size=0",
        ] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_and_pairs() {
        let limit = ulimit("nofile=1024:unlimited").unwrap();
        assert_eq!((limit.name.as_str(), limit.soft, limit.hard), ("RLIMIT_NOFILE", 1024, u64::MAX));
        assert_eq!(ulimit("RLIMIT_CORE=0").unwrap().hard, 0);
        assert!(ulimit("nofile").is_err() && ulimit("nofile=a").is_err());
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("a").is_err() && pair("=b").is_err());
        assert!(room("0").is_err() && room("0k").is_err() && room("1") == Ok(1));
        assert_eq!(env("A="), Ok(Some("A=".into())));
        assert_eq!(env("SURELY_NOT_SET_HERE"), Ok(None));
        assert!(env("PATH").unwrap().unwrap().starts_with("PATH="));
        assert!(env("=x").is_err());
    }

    #[test]
    fn spans() {
        assert_eq!(show_span(1), "1 second");
        assert_eq!(show_span(119), "119 seconds");
        assert_eq!(show_span(7199), "119 minutes");
        assert_eq!(show_span(86_400 * 3), "3 days");
        assert_eq!(show_age(Timestamp(0)), "-");
        assert_eq!(shorten("abcdef", 4), "abc…");
    }
}
