//! A layer's tree made anew beside the one that there is: to be compared with it, and to take its place.

use cofferdam_metadata::records::replace::{self, Stays};
use cofferdam_types::Authority;

use super::{Core, Digest, Result, stage};
use crate::{
    area,
    messages::{ReplaceLayer, StageAgain},
    stage::{Base, Stage, Turn},
};

impl Core {
    /// See [`StageAgain`]. It is nobody's turn: who unpacks the layer meanwhile, if it is gone, is as welcome.
    pub async fn stage_again(&self, m: StageAgain) -> Result<Stage> {
        self.settled().await;
        let area = self.depot(&m.driver)?.area.clone();
        let base = match m.parent {
            Some(parent) if !area.driver().detached() => Some(Base::of(&self.meta.read()?, &m.driver, parent)?),
            _ => None,
        };
        let turn = Turn::nobodys(m.chain);
        self.pool.run(move || stage(&area, base.as_ref().map(Base::dir), turn).map(|stage| stage.made_of(base))).await
    }

    /// See [`ReplaceLayer`].
    pub async fn replace_layer(&self, m: ReplaceLayer) -> Result<()> {
        self.settled().await;
        let ReplaceLayer { driver, stage, old, lost } = m;
        let area = self.depot(&driver)?.area.clone();
        let (sealing, dir, witness) = (area.clone(), stage.dir(), stage.witness());
        let seal = move || {
            area::sync(&witness)?;
            let usage = sealing.usage(dir)?;
            sealing.seal(dir).map(|()| usage)
        };
        let usage = self.pool.run(seal).await?;
        stage.held().busy();
        let stays = match lost {
            true => Stays::None,
            false if area.driver().detached() => Stays::All,
            // What was made of the tree is a copy; a view has none, and shows the tree itself.
            false => Stays::Views,
        };
        let (chain, base) = (stage.chain().clone(), stage.base());
        let swap = area.swap();
        let write = {
            let (driver, chain): (String, Digest) = (driver.clone(), chain.clone());
            move |tx: &mut cofferdam_metadata::Tx<'_>| {
                base.iter().try_for_each(|base| base.stands(tx, &driver))?;
                replace::replace(tx, &driver, &chain, old, (dir, usage), stays)
            }
        };
        let unused = self.meta.write(&Authority::system(), write).await;
        drop(swap);
        let unused = unused?;
        let settle = move || {
            stage.held().settle(true);
            drop(stage);
            if unused { area.discard(old) } else { Ok(()) }
        };
        if let Err(error) = self.pool.run(settle).await {
            tracing::warn!(dir = old, %error, "the next start tidies up a snapshot's directory");
        }
        tracing::info!(driver, %chain, old, dir, kept = !unused, "a layer's tree was replaced");
        Ok(())
    }
}
