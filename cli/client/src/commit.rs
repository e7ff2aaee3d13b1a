//! A container that becomes an image.

use cofferdam_types::Instruction;
use cofferdam_wire::{
    container_capnp::{commit_options, config_change},
    convert::set_texts,
};

/// One thing that is different in the new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigChange {
    /// The arguments that are used where none are given.
    Cmd(Vec<String>),
    /// What comes before them; those of the image before are gone then, unless they are changed too.
    Entrypoint(Vec<String>),
    /// `NAME=VALUE`.
    Env(String),
    /// Where it starts.
    WorkingDir(String),
    /// Who runs it.
    User(String),
    /// A label, key and value.
    Label(String, String),
    /// `PORT[/PROTOCOL]`.
    Expose(String),
    /// A directory whose files are kept elsewhere.
    Volume(String),
    /// What ends it.
    StopSignal(String),
}

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
    pub changes: Vec<ConfigChange>,
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
            change.fill(list.reborrow().get(n as u32));
        }
    }
}

impl ConfigChange {
    fn fill(&self, mut builder: config_change::Builder<'_>) {
        match self {
            ConfigChange::Cmd(all) => set_texts(builder.init_cmd(all.len() as u32), all),
            ConfigChange::Entrypoint(all) => set_texts(builder.init_entrypoint(all.len() as u32), all),
            ConfigChange::Env(text) => builder.set_env(text),
            ConfigChange::WorkingDir(text) => builder.set_working_dir(text),
            ConfigChange::User(text) => builder.set_user(text),
            ConfigChange::Label(key, value) => {
                let mut label = builder.init_label();
                label.set_key(key);
                label.set_value(value);
            }
            ConfigChange::Expose(text) => builder.set_expose(text),
            ConfigChange::Volume(text) => builder.set_volume(text),
            ConfigChange::StopSignal(text) => builder.set_stop_signal(text),
        }
    }
}

impl From<Instruction> for ConfigChange {
    fn from(line: Instruction) -> ConfigChange {
        match line {
            Instruction::Cmd(all) => ConfigChange::Cmd(all),
            Instruction::Entrypoint(all) => ConfigChange::Entrypoint(all),
            Instruction::Env(text) => ConfigChange::Env(text),
            Instruction::WorkingDir(text) => ConfigChange::WorkingDir(text),
            Instruction::User(text) => ConfigChange::User(text),
            Instruction::Label(key, value) => ConfigChange::Label(key, value),
            Instruction::Expose(text) => ConfigChange::Expose(text),
            Instruction::Volume(text) => ConfigChange::Volume(text),
            Instruction::StopSignal(text) => ConfigChange::StopSignal(text),
        }
    }
}
