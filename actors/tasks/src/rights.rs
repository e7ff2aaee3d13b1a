//! What a container asks of the host, and the right that it takes.

use cofferdam_images::ResolvedImage;
use cofferdam_log::Options as Log;
use cofferdam_oci::spec::{Mount as OptionMount, Network, Seccomp, Ulimit};
use cofferdam_types::{Any, Ceiling, Error, Name, Result};
use oci_spec::runtime::Spec;

use crate::{
    messages::{Input, NewContainer, Output, Stdio},
    runtimes::Runtimes,
};

/// Z3: what touches the host is checked on every path that can set it, against the ceiling that the record keeps.
pub(crate) fn within(new: &NewContainer, ceiling: &Ceiling, runtimes: &Runtimes) -> Result<()> {
    let options = &new.options;
    if !ceiling.nets.is_all() {
        // What a spec of one's own or a runtime of one's own does there is not known before.
        let whose =
            new.spec.is_some() || !runtimes.are_given(&new.runtime) || options.namespaces.contains_key("network");
        if whose || !ceiling.nets.has(net(&options.network)) {
            let asked = if whose { "a spec, a namespace or a runtime of its own" } else { net(&options.network) };
            let why = format!(
                "asks for {asked}, and the grant that it is made through says which networks there are: {}",
                ceiling.nets.0.iter().map(|nets| nets.join(" or ")).collect::<Vec<_>>().join("; of these ")
            );
            return Err(Error::denied("network", "", why));
        }
    }
    if ceiling.host {
        return Ok(());
    }
    if matches!(options.network, Network::Named(_)) && !ceiling.may_connect() {
        let why = "asks for a network of the host's configuration, which needs the networks right";
        return Err(Error::denied("container", "", why));
    }
    let wish = if new.checkpoint {
        "a checkpoint to be restored"
    } else if new.spec.is_some() {
        "a spec of its own"
    } else if new.rootfs.is_some() {
        "a directory of the host as its root"
    } else if options.network == Network::Host {
        "the host's network"
    } else if matches!(options.network, Network::Path(_)) {
        "a network namespace by path"
    } else if options.mounts.iter().any(|m| matches!(m, OptionMount::Bind { .. })) {
        "a mount of a host path"
    } else if !options.cap_add.is_empty() {
        "more capabilities"
    } else if options.seccomp == Seccomp::Unconfined {
        "no system call filter"
    } else if options.seccomp_profile.is_some() {
        "a system call filter of its own"
    } else if options.oom_score_adj.is_some_and(|score| score < 0) {
        "to be spared when memory is short"
    } else if !options.devices.is_empty() {
        "a device of the host"
    } else if options.apparmor.is_some() {
        "an AppArmor profile of its own"
    } else if !options.namespaces.is_empty() {
        "a namespace that is not its own"
    } else if options.cgroup.is_some() {
        "a cgroup of its own choice"
    } else if !runtimes.are_given(&new.runtime) {
        let why = format!(
            "asks for a runtime of its own, which needs the host right; there are {}, and others by `cofferd --runtime`",
            runtimes.names()
        );
        return Err(Error::denied("container", "", why));
    } else if let Some(why) = options.ulimits.iter().find_map(above_ours) {
        return Err(Error::denied("container", "", why));
    } else if new.runtime_options != Any::default() {
        "options of the runtime"
    } else if !options.annotations.is_empty() && !matches!(&*new.runtime, "" | "native") {
        // L2: which of them are orders to it only that runtime knows.
        "annotations for a runtime of others"
    } else {
        return Ok(());
    };
    Err(Error::denied("container", "", format!("asks for {wish}, which needs the host right")))
}

/// Limits of a process by which it takes from the host what no bound of its cgroup counts: processors before everybody else
/// (where the kernel has no groups for realtime, also beyond its share), memory that stays where it is, and what waits in queues
/// of the kernel, which is the container's own memory on newer kernels alone.
const OF_THE_HOST: [(&str, nix::sys::resource::Resource); 5] = {
    use nix::sys::resource::Resource as R;
    [
        ("RTPRIO", R::RLIMIT_RTPRIO),
        ("NICE", R::RLIMIT_NICE),
        ("MEMLOCK", R::RLIMIT_MEMLOCK),
        ("SIGPENDING", R::RLIMIT_SIGPENDING),
        ("MSGQUEUE", R::RLIMIT_MSGQUEUE),
    ]
};

