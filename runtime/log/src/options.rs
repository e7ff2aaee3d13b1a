//! How a container's output is kept, as it was chosen.

use cofferdam_types::{Error, Labels, Result};
use serde::{Deserialize, Serialize};

use crate::format::Format;

/// What a file of a log has at most, unless something else was chosen.
pub const MAX_SIZE: u64 = 20 << 20;
/// How many files a log has at most, unless something else was chosen.
pub const MAX_FILES: u32 = 5;
/// The smallest bound of a file: the largest write fits into it, however its bytes are escaped.
pub const MIN_SIZE: u64 = 256 << 10;
const MOST_FILES: u32 = 1000;
/// Labels stand in every record.
const LABELS: usize = 16 << 10;

/// Where the output goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// Framed binary records, as the bytes came.
    #[default]
    Local,
    /// Docker's format: a JSON object on each line.
    JsonFile,
    /// The format of the Kubernetes container runtime interface.
    Cri,
    /// systemd's journal.
    Journald,
    /// Nowhere.
    None,
}

impl Driver {
    const ALL: [Driver; 5] = [Driver::Local, Driver::JsonFile, Driver::Cri, Driver::Journald, Driver::None];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Driver::Local => "local",
            Driver::JsonFile => "json-file",
            Driver::Cri => "cri",
            Driver::Journald => "journald",
            Driver::None => "none",
        }
    }

    /// Of those that keep files.
    pub fn format(self) -> Option<Format> {
        match self {
            Driver::Local => Some(Format::Local),
            Driver::JsonFile => Some(Format::Json),
            Driver::Cri => Some(Format::Cri),
            Driver::Journald | Driver::None => None,
        }
    }
}

impl std::str::FromStr for Driver {
    type Err = Error;

    /// An empty name is the default.
    fn from_str(name: &str) -> Result<Driver> {
        if name.is_empty() {
            return Ok(Driver::default());
        }
        Driver::ALL.into_iter().find(|driver| driver.as_str() == name).ok_or_else(|| {
            let all = Driver::ALL.map(Driver::as_str).join(", ");
            Error::invalid("log driver", name, format!("is not known: give one of {all}"))
        })
    }
}

/// A driver and its options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Where to.
    pub driver: Driver,
    /// Of one file, in bytes.
    pub max_size: u64,
    /// Of files.
    pub max_files: u32,
    /// The container's labels that stand in each record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options { driver: Driver::default(), max_size: MAX_SIZE, max_files: MAX_FILES, labels: Vec::new() }
    }
}

impl Options {
    /// Reads what a client chose. `max-size` and `max-file` bound the files; `labels` are keys with commas between them.
    pub fn parse(driver: &str, given: &Labels) -> Result<Options> {
        let driver: Driver = driver.parse()?;
        let mut options = Options { driver, ..Options::default() };
        for (key, value) in given {
            let bad = |why: String| Error::invalid("log option", key, why);
            let keeps_files = driver.format().is_some();
            match key.as_str() {
                "max-size" if keeps_files => {
                    let size = size(value).filter(|size| *size >= MIN_SIZE);
                    options.max_size = size.ok_or_else(|| {
                        bad(format!(
                            "is {value:?}: give a size of at least 256k, such as 20m; a log always has a bound"
                        ))
                    })?;
                }
                "max-file" if keeps_files => {
                    let number = value.parse().ok().filter(|number| (1..=MOST_FILES).contains(number));
                    options.max_files =
                        number.ok_or_else(|| bad(format!("is {value:?}: give a number from 1 to {MOST_FILES}")))?;
                }
                "labels" if matches!(driver, Driver::JsonFile | Driver::Journald) => {
                    options.labels = value.split(',').filter(|key| !key.is_empty()).map(str::to_owned).collect();
                }
                _ => {
                    let known = match driver {
                        Driver::Local | Driver::Cri => "it takes max-size and max-file",
                        Driver::JsonFile => "it takes max-size, max-file and labels",
                        Driver::Journald => "it takes labels",
                        Driver::None => "it takes none",
                    };
                    return Err(bad(format!("is not one of the log driver {}: {known}", driver.as_str())));
                }
            }
        }
        Ok(options)
    }

    /// The options as they can be given.
    pub fn pairs(&self) -> Labels {
        let mut pairs = Labels::new();
        if self.driver.format().is_some() {
            pairs.insert("max-size".into(), self.max_size.to_string());
            pairs.insert("max-file".into(), self.max_files.to_string());
        }
        if !self.labels.is_empty() {
            pairs.insert("labels".into(), self.labels.join(","));
        }
        pairs
    }

    /// The labels of a container that stand in its records.
    pub fn attributes(&self, labels: &Labels) -> Result<Labels> {
        let chosen: Labels =
            self.labels.iter().filter_map(|key| Some((key.clone(), labels.get(key)?.clone()))).collect();
        if chosen.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > LABELS {
            let why = "name labels of more than 16 KiB together, which would stand in each record: name fewer";
            return Err(Error::invalid("log option", "labels", why));
        }
        Ok(chosen)
    }
}

/// A size such as `512k`, `20m` or `1g`; units are powers of 1024.
fn size(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let text = text.strip_suffix("ib").or_else(|| text.strip_suffix('b')).unwrap_or(&text);
    let units = [("k", 10), ("m", 20), ("g", 30)];
    let (digits, shift) =
        units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift))).unwrap_or((text, 0));
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_is_chosen_is_bounded() {
        assert_eq!(Options::parse("", &Labels::new()).unwrap(), Options::default());
        let chosen = labels(&[("max-size", "1M"), ("max-file", "2"), ("labels", "a,b")]);
        let options = Options::parse("json-file", &chosen).unwrap();
        assert_eq!((options.max_size, options.max_files), (1 << 20, 2));
        assert_eq!(Options::parse("json-file", &options.pairs()).unwrap(), options);
        let has = labels(&[("a", "1"), ("c", "3")]);
        assert_eq!(options.attributes(&has).unwrap(), labels(&[("a", "1")]));
        let long = "x".repeat(20 << 10);
        assert!(options.attributes(&labels(&[("a", &long)])).is_err());
    }

    #[test]
    fn what_a_driver_has_not_is_refused_by_name() {
        for (driver, key, value) in [
            ("local", "max-size", "0"),
            ("local", "max-size", "255k"),
            ("local", "max-size", "-1"),
            ("local", "max-size", "99999999999g"),
            ("cri", "max-file", "0"),
            ("cri", "max-file", "1001"),
            ("cri", "labels", "a"),
            ("journald", "max-size", "1m"),
            ("none", "max-file", "1"),
            ("json-file", "compress", "true"),
        ] {
            let error = Options::parse(driver, &labels(&[(key, value)])).unwrap_err();
            assert_eq!((error.kind.as_ref(), error.id.as_str()), ("log option", key), "{error}");
        }
        assert_eq!(Options::parse("syslog", &Labels::new()).unwrap_err().id, "syslog");
    }
}
