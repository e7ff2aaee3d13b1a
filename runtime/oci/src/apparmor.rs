//! The default AppArmor profile: what no process of a container may do on a kernel that has AppArmor, whatever its
//! capabilities and mounts.
//!
//! Its text is made here, for the host's own library of policies, and apparmor_parser gives it to the kernel.

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cofferdam_sys::program::{self, Streams};
use cofferdam_types::{Error, Result};

/// The profile's name.
pub const DEFAULT: &str = "cofferdam-default";

/// Far beyond what the parser takes.
const DEADLINE: Duration = Duration::from_secs(30);
/// The kernel lists what is loaded; a host has hundreds of profiles, and not megabytes.
const MAX_LIST: u64 = 1 << 20;

/// Whether the kernel has AppArmor, and it is on.
pub fn is_on() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

/// What is needed to load the profile.
#[derive(Debug)]
pub struct Loader {
    parser: PathBuf,
    /// What profiles include.
    library: PathBuf,
    /// The kernel's list of loaded profiles.
    list: PathBuf,
    /// Whether it was loaded by us: what is there under the name may be of an older version.
    loaded: Mutex<bool>,
}

impl Loader {
    /// `None` where the kernel has no AppArmor, doesn't show it, or nobody could load a profile into it.
    pub fn detect() -> Option<Loader> {
        let list = PathBuf::from("/sys/kernel/security/apparmor/profiles");
        let dirs = program::PATH.split(':').map(Path::new);
        let parser = dirs.map(|dir| dir.join("apparmor_parser")).find(|path| path.is_file())?;
        let there = is_on() && list.exists();
        there.then(|| Loader { parser, library: "/etc/apparmor.d".into(), list, loaded: Mutex::new(false) })
    }

    /// Loads the profile unless that was done and it is still there. Blocks for as long as the parser takes.
    pub fn load(&self) -> Result<&'static str> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if !*loaded || !self.is_listed() {
            self.parse(&profile(&self.library, &own_label()))?;
            *loaded = true;
        }
        Ok(DEFAULT)
    }

    fn is_listed(&self) -> bool {
        let mut text = String::new();
        let read = File::open(&self.list).and_then(|list| list.take(MAX_LIST).read_to_string(&mut text));
        // Each with its mode behind it.
        read.is_ok() && text.lines().any(|line| line.split(' ').next() == Some(DEFAULT))
    }

    fn parse(&self, text: &str) -> Result<()> {
        let fail = |why: String| {
            let say = "give the container the profile unconfined, or mend it";
            Error::failed_precondition("apparmor", DEFAULT, format!("can't be loaded: {why}: {say}"))
        };
        let memory = nix::sys::memfd::memfd_create(c"profile", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        let mut file = File::from(memory.map_err(|e| fail(e.to_string()))?);
        file.write_all(text.as_bytes()).and_then(|()| file.rewind()).map_err(|e| fail(e.to_string()))?;
        let mut command = program::command(&self.parser);
        // Past the cache on disk, over one of the same name.
        command.args(["--skip-cache", "--replace"]);
        match program::run(command, Streams::Input(file), DEADLINE) {
            Err(e) => Err(fail(format!("{}: {e}", self.parser.display()))),
            Ok(None) => Err(fail(format!("{} took more than 30 seconds", self.parser.display()))),
            Ok(Some(ended)) if ended.status.success() => Ok(()),
            Ok(Some(ended)) => {
                let said = String::from_utf8_lossy(&ended.output).trim().escape_debug().to_string();
                Err(fail(format!("{} ended with {}: {said}", self.parser.display(), ended.status)))
            }
        }
    }
}

/// What our own processes are confined to, which signal those of containers.
fn own_label() -> String {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let label = read("/proc/self/attr/apparmor/current").or_else(|| read("/proc/self/attr/current"));
    let label = label.unwrap_or_default();
    // Its mode follows in parentheses.
    let name = label.trim_end_matches(['\n', '\0']).split(" (").next().unwrap_or_default();
    if name.is_empty() { "unconfined".to_owned() } else { name.to_owned() }
}

