//! A change of limits: `linux.resources` of the OCI runtime spec, read strictly, and put into the spec that a container
//! keeps.

use cofferdam_types::{Error, Result};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};

use crate::spec::{MAX_PIDS, MIN_MEMORY};

/// What a client may send.
const LIMIT: usize = 64 << 10;

/// See the module.
#[derive(Clone, Debug)]
pub struct Update {
    /// For a driver.
    pub resources: LinuxResources,
    given: Map<String, Value>,
}

fn bad(field: &str, why: impl Into<String>) -> Error {
    let field = if field.is_empty() { "resources".to_owned() } else { format!("resources.{field}") };
    Error::invalid("update", field, why)
}

impl Update {
    /// Reads the JSON. A field that isn't one, or a number that can't be, is refused by name.
    pub fn read(json: &[u8]) -> Result<Update> {
        if json.len() > LIMIT {
            return Err(bad("", format!("has {} bytes: at most {LIMIT} are taken", json.len())));
        }
        let wrong = |e: serde_json::Error| bad("", format!("is not linux.resources of the OCI runtime spec: {e}"));
        let mut given: Map<String, Value> = serde_json::from_slice(json).map_err(wrong)?;
        drop_nulls(&mut given);
        if given.is_empty() {
            return Err(bad("", "names nothing to change"));
        }
        let resources: LinuxResources = serde_json::from_value(Value::Object(given.clone())).map_err(wrong)?;
        let read = serde_json::to_value(&resources).map_err(wrong)?;
        if let Some(unknown) = unknown(&Value::Object(given.clone()), &read, "") {
            return Err(bad(&unknown, "is no field of linux.resources: leave it out"));
        }
        check(&resources)?;
        Ok(Update { resources, given })
    }

    /// What of it needs the `host` right, if any of it does.
    pub fn needs_host(&self) -> Option<&'static str> {
        let realtime =
            |cpu: &oci_spec::runtime::LinuxCpu| cpu.realtime_runtime().is_some() || cpu.realtime_period().is_some();
        if self.resources.devices().is_some() {
            Some("devices")
        } else if self.resources.unified().is_some() {
            Some("files of its cgroup by name")
        } else if self.resources.cpu().as_ref().is_some_and(realtime) {
            Some("realtime")
        } else {
            None
        }
    }

    /// The spec with the change in it; what the change doesn't name stays as it is.
    pub fn applied(&self, spec: &[u8]) -> Result<Vec<u8>> {
        let broken = |e: serde_json::Error| Error::data_loss("spec", "", format!("can't be read: {e}"));
        let mut whole: Value = serde_json::from_slice(spec).map_err(broken)?;
        let Value::Object(fields) = &mut whole else {
            return Err(Error::data_loss("spec", "", "is not an object"));
        };
        let linux = fields.entry("linux").or_insert_with(|| Value::Object(Map::new()));
        merge(linux, &serde_json::json!({ "resources": self.given }));
        serde_json::to_vec(&whole).map_err(broken)
    }
}

fn drop_nulls(fields: &mut Map<String, Value>) {
    fields.retain(|_, value| {
        if let Value::Object(below) = value {
            drop_nulls(below);
        }
        !value.is_null()
    });
}

/// The first field that was given and not read.
fn unknown(given: &Value, read: &Value, path: &str) -> Option<String> {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => given.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match read.get(key) {
                Some(read) => unknown(value, read, &path),
                None => Some(path),
            }
        }),
        (Value::Array(given), Value::Array(read)) => {
            given.iter().zip(read).find_map(|(given, read)| unknown(given, read, path))
        }
        _ => None,
    }
}

/// Numbers that a driver or the kernel would take for something else, or refuse without a reason.
fn check(resources: &LinuxResources) -> Result<()> {
    if let Some(memory) = resources.memory() {
        for (field, value) in [
            ("memory.limit", memory.limit()),
            ("memory.swap", memory.swap()),
            ("memory.reservation", memory.reservation()),
        ] {
            match value {
                Some(0) => return Err(bad(field, "is 0: give -1 for no limit")),
                Some(value) if value < -1 => return Err(bad(field, "is below -1, which is no limit")),
                _ => {}
            }
        }
        if let Some(limit) = memory.limit().filter(|limit| (1..MIN_MEMORY as i64).contains(limit)) {
            return Err(bad(
                "memory.limit",
                format!("is {limit} bytes: give {MIN_MEMORY} or more, or -1 for no limit"),
            ));
        }
        if memory.swappiness().is_some_and(|swappiness| swappiness > 100) {
            return Err(bad("memory.swappiness", "lies between 0 and 100"));
        }
    }
    if let Some(cpu) = resources.cpu() {
        if cpu.quota().is_some_and(|quota| (1..1000).contains(&quota) || quota < -1) {
            return Err(bad("cpu.quota", "is in microseconds: give 1000 or more, or -1 for no limit"));
        }
        if cpu.period().is_some_and(|period| period != 0 && !(1000..=1_000_000).contains(&period)) {
            return Err(bad("cpu.period", "is in microseconds: give 1000 to 1000000"));
        }
    }
    if resources.pids().as_ref().is_some_and(|pids| pids.limit() == 0) {
        return Err(bad("pids.limit", "is 0: give -1 for no limit"));
    }
    if resources.pids().as_ref().is_some_and(|pids| pids.limit() > MAX_PIDS as i64) {
        return Err(bad("pids.limit", format!("is more than the kernel has: {MAX_PIDS}")));
    }
    Ok(())
}

