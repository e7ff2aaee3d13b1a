//! What a driver, and the shim around it, can be told beside the spec: a container's runtime options.

use std::path::{Component, Path, PathBuf};

use cofferdam_types::{Any, Error, Result};
use serde::{Deserialize, Serialize};

/// The runtime options of a container. What isn't said is the driver's own choice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RuntimeOptions {
    /// Where a runc-compatible binary keeps its state, one directory per namespace below it.
    pub root: Option<PathBuf>,
    /// A runc-compatible binary has systemd make the cgroup.
    pub systemd_cgroup: bool,
    /// A runc-compatible binary changes the root by chroot: for hosts that run from a ramdisk.
    pub no_pivot: bool,
    /// The processes keep the shim's session keyring.
    pub no_new_keyring: bool,
    /// A cgroup that exists, which the shim joins in every hierarchy that has it.
    pub shim_cgroup: Option<String>,
    /// How likely the kernel is to choose the shim when memory runs out; -999 otherwise.
    pub shim_oom_score_adj: Option<i32>,
    /// Who owns the pipes that the processes get as their streams.
    pub io_uid: Option<u32>,
    /// The group that owns them.
    pub io_gid: Option<u32>,
    /// The criu that a runc-compatible binary uses.
    pub criu_path: Option<PathBuf>,
}

impl RuntimeOptions {
    /// The type of the record that holds them, as JSON.
    pub const TYPE: &str = "types.cofferdam.dev/runtime-options/1";

    /// Reads what came with a container; nothing at all are the defaults.
    pub fn read(options: &Any) -> Result<RuntimeOptions> {
        if *options == Any::default() {
            return Ok(RuntimeOptions::default());
        }
        if options.type_url != RuntimeOptions::TYPE {
            let why = format!("is not a type of runtime options: give {} with JSON", RuntimeOptions::TYPE);
            return Err(Error::invalid("runtime options", &options.type_url, why));
        }
        RuntimeOptions::parse(&options.value)
    }

    /// Reads the JSON.
    pub fn parse(json: &[u8]) -> Result<RuntimeOptions> {
        // A list would be read as the values in their order.
        if !json.trim_ascii_start().starts_with(b"{") {
            return Err(Error::invalid("runtime options", "", "are not a JSON object"));
        }
        let options: RuntimeOptions =
            serde_json::from_slice(json).map_err(|e| Error::invalid("runtime options", "", e.to_string()))?;
        let paths = [("root", &options.root), ("criuPath", &options.criu_path)];
        for (name, path) in paths.into_iter().filter_map(|(name, path)| Some((name, path.as_deref()?))) {
            if !plain(path) {
                return Err(Error::invalid("runtime options", name, "must be an absolute path without `..`"));
            }
        }
        if options.shim_cgroup.as_ref().is_some_and(|path| path == "/" || !plain(Path::new(path))) {
            return Err(Error::invalid(
                "runtime options",
                "shimCgroup",
                "must be a path below the root of the hierarchies, such as /shims, without `..`",
            ));
        }
        if options.shim_oom_score_adj.is_some_and(|score| !(-1000..=1000).contains(&score)) {
            return Err(Error::invalid("runtime options", "shimOomScoreAdj", "goes from -1000 to 1000"));
        }
        // To chown(2) it means "leave as it is".
        for (name, id) in [("ioUid", options.io_uid), ("ioGid", options.io_gid)] {
            if id == Some(u32::MAX) {
                return Err(Error::invalid("runtime options", name, "is out of range"));
            }
        }
        Ok(options)
    }

