//! Tests of the store and the records together.

mod actor;
mod check;
mod crash;
mod credentials;
mod damage;
mod disk;
mod formats;
mod frozen;
mod gc;
mod leases;
mod rebuild;
mod records;
mod replace;
mod snapshots;
mod spoiled;
mod store;
mod unreadable;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use cofferdam_types::{Algorithm, Authority, Code, Digest, Error, Id, Labels, Name, Namespace, Result};

use crate::{
    Tx, View,
    messages::{Patience, Write},
    opener::Opener,
    store::{Shared, Store},
};

/// A directory in memory, where there is such: for files that are written anew hundreds of times, and never lose their power.
fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A store in memory.
struct Fixture {
    shared: Arc<Shared>,
    store: Store,
}

impl Fixture {
    fn new() -> Fixture {
        let shared = Arc::new(Shared::new(Opener::backend(u64::MAX, redb::backends::InMemoryBackend::new)));
        let store = shared.open().unwrap();
        Fixture { shared, store }
    }

    fn view(&self) -> View {
        self.shared.read().unwrap()
    }

    /// One job, one commit.
    fn write<R: Send + 'static>(&mut self, f: impl Fn(&mut Tx<'_>) -> Result<R> + Send + 'static) -> Result<R> {
        self.write_as(&Authority::system(), f)
    }

    fn write_as<R: Send + 'static>(
        &mut self,
        authority: &Authority,
        f: impl Fn(&mut Tx<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let place = Arc::new(Mutex::new(None));
        let result = place.clone();
        let write = job(authority, move |tx| {
            *result.lock().unwrap() = Some(f(tx)?);
            Ok(())
        });
        self.store.commit(&[write]).remove(0)?;
        let value = place.lock().unwrap().take();
        Ok(value.unwrap())
    }
}

fn job(authority: &Authority, f: impl Fn(&mut Tx<'_>) -> Result<()> + Send + 'static) -> Write {
    Write { authority: authority.clone(), job: Box::new(f), patience: Patience::None }
}

fn default() -> Namespace {
    Namespace::default_namespace()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn id(text: &str) -> Id {
    Id::new(text).unwrap()
}

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

fn labels(text: &str) -> Labels {
    let pair = |kv: &str| kv.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    text.split_whitespace().filter_map(pair).collect::<BTreeMap<_, _>>()
}

fn mask(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

#[track_caller]
fn code<T: std::fmt::Debug>(result: Result<T>, code: Code) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.code, code, "{error}");
    error
}