/// Why a limit takes the right to the host, if it does: it is one of those, and higher than ours, which is what a process has that
/// asks for nothing.
fn above_ours(asked: &Ulimit) -> Option<String> {
    let name = asked.name.to_ascii_uppercase();
    let (name, resource) = OF_THE_HOST.into_iter().find(|(one, _)| name.trim_start_matches("RLIMIT_") == *one)?;
    let (_, ours) = nix::sys::resource::getrlimit(resource).unwrap_or_default();
    (asked.hard.max(asked.soft) > ours).then(|| {
        format!("asks for a limit {name} above {ours}, which is what it has without; more needs the host right")
    })
}

/// A network as a grant names it.
pub(crate) fn net(network: &Network) -> &str {
    match network {
        Network::None => "none",
        Network::Host => "host",
        Network::Path(path) => path,
        Network::Container(_) => "container",
        Network::Named(name) => name,
    }
}

/// Whether what a container is made from is within the ceiling.
pub(crate) fn made_from(image: &ResolvedImage, name: &Name, ceiling: &Ceiling) -> Result<()> {
    if ceiling.images.has(name, &[&image.target.digest, &image.manifest.digest]) {
        return Ok(());
    }
    Err(not_among(name))
}

/// The error for any other image: of one that isn't even named by the grant nothing else is told.
pub(crate) fn not_among(name: &Name) -> Error {
    Error::denied("image", name, "is not among those that containers may be made from through this grant")
}

