//! The targets of the fuzzer, each on the seeds that it starts from: they compile, and what was found once stays mended.

use std::{collections::BTreeSet, path::PathBuf};

use crate::{root, targets::TARGETS};

fn corpus() -> PathBuf {
    root().join("integration/fuzz/corpus")
}

#[test]
fn each_target_bears_its_seeds() {
    for (name, target) in TARGETS {
        let seeds = std::fs::read_dir(corpus().join(name)).unwrap_or_else(|e| panic!("no seeds of {name}: {e}"));
        let mut count = 0;
        for seed in seeds {
            let path = seed.unwrap().path();
            println!("{}", path.display());
            target(&std::fs::read(path).unwrap());
            count += 1;
        }
        assert!(count > 0, "no seeds of {name}");
        target(b"");
    }
}

#[test]
fn no_seeds_are_of_a_target_that_is_not_there() {
    let folders = std::fs::read_dir(corpus()).unwrap().map(|dir| dir.unwrap().file_name().into_string().unwrap());
    let known = TARGETS.iter().map(|(name, _)| (*name).to_owned());
    assert_eq!(folders.collect::<BTreeSet<_>>(), known.collect());
}
