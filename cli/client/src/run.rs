//! A run: image, container, task, start and wait in one burst of calls, and the wait outlives the daemon.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    time::{Duration, Instant},
};

use cofferdam_types::{Code, Error, Result, Timestamp};
use futures::{FutureExt, future::LocalBoxFuture, future::Shared};

use crate::{
    call::Reply,
    connect::{Client, PATIENCE, PAUSES, is_lost},
    container::{Container, ContainerRequest, Containers},
    exits::{self, Search},
    image::{Image, Images, PullOptions, PullPolicy},
    namespace::{Context, Namespace, Namespaces},
    process::{Exit, Status, Task},
    stdio::Stdio,
};

/// How long the journal may take to give an exit that it must have.
const LOOKUP: Duration = Duration::from_secs(5);
/// How long it may take to give one that it probably hasn't.
const GLANCE: Duration = Duration::from_secs(1);
/// How often what a lost connection asked for may get in the way of what is asked for again.
const RACES: u32 = 20;

/// What is run.
pub struct RunRequest {
    /// Where.
    pub namespace: String,
    /// What lies over all of it.
    pub context: Context,
    /// The image, and how it is pulled if it must be; nothing where the container has a root file system of the host's.
    pub image: PullOptions,
    /// Whether it is pulled.
    pub pull: PullPolicy,
    /// The container. An empty id is replaced by a random one, so that the container can be found again.
    pub container: ContainerRequest,
    /// Where its first process reads and writes.
    pub stdio: Stdio,
    /// Whether what it writes is kept.
    pub log: bool,
    /// Gives the streams once more, for a run that the daemon's end met before the container was made. Without it only
    /// null streams can be had again, and such a run fails if it has others.
    pub again: Option<Again>,
}

/// See [`RunRequest::again`].
pub type Again = Box<dyn Fn() -> Result<Stdio>>;

impl RunRequest {
    /// Runs an image as it says itself, with null streams.
    pub fn new(namespace: &str, image: &str) -> RunRequest {
        RunRequest {
            namespace: namespace.to_owned(),
            context: Context::default(),
            image: PullOptions { reference: image.to_owned(), ..PullOptions::default() },
            pull: PullPolicy::Missing,
            container: ContainerRequest::default(),
            stdio: Stdio::default(),
            log: false,
            again: None,
        }
    }
}

type Once<T> = Shared<LocalBoxFuture<'static, Result<T>>>;

/// The objects of a run on the connection of the moment, and what is awaited there.
#[derive(Clone)]
struct Now {
    client: Client,
    container: Container,
    task: Task,
    started: Once<u32>,
    exit: Once<Exit>,
    /// Where the container goes with its task.
    removed: Option<Once<()>>,
}

/// The way to the container. Letting go of a call's result is a message too, and it would follow at once.
type Way = (Namespaces, [Namespace; 2], Images, Option<Image>, Containers);

/// A container that was asked to run.
pub struct Run {
    request: RunRequest,
    began: Timestamp,
    /// Whether we have heard that it started.
    heard: Cell<bool>,
    /// Whether it was found again on another connection than the first.
    rejoined: Cell<bool>,
    /// How often all of it was asked for again.
    repeats: Cell<u32>,
    now: RefCell<Now>,
    /// The size that the terminal was last given: a daemon that comes back is told again.
    size: Cell<Option<(u16, u16)>>,
    /// How often the connection was replaced. Who finds the daemon again holds it; the others see that somebody did.
    generation: tokio::sync::Mutex<u64>,
    way: RefCell<Way>,
}

impl Client {
    /// Runs a container. Every call goes out before this returns, and none waits for another's answer.
    pub fn run(&self, mut request: RunRequest) -> Result<Run> {
        if request.container.id.is_empty() {
            request.container.id = random_id()?;
        }
        let stdio = std::mem::take(&mut request.stdio);
        let size = stdio.size;
        if request.again.is_none() && stdio.is_null() {
            request.again = Some(Box::new(move || Ok(Stdio { size, ..Stdio::default() })));
        }
        let began = Timestamp::now();
        let (now, way) = burst(self, &request, stdio, false);
        Ok(Run {
            request,
            began,
            heard: Cell::new(false),
            rejoined: Cell::new(false),
            repeats: Cell::new(0),
            now: RefCell::new(now),
            size: Cell::new((size != (0, 0)).then_some(size)),
            generation: tokio::sync::Mutex::new(0),
            way: RefCell::new(way),
        })
    }
}

