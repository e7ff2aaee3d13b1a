//! README.md says what its reader will see: its demonstration is run as it stands there, and prints what stands below it.

use std::process::{Command, Stdio};

use cofferdam_integration::{Daemon, binary, images};

use crate::ok;

/// The blocks of commands, or of what they print, below a heading.
fn blocks(text: &str, heading: &str) -> Vec<String> {
    let (_, below) = text.split_once(&format!("\n## {heading}\n")).expect("the heading is there");
    let section = below.split("\n## ").next().expect("there is a first");
    let mut blocks = vec![];
    let mut within = false;
    for line in section.lines() {
        match line.strip_prefix("    ") {
            Some(code) => {
                if !within {
                    blocks.push(String::new());
                }
                within = true;
                let block: &mut String = blocks.last_mut().expect("it was just begun");
                block.push_str(code);
                block.push('\n');
            }
            // An empty line ends no block.
            None if line.is_empty() && within => blocks.last_mut().expect("we are within one").push('\n'),
            None => within = false,
        }
    }
    blocks.iter().map(|block| format!("{}\n", block.trim_end())).collect()
}

#[test]
fn the_demonstration_of_the_readme_prints_what_it_says() {
    let readme = include_str!("../../../README.md");
    let [script, printed] = &blocks(readme, "A container that holds one thing")[..] else {
        panic!("a block of commands, and one of what they print");
    };
    let daemon = Daemon::start();
    ok(&daemon, &["image", "import", "--rootfs", images().join("rootfs/busybox").to_str().unwrap(), "demo/busybox"]);
    let before = daemon.leftovers();

    let path = std::env::var("PATH").unwrap();
    let programs = binary("coffer").parent().unwrap().display().to_string();
    let mut shell = Command::new("timeout");
    shell
        .args(["60", "bash", "-c"])
        // Both streams in one, as on a terminal.
        .arg(format!("exec 2>&1\n{script}"))
        .env("PATH", format!("{programs}:{path}"))
        .env("TMPDIR", daemon.path())
        .env("COFFER_SOCKET", daemon.socket())
        .env("COFFER_NAMESPACE", daemon.namespace())
        .stdin(Stdio::null());
    let output = shell.output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), *printed, "{}", output.status);
    daemon.settles(&before);
}

#[test]
fn blocks_are_told_from_text() {
    let text = "# A\n\n## B\n\none:\n\n    x\n\n    # y\n      z\n\ntwo\n\n    w\n\n## C\n\n    v\n";
    assert_eq!(blocks(text, "B"), ["x\n\n# y\n  z\n", "w\n"]);
}
