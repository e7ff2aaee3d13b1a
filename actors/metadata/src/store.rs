//! The database file: opening it, and committing a batch of jobs.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use cofferdam_kernel::panic_text;
use cofferdam_types::{Authority, COMES_BACK, Code, Error, Result};
use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use tokio::sync::watch;

use crate::{
    ahead::Known,
    codec,
    messages::Write,
    opener::{Opener, frozen},
    records,
    spared::Spared,
    table::{Read, Table, View, damaged, storage},
    tx::{Changes, Tx, counter_of},
};

/// The format of the tables. A file with a higher number was written by a newer daemon and is refused; for a lower
/// one migrations run forward here.
pub(crate) const VERSION: u64 = 6;
/// What version 2 kept on disk of a collection that was under way.
const DELTA: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("delta");

/// What readers and the lives of the writer share.
pub(crate) struct Shared {
    opener: Opener,
    /// Readers borrow it under the lock for as long as beginning a read takes, so that taking it out here and
    /// dropping it in the writer closes the file at once.
    database: RwLock<Option<Arc<Database>>>,
    /// Why it can't be opened.
    closed: Mutex<Option<Error>>,
    /// Why nothing is written, for as long as this daemon lives.
    refusal: OnceLock<Error>,
    pub(crate) outbox: watch::Sender<u64>,
    pub(crate) changes: watch::Sender<Changes>,
    spared: Arc<Spared>,
}

impl Shared {
    pub(crate) fn new(opener: Opener) -> Shared {
        Shared {
            opener,
            database: RwLock::new(None),
            closed: Mutex::default(),
            refusal: OnceLock::new(),
            outbox: watch::Sender::new(0),
            changes: watch::Sender::default(),
            spared: Arc::default(),
        }
    }

    /// What a collection that is under way spares.
    pub(crate) fn spared(&self) -> &Arc<Spared> {
        &self.spared
    }

    pub(crate) fn read(&self) -> Result<View> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or_else(|| self.down())?;
        let known = &self.opener.known;
        let txn = database.begin_read().map_err(|e| known.explain(storage(e)))?;
        Ok(View::new(txn, known.clone()))
    }

    fn down(&self) -> Error {
        let why = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let why = why.as_ref().map_or(String::new(), |error| format!(": {}", error.message));
        Error::unavailable("metadata", "", format!("is down and {COMES_BACK}{why}"))
    }

    /// Whether anything is.
    pub(crate) fn writable(&self) -> Result<()> {
        self.refusal.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// From now on nothing is, since what is read is not all there is to it, or no disk takes it.
    pub(crate) fn refuse(&self, why: Error) {
        tracing::error!("{why}");
        // Who was first has said it.
        let _ = self.refusal.set(why);
    }

    /// Whether a commit is to be one that opens at once after a kill.
    fn quick(&self) -> bool {
        self.opener.known.length() > self.opener.scanned
    }

    fn set(&self, database: Option<Arc<Database>>) {
        let mut place = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *place, database);
        drop(place);
        release(before);
    }

    /// What is known of the file.
    pub(crate) fn known(&self) -> &Known {
        &self.opener.known
    }

    /// Opens the file and lets readers in. Where that takes room that a full disk doesn't have, the reserve is for it.
    pub(crate) fn open(self: &Arc<Shared>) -> Result<Store> {
        self.set(None);
        let opened = loop {
            match self.open_once(&self.opener.open) {
                Err(error) if error.code == Code::ResourceExhausted && self.known().give() => {}
                opened => break opened,
            }
        };
        let opened = match (opened, &self.opener.frozen) {
            (Err(error), Some(path)) if error.is_read_only_disk() => {
                let what = "its file system is read-only, so nothing can be written, and what is on record is served; the \
                            kernel's log may say why: mount it writable again, and restart the daemon";
                let served = self.open_once(&|known| frozen(path, &known)).map_err(|why| why.context(&error.message));
                served.inspect(|_| self.refuse(Error::failed_precondition("metadata", "", format!("{what}: {error}"))))
            }
            (opened, _) => opened,
        };
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = opened.as_ref().err().cloned();
        opened
    }

    fn open_once(self: &Arc<Shared>, open: &dyn Fn(Known) -> Result<Database>) -> Result<Store> {
        // redb may panic over a file that something else has altered.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = open(self.opener.known.clone())?;
            prepare(&database, self.quick())?;
            let last =
                records::events::last(&View::new(database.begin_read().map_err(storage)?, self.opener.known.clone()))?;
            Ok((Arc::new(database), last))
        }));
        let (database, last) = opened.unwrap_or_else(|payload| Err(damaged(panic_text(&*payload))))?;
        self.set(Some(database.clone()));
        self.outbox.send_replace(last);
        Ok(Store { shared: self.clone(), database: Some(database), failed: false, ran: None })
    }
}

