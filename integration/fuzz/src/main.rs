//! Fuzzes the target that `COFFERDAM_FUZZ` names.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod targets;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("COFFERDAM_FUZZ").expect("COFFERDAM_FUZZ is to name a target");
    if wanted == "tables" || wanted == "pages" {
        // Over a damaged file redb panics; that is caught, and is not to end the fuzzer, as the hook of libFuzzer would.
        // What is not caught does.
        std::panic::set_hook(Box::new(|panic| {
            if panic.location().is_some_and(|place| !place.file().contains("/redb-")) {
                eprintln!("{panic}");
            }
        }));
    }
    let found = targets::TARGETS.iter().find(|(name, _)| *name == wanted);
    found.unwrap_or_else(|| panic!("{wanted} is no target")).1
});

fuzz_target!(|data: &[u8]| TARGET(data));