/// All the calls of a run. `there`: the container is made, and has no task.
fn burst(client: &Client, request: &RunRequest, stdio: Stdio, there: bool) -> (Now, Way) {
    let namespaces = client.namespaces();
    let outer = namespaces.get(&request.namespace);
    let namespace = outer.with(&request.context);
    let images = namespace.images();
    let image = request.container.rootfs.is_empty().then(|| match request.pull {
        PullPolicy::Never => images.get(&request.image.reference),
        // What was pulled for the container that is there is not pulled for it again.
        _ if there => images.get(&request.image.reference),
        policy => images.obtain(&request.image, policy),
    });
    let containers = namespace.containers();
    let container = match &image {
        _ if there => containers.get(&request.container.id),
        Some(image) => containers.create(image, &request.container),
        None => containers.create_on_rootfs(&request.container),
    };
    let task = match &image {
        Some(image) if request.container.checkpoint => container.create_task_from(image, stdio, request.log),
        _ => container.create_task(stdio, request.log),
    };
    let started = task.start().boxed_local().shared();
    let exit = task.wait().boxed_local().shared();
    let removed = request.container.remove_on_exit.then(|| container.removed().boxed_local().shared());
    let now = Now { client: client.clone(), container, task, started, exit, removed };
    (now, (namespaces, [outer, namespace], images, image, containers))
}

impl Run {
    /// The container's id.
    pub fn id(&self) -> &str {
        &self.request.container.id
    }

    /// Waits for the start, and gives the pid on the host (0 if it has ended since). What never started is removed
    /// before the error is given.
    pub async fn started(&self) -> Result<u32> {
        let until = Instant::now() + PATIENCE;
        // A daemon that says that it is overloaded is believed: nothing was made that could be found again.
        let passes = |error: &Error| {
            // A part of it is down, and what was not done can be asked for once more.
            let returns = error.comes_back() && self.request.again.is_some() && Instant::now() < until;
            // What the lost connection had asked for last may have been done behind our look at what there is.
            let raced = error.kind == "container"
                && matches!(error.code, Code::AlreadyExists | Code::NotFound | Code::FailedPrecondition);
            is_lost(error) || returns || raced && (1..RACES).contains(&self.repeats.get())
        };
        match self.outlive(passes, |now| now.started.clone()).await {
            Ok(pid) => {
                self.heard.set(true);
                Ok(pid.unwrap_or_default())
            }
            Err(error) => {
                if !is_lost(&error) {
                    // If the container was never made this fails with the error that we already have.
                    let _ = self.container().remove(true).await;
                }
                Err(error)
            }
        }
    }

