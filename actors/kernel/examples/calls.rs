//! What a call costs: to an actor on another thread and on the caller's own, alone and in company.

use std::time::Instant;

use actix::{Actor, Context, Handler, Message};
use cofferdam_kernel::{Kernel, Placement, Slot, SlotConfig, hosted};
use cofferdam_types::Result;

struct Echo(Option<Slot<Echo>>);

hosted!(Echo);

impl Actor for Echo {
    type Context = Context<Echo>;
}

struct Say(u64);

impl Message for Say {
    type Result = Result<u64>;
}

impl Handler<Say> for Echo {
    type Result = Result<u64>;
    fn handle(&mut self, m: Say, _: &mut Context<Echo>) -> Self::Result {
        Ok(m.0)
    }
}

/// Measure from within: nanoseconds per call.
struct Measure(usize);

impl Message for Measure {
    type Result = Result<u64>;
}

impl Handler<Measure> for Echo {
    type Result = std::pin::Pin<Box<dyn Future<Output = Result<u64>>>>;
    fn handle(&mut self, m: Measure, _: &mut Context<Echo>) -> Self::Result {
        let other = self.0.clone();
        Box::pin(async move {
            match other {
                Some(other) => measure(&other, m.0).await,
                None => Ok(0),
            }
        })
    }
}

async fn measure(slot: &Slot<Echo>, flight: usize) -> Result<u64> {
    let (start, rounds) = (Instant::now(), 40_000 / flight);
    for n in 0..rounds {
        futures::future::try_join_all((0..flight).map(|_| slot.call(Say(n as u64)))).await?;
    }
    Ok(start.elapsed().as_nanos() as u64 / (rounds * flight) as u64)
}

fn main() -> Result<()> {
    actix_rt::System::new().block_on(async {
        let kernel = Kernel::new()?;
        let config = |name, placement| SlotConfig { bound: 512, ..SlotConfig::new(name, placement) };
        let here = kernel.spawn(config("here", Placement::Shared("one")), || Echo(None));
        let away = kernel.spawn(config("away", Placement::Own), || Echo(None));
        let (to_here, to_away) = (here.clone(), away.clone());
        let near = kernel.spawn(config("near", Placement::Shared("one")), move || Echo(Some(to_here.clone())));
        let far = kernel.spawn(config("far", Placement::Shared("one")), move || Echo(Some(to_away.clone())));
        kernel.ready().await?;
        for (what, slot) in [("same arbiter", near), ("other thread", far)] {
            for flight in [1, 256] {
                println!("{what}, {flight:3} in flight: {} ns a call", slot.call(Measure(flight)).await?);
            }
        }
        kernel.stop().await;
        Ok(())
    })
}