/// The row of `meta` that tells this root directory from every other one.
pub(crate) const INSTANCE: &[u8] = b"instance";

/// What tells this root directory from every other one: eight hexadecimal digits, chosen once.
pub(crate) fn instance(read: &dyn Read) -> Result<String> {
    let bytes = read.get(Table::META, INSTANCE)?.ok_or_else(|| damaged("it has no instance"))?;
    String::from_utf8(bytes).map_err(|_| damaged("its instance is no text"))
}

fn choose_instance(tx: &mut Tx<'_>) -> Result<()> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|e| Error::internal("random", "", e.to_string()))?;
    tx.put(Table::META, INSTANCE, format!("{:08x}", u32::from_le_bytes(bytes)).as_bytes())
}

/// Checks the version; on a new file makes the tables and the default namespace.
fn prepare(database: &Database, quick: bool) -> Result<()> {
    let txn = begin(database, quick)?;
    let authority = Authority::system();
    let spared = Arc::default();
    let mut tx = Tx::new(&txn, &authority, &spared);
    match tx.get(Table::META, b"version")?.map(|bytes| codec::number(&bytes)).transpose()? {
        // A row, not a table: a file from before there was one is given it, and is no other format for that.
        Some(VERSION) if tx.get(Table::META, INSTANCE)?.is_none() => {
            choose_instance(&mut tx)?;
            return txn.commit().map_err(storage);
        }
        Some(VERSION) => {
            txn.abort().map_err(storage)?;
            return Ok(());
        }
        // Version 2 has one table more, see [`Table::ATTACHMENTS`]; version 3 has a collector, and one less; version 4
        // has the specs of containers apart; version 5 has grants; version 6 has credentials.
        Some(old @ 1..VERSION) => {
            for table in Table::ALL {
                txn.open_table(table.definition()).map_err(storage)?;
            }
            if old < 3 {
                records::leases::hold_all(&mut tx)?;
                txn.delete_table(DELTA).map_err(storage)?;
            }
            records::containers::part(&mut tx)?;
            if tx.get(Table::META, INSTANCE)?.is_none() {
                choose_instance(&mut tx)?;
            }
            tx.put(Table::META, b"version", &VERSION.to_be_bytes())?;
            return txn.commit().map_err(storage);
        }
        Some(version) => {
            let message = format!(
                "meta.redb has format {version} and this daemon reads up to {VERSION}: a newer daemon wrote it; \
                 start that one, or give this one another root"
            );
            return Err(Error::failed_precondition("metadata", "", message));
        }
        None => {}
    }
    for table in Table::ALL {
        txn.open_table(table.definition()).map_err(storage)?;
    }
    // Adding a table is a change of the format: give it a new version, and a migration that opens it.
    tx.put(Table::META, b"version", &VERSION.to_be_bytes())?;
    choose_instance(&mut tx)?;
    records::namespaces::create_default(&mut tx)?;
    txn.commit().map_err(storage)
}

fn begin(database: &Database, quick: bool) -> Result<redb::WriteTransaction> {
    let mut txn = database.begin_write().map_err(storage)?;
    txn.set_durability(Durability::Immediate).map_err(storage)?;
    // After a kill -9 the file opens in a millisecond instead of by a scan of everything.
    txn.set_quick_repair(quick);
    Ok(txn)
}