    /// Waits for the end, and for the removal where that was asked for. Outlives a restart of the daemon.
    pub async fn wait(&self) -> Result<Exit> {
        self.started().await?;
        let passes = |error: &Error| {
            // It may go right behind our look at it, before we can wait for its end.
            let went = error.code == Code::NotFound && error.kind == "container" && self.rejoined.get();
            unavailable(error) || went
        };
        let exit = match self.outlive(passes, |now| now.exit.clone()).await? {
            Ok(exit) => exit,
            Err(exit) => return Ok(exit),
        };
        if self.now.borrow().removed.is_some() {
            let removed = |now: &Now| {
                let removed = now.removed.clone();
                async move { if let Some(removed) = removed { removed.await } else { Ok(()) } }.boxed_local()
            };
            match self.outlive(unavailable, removed).await {
                Err(error) if error.code != Code::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(exit)
    }

    /// Sends a signal to the first process.
    pub async fn kill(&self, signal: u32) -> Result<()> {
        self.on_task(|task| task.kill(signal, false)).await
    }

    /// Gives the terminal another size.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        self.size.set(Some((rows, columns)));
        // One that is asked for again, since its answer was lost, must not come behind a later one with what was before.
        let latest = || self.size.get().unwrap_or((rows, columns));
        self.on_task(|task| {
            let (rows, columns) = latest();
            task.resize(rows, columns)
        })
        .await
    }

    /// The container on the connection of the moment.
    pub fn container(&self) -> Container {
        self.now.borrow().container.clone()
    }

    /// The task on the connection of the moment.
    pub fn task(&self) -> Task {
        self.now.borrow().task.clone()
    }

    /// What the first connection says of the end.
    #[cfg(test)]
    pub(crate) async fn now_exit(&self) -> Result<Exit> {
        let exit = self.now.borrow().exit.clone();
        exit.await
    }

    async fn on_task(&self, call: impl Fn(&Task) -> Reply<()>) -> Result<()> {
        match self.outlive(unavailable, |now| call(&now.task)).await? {
            Ok(()) => Ok(()),
            Err(_) => Err(Error::not_found("task", self.id(), "has ended")),
        }
    }

    /// Awaits what `call` gives. Where that fails for a reason that passes, finds the task again and asks anew. The
    /// inner error is the exit of a container that was removed meanwhile.
    async fn outlive<T, F: Future<Output = Result<T>>>(
        &self,
        passes: impl Fn(&Error) -> bool,
        call: impl Fn(&Now) -> F,
    ) -> Result<Result<T, Exit>> {
        loop {
            let seen = *self.generation.lock().await;
            let answer = call(&self.now.borrow());
            match answer.await {
                Ok(answer) => return Ok(Ok(answer)),
                Err(error) if passes(&error) => {
                    if let Some(exit) = self.rejoin(seen).await? {
                        return Ok(Err(exit));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Finds the task again on a new connection, unless somebody did since `seen`. Gives the exit where the container
    /// was removed meanwhile.
    async fn rejoin(&self, seen: u64) -> Result<Option<Exit>> {
        let mut generation = self.generation.lock().await;
        if *generation != seen {
            return Ok(None);
        }
        let until = Instant::now() + PATIENCE;
        let mut pause = PAUSES.0;
        loop {
            match self.find().await {
                Ok(found) => {
                    *generation += 1;
                    self.rejoined.set(true);
                    return Ok(found);
                }
                Err(error) if unavailable(&error) && Instant::now() < until => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                Err(error) => return Err(error.context("after the connection was lost")),
            }
        }
    }

    async fn find(&self) -> Result<Option<Exit>> {
        let old = self.now.borrow().clone();
        let client = old.client.again().await?;
        let container = client.namespace(&self.request.namespace).containers().get(self.id());
        if !self.heard.get()
            && let Ok(info) = container.info().await
            && info.created < self.began
        {
            let why = "is there already: choose another name or remove it";
            return Err(Error::already_exists("container", self.id(), why));
        }
        let task = container.task();
        let state = match task.state().await {
            Err(error) if error.code == Code::NotFound && self.heard.get() && old.removed.is_some() => {
                return self.journalled(&client, LOOKUP).await.map(Some);
            }
            Err(error) if error.code == Code::NotFound && !self.heard.get() => {
                return self.anew(&client, &container, error.kind == "task").await;
            }
            other => other?,
        };
        let mut pid = state.pid;
        if state.status == Status::Created {
            // Our own start may have been lost with the connection, or may just be at work.
            match task.start().await {
                Ok(started) => pid = started,
                Err(error) if error.code == Code::FailedPrecondition && error.kind != "command" => {}
                // It has just gone: the wait sees that.
                Err(error) if error.code == Code::NotFound && error.kind == "container" => {}
                Err(error) => return Err(error),
            }
        }
        if let Some((rows, columns)) = self.size.get() {
            // It may end at any time.
            let _ = task.resize(rows, columns).await;
        }
        let started = futures::future::ready(Ok(pid)).boxed_local().shared();
        let exit = match state.exit {
            Some(exit) => futures::future::ready(Ok(exit)).boxed_local().shared(),
            None => task.wait().boxed_local().shared(),
        };
        let removed = old.removed.map(|_| container.removed().boxed_local().shared());
        *self.now.borrow_mut() = Now { client, container, task, started, exit, removed };
        Ok(None)
    }

    /// What the daemon had not done before it went is asked for once more. Gives the exit of a container that came and
    /// went meanwhile.
    async fn anew(&self, client: &Client, container: &Container, there: bool) -> Result<Option<Exit>> {
        if !there && let Ok(exit) = self.journalled(client, GLANCE).await {
            return Ok(Some(exit));
        }
        let Some(again) = &self.request.again else {
            if there {
                // As for everything that never started.
                let _ = container.remove(true).await;
            }
            let why = "was not made before the daemon went, and its streams were given away: run it again";
            return Err(Error::cancelled("container", self.id(), why));
        };
        // What failed a moment ago fails again just now.
        let pause = PAUSES.0 * (1 << self.repeats.get().min(8)) / 2;
        if self.repeats.get() > 0 {
            tokio::time::sleep(pause.min(PAUSES.1)).await;
        }
        let (now, way) = burst(client, &self.request, again()?, there);
        self.repeats.set(self.repeats.get() + 1);
        *self.now.borrow_mut() = now;
        *self.way.borrow_mut() = way;
        Ok(None)
    }

    /// The exit of a container that is gone. Its record went in the same commit that made the event, so the journal has
    /// it unless it is too old.
    async fn journalled(&self, client: &Client, patience: Duration) -> Result<Exit> {
        let filters = exits::filters(self.id());
        let mut events = client.namespace(&self.request.namespace).events().subscribe(0, &filters);
        let mut search = Search::new(self.began);
        let looking = async {
            loop {
                let Ok(event) = events.next().await? else { continue };
                if let Some(exit) = search.take(&event)? {
                    return Ok(exit);
                }
            }
        };
        let looked = tokio::time::timeout(patience, looking).await;
        looked.unwrap_or_else(|_| {
            if let Some(exit) = search.last().filter(|_| self.heard.get()) {
                return Ok(exit);
            }
            let why = "is gone since the connection was lost, and the journal has no exit of it";
            Err(Error::not_found("container", self.id(), why))
        })
    }
}

fn unavailable(error: &Error) -> bool {
    error.code == Code::Unavailable
}

/// An id that nobody else has: 64 random bits as 16 hexadecimal digits.
pub fn random_id() -> Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| Error::internal("id", "", format!("no random bytes: {e}")))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}
