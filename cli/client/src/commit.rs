//! A container that becomes an image.

use cofferdam_types::Instruction;
use cofferdam_wire::{
    container_capnp::{commit_options, config_change},
    convert::set_texts,
};

/// How a container becomes an image. What is left empty is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitOptions {
    /// Of the image.
    pub name: String,
    /// For its history.
    pub author: String,
    /// Likewise.
    pub message: String,
    /// Made in this order.
    pub changes: Vec<Instruction>,
    /// The container runs on while it is compared.
    pub no_pause: bool,
    /// Of the layer: gzip, zstd or none.
    pub compression: String,
}

impl CommitOptions {
    pub(crate) fn fill(&self, mut builder: commit_options::Builder<'_>) {
        builder.set_name(&self.name);
        builder.set_author(&self.author);
        builder.set_message(&self.message);
        builder.set_no_pause(self.no_pause);
        builder.set_compression(&self.compression);
        let mut list = builder.init_changes(self.changes.len() as u32);
        for (n, change) in self.changes.iter().enumerate() {
            fill(change, list.reborrow().get(n as u32));
        }
    }
}

fn fill(line: &Instruction, mut builder: config_change::Builder<'_>) {
    match line {
        Instruction::Cmd(all) => set_texts(builder.init_cmd(all.len() as u32), all),
        Instruction::Entrypoint(all) => set_texts(builder.init_entrypoint(all.len() as u32), all),
        Instruction::Env(text) => builder.set_env(text),
        Instruction::WorkingDir(text) => builder.set_working_dir(text),
        Instruction::User(text) => builder.set_user(text),
        Instruction::Label(key, value) => {
            let mut label = builder.init_label();
            label.set_key(key);
            label.set_value(value);
        }
        Instruction::Expose(text) => builder.set_expose(text),
        Instruction::Volume(text) => builder.set_volume(text),
        Instruction::StopSignal(text) => builder.set_stop_signal(text),
    }
}