/// The writer's side of an open database.
pub(crate) struct Store {
    shared: Arc<Shared>,
    database: Option<Arc<Database>>,
    failed: bool,
    /// What ran, where its commit failed: it may be there all the same.
    ran: Option<Ran>,
}

/// A batch that ran.
struct Ran {
    /// Its number, which its commit has with it.
    number: u64,
    results: Vec<Result<()>>,
    last_event: Option<u64>,
    changes: Changes,
}

/// The counter of batches that changed something.
const BATCH: &str = "batch";

/// How one job ended within a batch.
enum Verdict {
    Done,
    /// It changed nothing, so the batch goes on.
    Refused(Error),
    /// It failed after a change: the batch must be run again without it.
    Spoiled(Error),
    /// The file failed.
    Broken(Error),
}

impl Store {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Runs the jobs in one transaction, commits it, and gives each job's result. After a storage error every job
    /// has that error and [`Store::recover`] must be called before the next batch. On a full disk the jobs that leave
    /// less than there was are run again, with the reserve, unless the commit turns out to be there.
    pub(crate) fn commit(&mut self, writes: &[Write]) -> Vec<Result<()>> {
        // They came before that was known.
        if let Err(error) = self.shared.writable() {
            return writes.iter().map(|_| Err(error.clone())).collect();
        }
        self.ran = None;
        let mut done = self.attempt(writes, None);
        while let Err(error) = &done {
            let error = self.shared.known().explain(error.clone());
            self.failed = true;
            if error.code != Code::ResourceExhausted {
                break;
            }
            done = self.recover().and_then(|()| match self.landed()? {
                Some(results) => Ok(results),
                None => self.attempt(writes, Some(&error)),
            });
            // What was written was not all that needed room.
            if done.is_ok() || !self.shared.known().give() {
                break;
            }
        }
        match done {
            Ok(results) => results,
            Err(error) => {
                self.failed = true;
                tracing::error!("meta.redb: {error}");
                writes.iter().map(|_| Err(error.clone())).collect()
            }
        }
    }