    /// As JSON.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::internal("runtime options", "", e.to_string()))
    }

    /// Refuses what the native driver has no use for.
    pub fn check_native(&self) -> Result<()> {
        let others = [
            ("root", self.root.is_some(), "it keeps no state of its own"),
            ("systemdCgroup", self.systemd_cgroup, "it makes cgroups itself"),
            ("noPivot", self.no_pivot, "it always changes the root by pivot_root"),
            ("criuPath", self.criu_path.is_some(), "it has no use for criu"),
        ];
        match others.into_iter().find(|(_, given, _)| *given) {
            Some((name, _, why)) => Err(Error::unimplemented(
                "runtime options",
                name,
                format!("the native driver can't take it ({why}): leave it out or choose a runc-compatible runtime"),
            )),
            None => Ok(()),
        }
    }
}

fn plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && path.to_str().is_some_and(|text| !text.chars().any(char::is_control))
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;

    use super::*;

    fn any(json: &str) -> Any {
        Any { type_url: RuntimeOptions::TYPE.into(), value: json.into() }
    }

    #[test]
    fn options_are_read_strictly() {
        assert_eq!(RuntimeOptions::read(&Any::default()).unwrap(), RuntimeOptions::default());
        let read = RuntimeOptions::read(&any(
            r#"{"root": "/run/r", "systemdCgroup": true, "shimCgroup": "/shims/a", "ioUid": 7, "criuPath": "/opt/criu"}"#,
        ))
        .unwrap();
        let expected = RuntimeOptions {
            root: Some("/run/r".into()),
            systemd_cgroup: true,
            shim_cgroup: Some("/shims/a".into()),
            io_uid: Some(7),
            criu_path: Some("/opt/criu".into()),
            ..RuntimeOptions::default()
        };
        assert_eq!(read, expected);
        assert_eq!(RuntimeOptions::parse(&read.to_json().unwrap()).unwrap(), read);

        let foreign = Any { type_url: "containerd.linux.runc.RuncOptions".into(), value: b"{}".into() };
        assert_eq!(RuntimeOptions::read(&foreign).unwrap_err().code, Code::InvalidArgument);
        for (bad, named) in [
            (r#"{"rooot": "/run/r"}"#, "rooot"),
            (r#"{"systemdCgroup": "yes"}"#, "yes"),
            (r#"{"root": "run"}"#, "root"),
            (r#"{"root": "/run/../etc"}"#, "root"),
            (r#"{"criuPath": "/a\nb"}"#, "criuPath"),
            (r#"{"shimCgroup": "/"}"#, "shimCgroup"),
            (r#"{"shimCgroup": "a/../.."}"#, "shimCgroup"),
            (r#"{"ioUid": -1}"#, "-1"),
            (r#"{"ioGid": 4294967295}"#, "ioGid"),
            (r#"{"ioUid": 4294967296}"#, "4294967296"),
            (r#"{"shimOomScoreAdj": 1001}"#, "shimOomScoreAdj"),
            (r#"{"root": "/a", "root": "/b"}"#, "root"),
            ("[]", "not a JSON object"),
            ("", "not a JSON object"),
            ("{", "EOF"),
        ] {
            let error = RuntimeOptions::read(&any(bad)).unwrap_err();
            assert_eq!((error.code, &*error.kind), (Code::InvalidArgument, "runtime options"), "{bad}");
            assert!(error.to_string().contains(named), "{bad}: {error}");
        }
    }

    #[test]
    fn what_the_native_driver_has_no_use_for_is_refused_by_name() {
        for (json, name) in [
            (r#"{"root": "/run/r"}"#, "root"),
            (r#"{"systemdCgroup": true}"#, "systemdCgroup"),
            (r#"{"noPivot": true}"#, "noPivot"),
            (r#"{"criuPath": "/opt/criu"}"#, "criuPath"),
        ] {
            let error = RuntimeOptions::parse(json.as_bytes()).unwrap().check_native().unwrap_err();
            assert_eq!((error.code, &*error.id), (Code::Unimplemented, name));
        }
        let shims = r#"{"noNewKeyring": true, "shimCgroup": "/x", "shimOomScoreAdj": 0, "ioUid": 1, "ioGid": 1}"#;
        RuntimeOptions::parse(shims.as_bytes()).unwrap().check_native().unwrap();
    }
}
