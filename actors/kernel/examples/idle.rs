//! What a kernel with a dozen idle actors costs: memory, and processor time over ten seconds.

use actix::{Actor, Context};
use cofferdam_kernel::{Kernel, Placement, SlotConfig, hosted};

struct Idle;

hosted!(Idle);

impl Actor for Idle {
    type Context = Context<Idle>;
}

fn proc(file: &str, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    text.lines().find(|l| l.starts_with(field)).unwrap_or_default().to_owned()
}

fn main() -> cofferdam_types::Result<()> {
    actix_rt::System::new().block_on(async {
        let before = proc("smaps_rollup", "Pss:");
        let kernel = Kernel::new()?;
        let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
        let slots: Vec<_> = (names.iter().enumerate())
            .map(|(i, name)| {
                let placement = if i < 8 { Placement::Shared("kernel") } else { Placement::Own };
                kernel.spawn(SlotConfig::new(name, placement), || Idle)
            })
            .collect();
        kernel.ready().await?;
        let cpu = || {
            let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
            stat.split(' ').skip(13).take(2).filter_map(|t| t.parse::<u64>().ok()).sum::<u64>()
        };
        let start = cpu();
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        println!(
            "{} slots: {before} before, {} now; {} ticks in 10 s",
            slots.len(),
            proc("smaps_rollup", "Pss:"),
            cpu() - start
        );
        println!("{}", proc("status", "Threads:"));
        kernel.stop().await;
        Ok(())
    })
}