    /// `full`: what the disk said; only what frees something is done then, and the rest is told that.
    fn attempt(&mut self, writes: &[Write], full: Option<&Error>) -> Result<Vec<Result<()>>> {
        let shared = self.shared.clone();
        let (known, database) = (shared.known(), self.open_database()?);
        // What a job that spoiled a batch is answered. It ran after the jobs before it, which are run again the same
        // way, so its error is the one of a serial order.
        let mut spoiled: Vec<Option<Error>> = writes.iter().map(|_| None).collect();
        'again: loop {
            let txn = begin(&database, shared.quick())?;
            let mut results = Vec::with_capacity(writes.len());
            let (mut changed, mut last_event, mut changes) = (false, None, Changes::default());
            for (write, spoiled) in writes.iter().zip(&mut spoiled) {
                if let Some(error) = spoiled {
                    results.push(Err(error.clone()));
                    continue;
                }
                let mut tx = Tx::new(&txn, &write.authority, &shared.spared);
                let verdict = match (run(write, &mut tx), full) {
                    (Verdict::Done, Some(error)) if tx.changed() && !tx.frees() => Verdict::Spoiled(error.clone()),
                    (verdict, _) => verdict,
                };
                match verdict {
                    Verdict::Done => {
                        changed |= tx.changed();
                        last_event = tx.last_event().or(last_event);
                        changes.add(tx.changes());
                        results.push(Ok(()));
                    }
                    Verdict::Refused(error) => results.push(Err(error)),
                    Verdict::Spoiled(error) => {
                        *spoiled = Some(error);
                        txn.abort().map_err(storage)?;
                        continue 'again;
                    }
                    Verdict::Broken(error) => return Err(error),
                }
            }
            let mut ran = Ran { number: 0, results, last_event, changes };
            if changed {
                ran.number = Tx::new(&txn, &Authority::system(), &shared.spared).next(BATCH, 1)?;
                let committed = if full.is_some() { known.lending(|| txn.commit()) } else { txn.commit() };
                if let Err(error) = committed {
                    self.ran = Some(ran);
                    return Err(storage(error));
                }
                return Ok(self.told(ran));
            }
            txn.abort().map_err(storage)?;
            return Ok(self.told(ran));
        }
    }

    /// Whether the batch whose commit failed is in the file after all, which was opened again since: what it changed is not
    /// to be done twice. What the failed sync left out a sync that succeeds may not write any more, so there is another
    /// commit before anybody is answered.
    fn landed(&mut self) -> Result<Option<Vec<Result<()>>>> {
        let Some(ran) = self.ran.take() else { return Ok(None) };
        let (shared, database) = (self.shared.clone(), self.open_database()?);
        let txn = begin(&database, shared.quick())?;
        let (system, number) = (Authority::system(), ran.number);
        let mut tx = Tx::new(&txn, &system, &shared.spared);
        if counter_of(&tx, BATCH)? != number {
            txn.abort().map_err(storage)?;
            return Ok(None);
        }
        tx.put(Table::COUNTERS, BATCH.as_bytes(), &number.to_be_bytes())?;
        if let Err(error) = shared.known().lending(|| txn.commit()) {
            // It is looked for once more.
            self.ran = Some(ran);
            return Err(storage(error));
        }
        Ok(Some(self.told(ran)))
    }

    fn open_database(&self) -> Result<Arc<Database>> {
        self.database.clone().ok_or_else(|| self.shared.down())
    }

    /// Tells who watches, and gives the answers.
    fn told(&self, ran: Ran) -> Vec<Result<()>> {
        if let Some(last) = ran.last_event {
            self.shared.outbox.send_replace(last);
        }
        if ran.changes != Changes::default() {
            self.shared.changes.send_modify(|all| all.add(ran.changes));
        }
        ran.results
    }

    /// After a storage error the handle is good for nothing: the file is closed and opened again. Does nothing
    /// otherwise.
    pub(crate) fn recover(&mut self) -> Result<()> {
        if !self.failed {
            return Ok(());
        }
        self.close();
        let mut fresh = self.shared.open()?;
        self.database = fresh.database.take();
        self.failed = false;
        Ok(())
    }

    /// The database, which nobody reads.
    pub(crate) fn into_database(mut self) -> Option<Database> {
        self.shared.set(None);
        self.database.take().and_then(Arc::into_inner)
    }

    fn close(&mut self) {
        let Some(database) = self.database.take() else { return };
        let mut shared = self.shared.database.write().unwrap_or_else(PoisonError::into_inner);
        // A writer that was given up because it hung may end after its successor has opened the file.
        if shared.as_ref().is_some_and(|other| Arc::ptr_eq(other, &database)) {
            release(shared.take());
        }
        drop(shared);
        release(Some(database));
    }
}

/// Lets go of a database. The last holder closes it, which writes, and over a damaged file redb panics there too. What
/// was acknowledged is on disk already.
fn release(database: Option<Arc<Database>>) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(database))) {
        tracing::error!("closing meta.redb: {}", panic_text(&*payload));
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

fn run(write: &Write, tx: &mut Tx<'_>) -> Verdict {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        (write.job)(tx)?;
        // What was under way when a grant was taken back may still be tidied up, and makes nothing any more: nobody would count
        // it, and its revocation is answered.
        if tx.changed() && !tx.frees() { records::grants::require(tx, &write.authority.grants) } else { Ok(()) }
    }));
    if tx.failed() {
        let error = match outcome {
            Ok(Err(error)) => error,
            _ => Error::internal("metadata", "", "meta.redb met a storage error"),
        };
        return Verdict::Broken(error);
    }
    match outcome {
        Ok(Ok(())) => Verdict::Done,
        Ok(Err(error)) if !tx.changed() => Verdict::Refused(error),
        Ok(Err(error)) => Verdict::Spoiled(error),
        Err(payload) => {
            let text = panic_text(&*payload);
            tracing::error!("a write panicked: {text}");
            Verdict::Spoiled(Error::internal("metadata", "", format!("the write panicked: {text}")))
        }
    }
}
