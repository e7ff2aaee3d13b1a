//! Platforms, their normal form, and which image runs where.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Operating system, architecture and variant, in the normal form of the reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// Go's architecture name, such as `amd64`.
    pub architecture: String,
    /// Such as `v7`; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// Kept so that an index is written back as it was; not compared.
    #[serde(default, rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Kept so that an index is written back as it was; not compared.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

const KNOWN_OS: &[&str] = &[
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];
const KNOWN_ARCH: &[&str] = &[
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "loong64",
    "ppc64",
    "ppc64le",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
];

impl Platform {
    /// The platform of this build.
    pub fn host() -> Platform {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        let variant = match arch {
            "arm" => std::fs::read_to_string("/proc/cpuinfo").map(|text| arm(&text)).unwrap_or_default(),
            // v8 is implied.
            _ => "",
        };
        Platform::new("linux", arch, variant)
    }

    /// A platform from its parts, normalised.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Platform {
        let os = match os.to_ascii_lowercase().as_str() {
            "" => std::env::consts::OS.to_owned(),
            "macos" => "darwin".into(),
            other => other.to_owned(),
        };
        let arch = architecture.to_ascii_lowercase();
        let variant = variant.to_ascii_lowercase();
        let (architecture, variant) = match (arch.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", _) => ("amd64", ""),
            // v8 is implied: images name it or not, hosts likewise.
            ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", ""),
            ("aarch64", v) => ("arm64", v),
            ("armhf", _) => ("arm", ""),
            ("armel", _) => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "7") => ("arm", "v7"),
            ("arm", "8") => ("arm", "v8"),
            (a, v) => (a, v),
        };
        Platform {
            os,
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            os_version: String::new(),
            os_features: Vec::new(),
        }
    }

    /// Whether something built for `candidate` runs on this platform.
    pub fn accepts(&self, candidate: &Platform) -> bool {
        let c = Platform::new(&candidate.os, &candidate.architecture, &candidate.variant);
        self.os == c.os && self.architecture == c.architecture && self.variant == c.variant
    }
}

/// The variant of a 32-bit ARM processor, as /proc/cpuinfo has it.
fn arm(cpuinfo: &str) -> &'static str {
    let field =
        cpuinfo.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == "CPU architecture");
    let value = field.map(|(_, value)| value.trim()).unwrap_or_default();
    match value {
        "8" | "AArch64" => "v8",
        "7" | "7M" | "?(12)" | "?(13)" | "?(14)" | "?(15)" | "?(16)" | "?(17)" => "v7",
        "6" | "6TEJ" => "v6",
        "5" | "5T" | "5TE" | "5TEJ" => "v5",
        "4" | "4T" => "v4",
        "3" => "v3",
        _ => "unknown",
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", if self.os.is_empty() { "unknown" } else { &self.os }, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Platform> {
        let bad = |why: &str| Error::invalid("platform", text, format!("{why}; write os/arch or os/arch/variant"));
        let parts: Vec<&str> = text.split('/').collect();
        let word = |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if text.contains('*') {
            return Err(bad("wildcards are not supported"));
        }
        if parts.len() > 3 || !parts.iter().all(word) {
            return Err(bad("is not a platform"));
        }
        let host = Platform::host();
        match parts[..] {
            [one] => {
                let as_os = Platform::new(one, &host.architecture, &host.variant);
                let as_arch = Platform::new(&host.os, one, "");
                if KNOWN_OS.contains(&as_os.os.as_str()) {
                    Ok(as_os)
                } else if KNOWN_ARCH.contains(&as_arch.architecture.as_str()) {
                    Ok(as_arch)
                } else {
                    Err(bad("is neither a known os nor a known architecture"))
                }
            }
            [os, arch] => Ok(Platform::new(os, arch, "")),
            [os, arch, variant] => Ok(Platform::new(os, arch, variant)),
            _ => Err(bad("is not a platform")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selector_table_of_the_reference() {
        for (text, shown) in [
            ("linux/arm", "linux/arm"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("arm", "linux/arm"),
            ("armel", "linux/arm/v6"),
            ("armhf", "linux/arm"),
            ("Aarch64", "linux/arm64"),
            ("x86_64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("i386", "linux/386"),
            ("s390x", "linux/s390x"),
            ("linux/s390x", "linux/s390x"),
        ] {
            let p: Platform = text.parse().unwrap();
            assert_eq!(p.to_string(), shown, "{text}");
            assert_eq!(p.to_string().parse::<Platform>().unwrap(), p);
            assert!(p.accepts(&p));
        }
        for bad in ["", "/linux", "linux/", "linux /arm", "li&ux", "a/b/c/d", "linux/*", "nonsense"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn variants_of_arm_are_told_and_none_stands_for_another() {
        for (text, shown) in [
            ("linux/arm/5", "linux/arm/v5"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/arm/7", "linux/arm/v7"),
            ("linux/arm/V7", "linux/arm/v7"),
            ("linux/arm/8", "linux/arm/v8"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/aarch64/v9", "linux/arm64/v9"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown, "{text}");
        }
        let variants = ["", "v5", "v6", "v7", "v8"].map(|variant| Platform::new("linux", "arm", variant));
        for one in &variants {
            for other in &variants {
                assert_eq!(one.accepts(other), one == other, "{one} {other}");
            }
        }
        for (value, variant) in [
            ("8", "v8"),
            ("7", "v7"),
            ("7M", "v7"),
            ("?(12)", "v7"),
            ("?(17)", "v7"),
            ("6TEJ", "v6"),
            ("5TE", "v5"),
            ("4T", "v4"),
            ("3", "v3"),
            ("x", "unknown"),
        ] {
            assert_eq!(arm(&format!("processor\t: 0\nCPU architecture: {value}\n")), variant, "{value}");
        }
        assert_eq!(arm(""), "unknown");
    }

    #[test]
    fn arm64_hosts_accept_both_spellings() {
        let host = Platform::new("linux", "arm64", "v8");
        assert!(host.accepts(&Platform::new("linux", "aarch64", "")));
        // What the reference can't: a host that knows its variant, and an image that doesn't say it; and the other way round.
        assert!(host.accepts(&Platform::new("linux", "arm64", "")));
        assert!(Platform::new("linux", "arm64", "").accepts(&Platform::new("linux", "arm64", "v8")));
        assert!(!host.accepts(&Platform::new("linux", "amd64", "")));
    }
}
