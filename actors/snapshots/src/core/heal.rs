//! A layer's tree made anew beside the one that there is: to be compared with it, and to take its place.

use cofferdam_metadata::records::{layers, replace};
use cofferdam_types::Authority;

use super::{Core, Digest, Result, stage};
use crate::{
    messages::{ReplaceLayer, StageAgain},
    stage::{Stage, Turn},
};

impl Core {
    /// See [`StageAgain`]. It is nobody's turn: who unpacks the layer meanwhile, if it is gone, is as welcome.
    pub async fn stage_again(&self, m: StageAgain) -> Result<Stage> {
        let area = self.depot(&m.driver)?.area.clone();
        let base = match &m.parent {
            Some(parent) if !area.driver().detached() => Some(layers::get(&self.meta.read()?, &m.driver, parent)?.dir),
            _ => None,
        };
        let turn = Turn::nobodys(m.chain);
        self.pool.run(move || stage(&area, base, turn)).await
    }

    /// See [`ReplaceLayer`].
    pub async fn replace_layer(&self, m: ReplaceLayer) -> Result<()> {
        let ReplaceLayer { driver, stage, old, lost } = m;
        let area = self.depot(&driver)?.area.clone();
        let (sealing, dir) = (area.clone(), stage.dir());
        let seal = move || {
            sealing.sync()?;
            let usage = sealing.usage(dir)?;
            sealing.seal(dir).map(|()| usage)
        };
        let usage = self.pool.run(seal).await?;
        stage.held().busy();
        // Only what is stacked when it is mounted shows anything of the tree that goes.
        let (chain, keep) = (stage.chain().clone(), area.driver().detached() && !lost);
        let swap = area.swap();
        let write = {
            let (driver, chain): (String, Digest) = (driver.clone(), chain.clone());
            move |tx: &mut cofferdam_metadata::Tx<'_>| replace::replace(tx, &driver, &chain, old, (dir, usage), keep)
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
