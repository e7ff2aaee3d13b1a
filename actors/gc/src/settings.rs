//! When it collects, as an operator says it.

use std::time::Duration;

use cofferdam_types::{Error, Result};

/// The keys of containerd's scheduler, and two of our own. A share or number of 0, or a time of 0, turns a rule off.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// At most this share of the time is spent collecting, 0.5 at most. 0: once a second at most, whatever it costs.
    pub pause_threshold: f64,
    /// How many removals make it collect; 0: each.
    pub deletion_threshold: u64,
    /// How many writes of any kind make it collect.
    pub mutation_threshold: u64,
    /// How long it waits for more of the same.
    pub schedule_delay: Duration,
    /// How long after the start it collects for the first time.
    pub startup_delay: Duration,
    /// How long after the last time it collects if anything was written since.
    pub period: Duration,
    /// From this share of the root's file system in use on it collects whatever was written.
    pub disk_pressure: f64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            pause_threshold: 0.02,
            deletion_threshold: 0,
            mutation_threshold: 100,
            // Not at once: a removal seldom comes alone.
            schedule_delay: Duration::from_secs(1),
            startup_delay: Duration::from_millis(100),
            period: Duration::from_secs(3600),
            disk_pressure: 0.9,
        }
    }
}

impl Settings {
    /// Reads `key=value`, with a comma between several, into these.
    pub fn set(&mut self, text: &str) -> Result<()> {
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "pause_threshold" => self.pause_threshold = share(key, value, 0.5)?,
                "deletion_threshold" => self.deletion_threshold = number(key, value)?,
                "mutation_threshold" => self.mutation_threshold = number(key, value)?,
                "schedule_delay" => self.schedule_delay = time(key, value)?,
                "startup_delay" => self.startup_delay = time(key, value)?,
                "period" => self.period = time(key, value)?,
                "disk_pressure" => self.disk_pressure = share(key, value, 1.0)?,
                _ => {
                    let why = "is no key of the collector: pause_threshold, deletion_threshold, mutation_threshold, \
                               schedule_delay, startup_delay, period and disk_pressure are";
                    return Err(Error::invalid("option", key, why));
                }
            }
        }
        Ok(())
    }
}

fn share(key: &str, value: &str, most: f64) -> Result<f64> {
    let read = value.parse().ok().filter(|share| (0.0..=most).contains(share));
    read.ok_or_else(|| Error::invalid("option", key, format!("needs a share, 0 to {most}, such as 0.02")))
}

fn number(key: &str, value: &str) -> Result<u64> {
    value.parse().map_err(|_| Error::invalid("option", key, "needs a number, 0 or more"))
}

/// A number with a unit, as in containerd's configuration: `100ms`.
fn time(key: &str, value: &str) -> Result<Duration> {
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (count, unit) = value.split_at(digits);
    let unit = match unit {
        "" if count == "0" => 1,
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let read = count.parse::<u64>().ok().filter(|_| unit > 0).and_then(|count| count.checked_mul(unit));
    read.map(Duration::from_millis)
        .ok_or_else(|| Error::invalid("option", key, "needs a time such as 100ms, 5s, 10m or 1h; 0 turns it off"))
}
