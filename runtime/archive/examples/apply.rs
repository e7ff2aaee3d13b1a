//! Applies a layer to a directory and says how long it took: `apply [--detached] FILE DIR`.

use std::{error::Error, fs::File, os::fd::AsFd, sync::atomic::AtomicBool, time::Instant};

use cofferdam_archive::{ApplyOptions, apply};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let detached = args.first().is_some_and(|arg| arg == "--detached");
    if detached {
        args.remove(0);
    }
    let [file, dir] = &args[..] else {
        return Err("usage: apply [--detached] FILE DIR".into());
    };
    let options =
        if detached { ApplyOptions { flush: true, ..ApplyOptions::detached() } } else { ApplyOptions::default() };
    let root = File::open(dir)?;
    let start = Instant::now();
    let applied = apply(root.as_fd(), File::open(file)?, &options, &AtomicBool::new(false))?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{seconds:.3} s, {:.0} MB/s, {} bytes, {} entries, {}",
        applied.size as f64 / seconds / 1e6,
        applied.size,
        applied.entries,
        applied.diff_id
    );
    Ok(())
}