/// The profile's text, with what there is in the host's library of policies.
fn profile(library: &Path, own_label: &str) -> String {
    let has = |name: &str| library.join(name).is_file();
    let abi = if has("abi/3.0") { "abi <abi/3.0>,\n" } else { "" };
    let global = if has("tunables/global") { "#include <tunables/global>" } else { "@{PROC}=/proc/" };
    let base = if has("abstractions/base") { "  #include <abstractions/base>\n" } else { "" };
    // Whatever is in the name: the parser reads patterns here.
    let quoted: String =
        own_label.chars().flat_map(|c| ("\"\\*?[]{}^,".contains(c)).then_some('\\').into_iter().chain([c])).collect();
    let peers = ["unconfined", "runc", "crun"].iter().map(|name| format!("  signal (receive) peer={name},\n"));
    let mut signals: String = peers.collect();
    if own_label != "unconfined" {
        signals.push_str(&format!("  signal (receive) peer=\"{quoted}\",\n"));
    }
    format!(
        r#"{abi}{global}

profile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{
{base}
  file,
  network,
  capability,
  umount,
  deny mount,

  # Whoever runs containers may end them; they may signal and trace each other.
{signals}  signal (send,receive) peer={DEFAULT},
  ptrace (trace,tracedby,read,readby) peer={DEFAULT},

  # Of /proc what is of processes may be written, and kernel.shm*; nothing else.
  deny @{{PROC}}/* w,
  deny @{{PROC}}/[^0-9s]*/** w,
  deny @{{PROC}}/s[^ey]*/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/k[^e]** w,
  deny @{{PROC}}/sys/kernel/[^s]** w,
  deny @{{PROC}}/sys/kernel/s[^h]** w,
  deny @{{PROC}}/sys/kernel/sh[^m]** w,
  deny @{{PROC}}/kcore rwklx,
  deny @{{PROC}}/sysrq-trigger rwklx,

  # Of /sys the cgroups.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;

    use super::*;

    /// A library with these files.
    fn library(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        dir
    }

    const ALL: [&str; 3] = ["abi/3.0", "tunables/global", "abstractions/base"];

    #[test]
    fn the_text_is_what_it_was() {
        let text = profile(library(&ALL).path(), "unconfined");
        assert_eq!(text, include_str!("apparmor.golden"), "a change of what containers can do: is it meant?");
    }

    #[test]
    fn it_includes_what_the_host_has() {
        let text = profile(library(&[]).path(), "unconfined");
        assert!(text.starts_with("@{PROC}=/proc/\n") && !text.contains("include") && !text.contains("abi <"), "{text}");
        let text = profile(library(&["tunables/global"]).path(), "/usr/bin/co*ff \"er\"");
        assert!(
            text.contains(r#"signal (receive) peer="/usr/bin/co\*ff \"er\"","#) && !text.contains("base"),
            "{text}"
        );
    }

    /// By the parser itself, which needs no kernel for it.
    #[test]
    fn the_parser_takes_it() {
        let parser = Path::new("/usr/sbin/apparmor_parser");
        let check = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("profile");
            std::fs::write(&file, text).unwrap();
            let mut command = program::command(parser);
            command.args(["--skip-kernel-load", "--skip-cache", "--names"]).arg(&file);
            let ended = program::run(command, Streams::Captured, DEADLINE).expect("apparmor is installed").unwrap();
            (ended.status.success(), String::from_utf8(ended.output).unwrap())
        };
        for (library, label) in [
            (Path::new("/etc/apparmor.d"), "unconfined"),
            (Path::new("/etc/apparmor.d"), "/usr/bin/cofferd"),
            (Path::new("/etc/apparmor.d"), "a {strange}, [name]*"),
            (Path::new("/nonexistent"), "unconfined"),
        ] {
            let (taken, said) = check(&profile(library, label));
            assert!(taken && said.contains(DEFAULT), "{label}: {said}");
        }
        assert!(!check(&profile(Path::new("/nonexistent"), "unconfined").replace("deny mount", "deny moumt")).0);
    }

    /// A parser that notes what it is asked, and puts the profile on the list.
    fn loader(dir: &Path, ends: &str) -> Loader {
        let (parser, list) = (dir.join("parser"), dir.join("list"));
        let said = dir.join("said");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {}\ncat > {}\n{ends}\necho 'other (enforce)\n{DEFAULT} (enforce)' > {}\n",
            said.display(),
            dir.join("text").display(),
            list.display(),
        );
        // By another process: one forked meanwhile would hold it open for writing.
        std::fs::write(dir.join("source"), script).unwrap();
        let mut install = std::process::Command::new("install");
        assert!(install.args(["-m", "755"]).args([&dir.join("source"), &parser]).status().unwrap().success());
        Loader { parser, library: "/nonexistent".into(), list, loaded: Mutex::new(false) }
    }

    fn calls(dir: &Path) -> usize {
        std::fs::read_to_string(dir.join("said")).unwrap().lines().count()
    }

    #[test]
    fn it_is_loaded_once_and_again_when_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let loader = loader(dir.path(), "");
        // An older daemon's is not ours.
        std::fs::write(&loader.list, format!("{DEFAULT} (enforce)\n")).unwrap();
        for _ in 0..3 {
            assert_eq!(loader.load().unwrap(), DEFAULT);
        }
        assert_eq!(calls(dir.path()), 1);
        assert_eq!(std::fs::read_to_string(dir.path().join("said")).unwrap(), "--skip-cache --replace\n");
        let given = std::fs::read_to_string(dir.path().join("text")).unwrap();
        assert_eq!(given, profile(&loader.library, &own_label()));
        std::fs::write(&loader.list, format!("{DEFAULT}-not (enforce)\n")).unwrap();
        loader.load().unwrap();
        assert_eq!(calls(dir.path()), 2);
    }

    #[test]
    fn a_parser_that_fails_is_told_and_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let loader = loader(dir.path(), "echo no room >&2; exit 3");
        for n in 1..3 {
            let error = loader.load().unwrap_err();
            assert_eq!((error.code, &*error.id), (Code::FailedPrecondition, DEFAULT));
            assert!(error.message.contains("no room") && error.message.contains("unconfined"), "{error}");
            assert_eq!(calls(dir.path()), n);
        }
        let absent = Loader { parser: "/nonexistent/parser".into(), ..loader };
        assert!(absent.load().unwrap_err().message.contains("/nonexistent/parser"));
    }
}