/// What tells the items of these lists apart.
fn identity(item: &Value) -> Option<(&Value, Option<&Value>)> {
    match (item.get("pageSize"), item.get("major")) {
        (Some(size), _) => Some((size, None)),
        // A rule about devices has a verdict, and the order of rules counts.
        (None, Some(major)) if item.get("allow").is_none() => Some((major, item.get("minor"))),
        _ => None,
    }
}

fn merge(old: &mut Value, new: &Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(old), Value::Array(new)) if new.iter().all(|item| identity(item).is_some()) => {
            for item in new {
                match old.iter_mut().find(|known| identity(known) == identity(item)) {
                    Some(known) => merge(known, item),
                    None => old.push(item.clone()),
                }
            }
        }
        (old, new) => *old = new.clone(),
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_types::Code;
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Update> {
        Update::read(value.to_string().as_bytes())
    }

    #[test]
    fn what_is_named_changes_and_the_rest_stays() {
        let spec = json!({
            "ociVersion": "1.0.2", "newer": 1,
            "linux": {"cgroupsPath": "/a", "resources": {
                "memory": {"limit": 1, "swappiness": 5},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 1}],
                "devices": [{"allow": false, "access": "rwm"}],
                "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]},
            }},
        });
        let update = read(json!({
            "memory": {"limit": 33554432, "swap": null},
            "pids": {"limit": 7},
            "hugepageLimits": [{"pageSize": "1GB", "limit": 9}, {"pageSize": "64KB", "limit": 3}],
            "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 16, "rate": 2}]},
        }))
        .unwrap();
        assert_eq!(update.needs_host(), None);
        let after: Value = serde_json::from_slice(&update.applied(spec.to_string().as_bytes()).unwrap()).unwrap();
        let expected = json!({
            "ociVersion": "1.0.2", "newer": 1,
            "linux": {"cgroupsPath": "/a", "resources": {
                "memory": {"limit": 33554432, "swappiness": 5},
                "pids": {"limit": 7},
                "hugepageLimits":
                    [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 9}, {"pageSize": "64KB", "limit": 3}],
                "devices": [{"allow": false, "access": "rwm"}],
                "blockIO": {"throttleReadBpsDevice":
                    [{"major": 8, "minor": 0, "rate": 1}, {"major": 8, "minor": 16, "rate": 2}]},
            }},
        });
        assert_eq!(after, expected);
        let devices = read(json!({"devices": [{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}]}));
        let devices = devices.unwrap();
        assert_eq!(devices.needs_host(), Some("devices"));
        let after: Value = serde_json::from_slice(&devices.applied(spec.to_string().as_bytes()).unwrap()).unwrap();
        assert_eq!(after["linux"]["resources"]["devices"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (value, field) in [
            (json!({}), "resources"),
            (json!({"memory": null}), "resources"),
            (json!({"memory": {"limit": "much"}}), "resources"),
            (json!({"memory": {"limit": 1024}}), "resources.memory.limit"),
            (json!({"memory": {"limit": 0}}), "resources.memory.limit"),
            (json!({"memory": {"swap": -2}}), "resources.memory.swap"),
            (json!({"memory": {"swappiness": 101}}), "resources.memory.swappiness"),
            (json!({"memory": {"limits": 33554432}}), "resources.memory.limits"),
            (json!({"memmory": {"limit": 33554432}}), "resources.memmory"),
            (json!({"cpu": {"quota": 5}}), "resources.cpu.quota"),
            (json!({"cpu": {"period": 5}}), "resources.cpu.period"),
            (json!({"pids": {"limit": 99999999}}), "resources.pids.limit"),
            (json!({"pids": {"limit": 0}}), "resources.pids.limit"),
        ] {
            let error = read(value.clone()).expect_err(&value.to_string());
            assert_eq!((error.code, error.id.as_str()), (Code::InvalidArgument, field), "{value}");
        }
        assert!(Update::read(b"[]").is_err());
        assert!(Update::read(&vec![b' '; LIMIT + 1]).unwrap_err().message.contains("at most"));
    }
}