/// Gives a container that asks for no limit the one of the ceiling.
pub(crate) fn limit(new: &mut NewContainer, ceiling: &Ceiling) -> Result<()> {
    let options = &mut new.options;
    options.memory = options.memory.or(ceiling.memory);
    options.pids = options.pids.or(ceiling.pids);
    options.cpus = options.cpus.or_else(|| ceiling.nano_cpus.map(|nano| nano as f64 / 1e9));
    match ceiling.storage {
        Some(most) if new.storage > most => Err(beyond("storage", &format!("{most} bytes"))),
        Some(most) if new.storage == 0 => {
            new.storage = most;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether what a log may take is what it takes that says nothing: where a grant bounds the disk, more would be a way round that.
pub(crate) fn logs_within(log: &Log) -> Result<()> {
    let most = |log: &Log| log.max_size.saturating_mul(log.max_files.into());
    let usual = most(&Log::default());
    if log.driver.format().is_none() || most(log) <= usual {
        return Ok(());
    }
    let why = format!(
        "would keep {} bytes of what it writes, and the grant that it is made through has a bound of the disk, beside which a log \
         takes {usual} at most: give less of max-size or of max-file",
        most(log)
    );
    Err(Error::denied("container", "", why))
}

fn beyond(what: &str, most: &str) -> Error {
    let why = format!("would have more than the grant lets it that it was made through: at most {most} of {what}");
    Error::denied("container", "", why)
}

/// Z3: whether a spec keeps within the ceiling, whichever way it came: what counts are the limits that it ends up with.
pub(crate) fn bounded(spec: &[u8], ceiling: &Ceiling) -> Result<()> {
    if ceiling.memory.is_none() && ceiling.nano_cpus.is_none() && ceiling.pids.is_none() {
        return Ok(());
    }
    let bad = |e: serde_json::Error| Error::invalid("spec", "", format!("is not an OCI runtime spec: {e}"));
    let spec: Spec = serde_json::from_slice(spec).map_err(bad)?;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let within = |value: Option<i64>, most: u64| {
        value.is_some_and(|value| u64::try_from(value).is_ok_and(|v| v > 0 && v <= most))
    };
    if let Some(most) = ceiling.memory {
        let memory = resources.memory().unwrap_or_default();
        // Swap counts both; where it isn't said it is as much again, and what is said must not be more.
        let swap =
            memory.swap().is_none_or(|swap| u64::try_from(swap).is_ok_and(|swap| swap <= most.saturating_mul(2)));
        if !within(memory.limit(), most) || !swap {
            return Err(beyond("memory", &format!("{most} bytes")));
        }
        // They are the host's, and memory that the limit of memory doesn't count.
        if resources.hugepage_limits().iter().flatten().any(|pages| pages.limit() != 0) {
            return Err(beyond("huge pages", "0 bytes"));
        }
    }
    if let Some(most) = ceiling.nano_cpus {
        let cpu = resources.cpu().clone().unwrap_or_default();
        let period = cpu.period().filter(|period| *period > 0).unwrap_or(100_000);
        // A thousandth of a microsecond's rounding is nobody's gain.
        let most = (u128::from(most) * u128::from(period)).div_ceil(1_000_000_000);
        if !within(cpu.quota(), u64::try_from(most).unwrap_or(u64::MAX)) {
            let most = ceiling.nano_cpus.unwrap_or_default() as f64 / 1e9;
            return Err(beyond("the processors", &most.to_string()));
        }
    }
    if let Some(most) = ceiling.pids
        && !within(resources.pids().as_ref().map(|pids| pids.limit()), most)
    {
        return Err(beyond("processes", &most.to_string()));
    }
    Ok(())
}

/// The same for streams that are paths of the host.
pub(crate) fn streams_within(stdio: &Stdio, ceiling: &Ceiling) -> Result<()> {
    let outputs = [&stdio.stdout, &stdio.stderr];
    let host = matches!(stdio.stdin, Input::Fifo(_) | Input::File(_))
        || outputs.iter().any(|output| matches!(output, Output::Fifo(_) | Output::File(_)));
    if host && !ceiling.host {
        return Err(Error::denied("stream", "", "is a path of the host, which needs the host right"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cofferdam_oci::spec::Options;
    use cofferdam_types::{Code, Name};

    use super::*;

    fn runtimes() -> Runtimes {
        Runtimes::default()
    }

    fn asks(options: Options) -> NewContainer {
        NewContainer {
            id: None,
            image: Some(Name::new("image").unwrap()),
            rootfs: None,
            platform: cofferdam_types::Platform::host(),
            options,
            spec: None,
            runtime_options: Any::default(),
            labels: Default::default(),
            runtime: String::new(),
            driver: String::new(),
            storage: 0,
            remove_on_exit: false,
            log: Default::default(),
            group: None,
            checkpoint: false,
        }
    }

    // Z3: of networks a grant says which, whatever rights there are; what can't be known before is none of them.
    #[test]
    fn what_is_asked_for_is_one_of_the_networks_of_the_grant() {
        let of = |nets: &[&[&str]]| {
            let nets = nets.iter().map(|some| some.iter().map(|net| (*net).to_owned()).collect()).collect();
            Ceiling { nets: cofferdam_types::Nets(nets), ..Ceiling::FULL }
        };
        let may = |network: Network, ceiling: &Ceiling| {
            within(&asks(Options { network, ..Options::default() }), ceiling, &runtimes())
                .map_err(|e| (e.code, e.kind.into_owned()))
        };
        let refused = || Err((Code::Denied, "network".to_owned()));
        let other = || Network::Container(cofferdam_types::Id::new("other").unwrap());
        let named = |name: &str| Network::Named(name.into());
        let ceiling = of(&[&["none", "red", "/run/netns/blue"]]);
        for there in [Network::None, named("red"), Network::Path("/run/netns/blue".into())] {
            assert_eq!(may(there, &ceiling), Ok(()));
        }
        for no in [Network::Host, other(), named("blue"), Network::Path("/run/netns/red".into())] {
            assert_eq!(may(no, &ceiling), refused());
        }
        // Of two lists both must have it.
        let both = of(&[&["none", "red"], &["red", "host"]]);
        assert_eq!(
            (may(named("red"), &both), may(Network::None, &both), may(Network::Host, &both)),
            (Ok(()), refused(), refused())
        );
        let spec = NewContainer { spec: Some(Default::default()), ..asks(Options::default()) };
        let runtime = NewContainer { runtime: "/usr/bin/mine".into(), ..asks(Options::default()) };
        for unknown in [&spec, &runtime] {
            within(unknown, &Ceiling::FULL, &runtimes()).unwrap();
            assert_eq!(within(unknown, &ceiling, &runtimes()).unwrap_err().code, Code::Denied);
        }
    }

    // Z3: every option that reaches the host.
    #[test]
    fn what_reaches_the_host_needs_the_right() {
        let asked = |options: serde_json::Value| {
            let new = asks(serde_json::from_value(options).unwrap());
            within(&new, &Ceiling::FULL, &runtimes()).unwrap();
            within(&new, &Ceiling::default(), &runtimes()).map_err(|e| e.code)
        };
        for harmless in [
            serde_json::json!({}),
            serde_json::json!({"oom_score_adj": 5, "userns": [{"container": 0, "host": 1, "size": 1}]}),
        ] {
            assert_eq!(asked(harmless), Ok(()));
        }
        for reaching in [
            serde_json::json!({"network": "host"}),
            serde_json::json!({"mounts": [{"type": "bind", "source": "/a", "target": "/b"}]}),
            serde_json::json!({"cap_add": ["KILL"]}),
            serde_json::json!({"seccomp": "unconfined"}),
            serde_json::json!({"seccomp_profile": {"defaultAction": "SCMP_ACT_ALLOW"}}),
            serde_json::json!({"oom_score_adj": -1}),
            serde_json::json!({"devices": [{"source": "/dev/null"}]}),
            serde_json::json!({"apparmor": "unconfined"}),
            serde_json::json!({"namespaces": {"pid": "host"}}),
            serde_json::json!({"cgroup": "/a"}),
        ] {
            assert_eq!(asked(reaching.clone()), Err(Code::Denied), "{reaching}");
        }
        let restored = NewContainer { checkpoint: true, ..asks(Options::default()) };
        within(&restored, &Ceiling::FULL, &runtimes()).unwrap();
        assert_eq!(within(&restored, &Ceiling::default(), &runtimes()).unwrap_err().code, Code::Denied);
        // L2: what orders the native runtime takes from them is known: none.
        let annotated = |runtime: &str| {
            let options = serde_json::from_value(serde_json::json!({"annotations": {"a.example/b": "c"}})).unwrap();
            let new = NewContainer { runtime: runtime.into(), ..asks(options) };
            within(&new, &Ceiling::FULL, &runtimes()).unwrap();
            within(&new, &Ceiling::default(), &runtimes()).map_err(|e| e.code)
        };
        assert_eq!(["", "native"].map(annotated), [Ok(()), Ok(())]);
        assert_eq!(["runc", "kata"].map(annotated), [Err(Code::Denied), Err(Code::Denied)]);
        // Any program of the host is no runtime.
        let by = |runtime: &str| {
            let new = NewContainer { runtime: runtime.into(), ..asks(Options::default()) };
            within(&new, &Ceiling::FULL, &runtimes()).unwrap();
            within(&new, &Ceiling::default(), &runtimes()).map_err(|e| (e.code, e.message.contains("native, crun")))
        };
        assert_eq!(["", "native", "runc", "crun"].map(by), [Ok(()); 4]);
        assert_eq!(["sh", "kata", "/usr/bin/runc", "."].map(by), [Err((Code::Denied, true)); 4]);
        // What a process has that asks for nothing is no more than that, by whichever name.
        for (name, resource) in OF_THE_HOST {
            let (_, ours) = nix::sys::resource::getrlimit(resource).unwrap();
            for name in [name.to_owned(), name.to_lowercase(), format!("RLIMIT_{name}")] {
                let limit = |hard: u64| serde_json::json!({"ulimits": [{"name": name, "soft": 0, "hard": hard}]});
                assert_eq!(asked(limit(ours)), Ok(()), "{name}");
                if ours < u64::MAX {
                    assert_eq!(asked(limit(ours + 1)), Err(Code::Denied), "{name}");
                    assert_eq!(asked(limit(u64::MAX)), Err(Code::Denied), "{name}");
                }
            }
        }
        assert_eq!(asked(serde_json::json!({"ulimits": [{"name": "core", "soft": 0, "hard": u64::MAX}]})), Ok(()));
        let rooted = NewContainer { image: None, rootfs: Some("/srv".into()), ..asks(Options::default()) };
        within(&rooted, &Ceiling::FULL, &runtimes()).unwrap();
        assert_eq!(within(&rooted, &Ceiling::default(), &runtimes()).unwrap_err().code, Code::Denied);
    }

    // Z3 of the negative tests.
    #[test]
    fn networks_take_their_rights() {
        let may = |network: Network, ceiling: &Ceiling| match within(
            &asks(Options { network, ..Options::default() }),
            ceiling,
            &runtimes(),
        ) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.code, Code::Denied);
                false
            }
        };
        let none = Ceiling::default();
        let networks = Ceiling { networks: true, ..none.clone() };
        let named = || Network::Named("blue".into());
        for (network, least) in [(Network::None, 0), (named(), 1), (Network::Path("/x".into()), 2), (Network::Host, 2)]
        {
            for (rights, ceiling) in [&none, &networks, &Ceiling::FULL].into_iter().enumerate() {
                assert_eq!(may(network.clone(), ceiling), rights >= least, "{network:?} with {ceiling:?}");
            }
        }
        // Before there was that right whoever might reach the host might do all.
        let old = Ceiling { host: true, ..none.clone() };
        assert!(may(named(), &old) && old.intersect(&Ceiling::FULL).may_connect());
        assert!(!none.intersect(&Ceiling::FULL).may_connect());
    }

    // Z3: by whichever way a spec comes.
    #[test]
    fn z3_a_spec_keeps_within_the_ceiling() {
        let ceiling = Ceiling { memory: Some(1000), nano_cpus: Some(500_000_000), pids: Some(10), ..Ceiling::FULL };
        let may = |resources: serde_json::Value| {
            let spec = serde_json::json!({"ociVersion": "1.0.2", "linux": {"resources": resources}});
            match bounded(spec.to_string().as_bytes(), &ceiling) {
                Ok(()) => true,
                Err(error) => {
                    assert_eq!(error.code, Code::Denied, "{error}");
                    false
                }
            }
        };
        let good = serde_json::json!({
            "memory": {"limit": 1000, "swap": 2000}, "cpu": {"quota": 50_000, "period": 100_000}, "pids": {"limit": 10},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        });
        assert!(may(good.clone()));
        for (pointer, value) in [
            ("/memory/limit", serde_json::json!(1001)),
            ("/memory/limit", serde_json::json!(-1)),
            ("/memory/limit", serde_json::json!(0)),
            ("/memory/swap", serde_json::json!(-1)),
            ("/memory/swap", serde_json::json!(2001)),
            ("/memory", serde_json::json!({})),
            ("/hugepageLimits/0/limit", serde_json::json!(1)),
            ("/cpu/quota", serde_json::json!(50_001)),
            ("/cpu/quota", serde_json::json!(-1)),
            ("/cpu/period", serde_json::json!(99_000)),
            ("/cpu", serde_json::json!({})),
            ("/pids/limit", serde_json::json!(11)),
            ("/pids/limit", serde_json::json!(-1)),
            ("/pids/limit", serde_json::json!(0)),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value.clone();
            assert!(!may(bad), "{pointer} {value}");
        }
        assert!(!may(serde_json::json!({})));
        bounded(b"{}", &Ceiling::default()).unwrap();
    }

    #[test]
    fn who_asks_for_no_limit_gets_that_of_the_ceiling() {
        let ceiling =
            Ceiling { memory: Some(7), nano_cpus: Some(500_000_000), pids: Some(3), storage: Some(9), ..Ceiling::NONE };
        let mut new = asks(Options::default());
        limit(&mut new, &ceiling).unwrap();
        assert_eq!(
            (new.options.memory, new.options.cpus, new.options.pids, new.storage),
            (Some(7), Some(0.5), Some(3), 9)
        );
        let mut more = NewContainer { storage: 10, ..asks(Options::default()) };
        assert_eq!(limit(&mut more, &ceiling).unwrap_err().code, Code::Denied);
        let mut less = NewContainer { storage: 8, ..asks(Options { memory: Some(6), ..Options::default() }) };
        limit(&mut less, &ceiling).unwrap();
        assert_eq!((less.options.memory, less.storage), (Some(6), 8));
    }

    #[test]
    fn where_the_disk_is_bounded_a_log_takes_what_it_takes_that_says_nothing() {
        let log = |driver: &str, given: &[(&str, &str)]| {
            let given = given.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            logs_within(&Log::parse(driver, &given).unwrap()).map_err(|e| e.code)
        };
        for driver in ["local", "json-file", "cri", "journald", "none"] {
            assert_eq!(log(driver, &[]), Ok(()), "{driver}");
        }
        for driver in ["local", "json-file", "cri"] {
            // As much of it in other pieces.
            assert_eq!(log(driver, &[("max-size", "100m"), ("max-file", "1")]), Ok(()), "{driver}");
            assert_eq!(log(driver, &[("max-size", "1m"), ("max-file", "100")]), Ok(()), "{driver}");
            for more in [("max-size", "21m"), ("max-file", "6")] {
                assert_eq!(log(driver, &[more]), Err(Code::Denied), "{driver} {more:?}");
            }
        }
        let most = Log { max_size: u64::MAX, max_files: u32::MAX, ..Log::default() };
        assert!(logs_within(&most).unwrap_err().message.contains("takes 104857600 at most"));
    }

    #[test]
    fn streams_that_are_paths_need_the_host_right() {
        let path = || "/run/x".to_owned();
        let streams = [
            Stdio { stdin: Input::Fifo(path()), ..Stdio::default() },
            Stdio { stdin: Input::File(path()), ..Stdio::default() },
            Stdio { stdout: Output::Fifo(path()), ..Stdio::default() },
            Stdio { stderr: Output::File(path()), ..Stdio::default() },
        ];
        for stdio in streams {
            let error = streams_within(&stdio, &Ceiling::default()).unwrap_err();
            assert_eq!(error.code, Code::Denied, "{stdio:?}");
            streams_within(&stdio, &Ceiling::FULL).unwrap();
        }
        let own = Stdio { stdin: Input::Pipe, ..Stdio::default() };
        streams_within(&own, &Ceiling::default()).unwrap();
    }
}
