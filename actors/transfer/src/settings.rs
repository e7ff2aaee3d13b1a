//! What all pulls of a daemon are held to.

use std::time::Duration;

use cofferdam_types::{Error, Result};

/// As the operator says at the daemon's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes in a second that all pulls together may fetch; 0: as many as come.
    pub rate: u64,
    /// A blob that brings nothing for so long is given up.
    pub idle: Duration,
    /// Bytes that layers on their way may hold in memory together, beside what each of them needs.
    pub memory: u64,
    /// The largest window of a zstd layer that a pull may ask for. Without asking it has 32 MiB.
    pub zstd_window: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { rate: 0, idle: Duration::from_secs(30), memory: 44 << 20, zstd_window: 128 << 20 }
    }
}

impl Settings {
    /// Sets what `text` says: `KEY=VALUE`, several with a comma between them.
    pub fn set(&mut self, text: &str) -> Result<()> {
        let mut changed = self.clone();
        for pair in text.split(',') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let wrong = |what: &str| Error::invalid("option", key, format!("is {value:?}: {what}"));
            let bytes = |least: u64, most: u64| {
                let bytes = size(value).filter(|bytes| (least..=most).contains(bytes));
                bytes.ok_or_else(|| wrong(&format!("give a size of {least} to {most} bytes, such as 64M")))
            };
            match key {
                "rate" => changed.rate = bytes(0, 1 << 50)?,
                "memory" => changed.memory = bytes(16 << 20, 1 << 40)?,
                "zstd_window" => changed.zstd_window = bytes(1 << 20, 2 << 30)?,
                "idle" => {
                    let seconds = value.parse().ok().filter(|seconds| (1..=3600).contains(seconds));
                    changed.idle = Duration::from_secs(seconds.ok_or_else(|| wrong("give seconds, 1 to 3600"))?);
                }
                _ => return Err(Error::invalid("option", key, "is not known: rate, idle, memory and zstd_window are")),
            }
        }
        *self = changed;
        Ok(())
    }
}

/// A number of bytes, or of KiB, MiB or GiB.
fn size(text: &str) -> Option<u64> {
    let shift = match text.bytes().last()? {
        b'K' | b'k' => 10,
        b'M' | b'm' => 20,
        b'G' | b'g' => 30,
        _ => return text.parse().ok(),
    };
    text[..text.len() - 1].parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_values_in_their_bounds() {
        let mut settings = Settings::default();
        settings.set("rate=5M,idle=7").unwrap();
        settings.set("memory=64M").unwrap();
        settings.set("zstd_window=256M").unwrap();
        let want = Settings { rate: 5 << 20, idle: Duration::from_secs(7), memory: 64 << 20, zstd_window: 256 << 20 };
        assert_eq!(settings, want);
        for (wrong, id) in
            [("idle=9,rate=fast", "rate"), ("idle=0", "idle"), ("memory=1M", "memory"), ("speed=1", "speed"), ("", "")]
        {
            assert_eq!(settings.set(wrong).unwrap_err().id, id, "{wrong}");
        }
        assert_eq!(settings, want, "what is wrong changes nothing");
    }
}
