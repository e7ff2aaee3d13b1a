//! Fuzzes the target that `COFFERDAM_FUZZ` names.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod targets;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("COFFERDAM_FUZZ").expect("COFFERDAM_FUZZ is to name a target");
    let found = targets::TARGETS.iter().find(|(name, _)| *name == wanted);
    found.unwrap_or_else(|| panic!("{wanted} is no target")).1
});

fuzz_target!(|data: &[u8]| TARGET(data));
