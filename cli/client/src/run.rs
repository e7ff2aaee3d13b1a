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
    image::{Image, Images, PullOptions, PullPolicy},
    json::parse_time,
    namespace::{Context, Namespace, Namespaces},
    process::{Exit, Status, Task},
    stdio::Stdio,
};

/// How long the journal may take to give an exit that it must have.
const LOOKUP: Duration = Duration::from_secs(5);

/// What is run.
pub struct RunRequest {
    /// Where.
    pub namespace: String,
    /// What lies over all of it.
    pub context: Context,
    /// The image, and how it is pulled if it must be.
    pub image: PullOptions,
    /// Whether it is pulled.
    pub pull: PullPolicy,
    /// The container. An empty id is replaced by a random one, so that the container can be found again.
    pub container: ContainerRequest,
    /// Where its first process reads and writes.
    pub stdio: Stdio,
    /// Whether what it writes is kept.
    pub log: bool,
}

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
        }
    }

    /// The same with these streams, for another attempt.
    pub fn with(&self, stdio: Stdio) -> RunRequest {
        RunRequest {
            namespace: self.namespace.clone(),
            context: self.context.clone(),
            image: self.image.clone(),
            pull: self.pull,
            container: self.container.clone(),
            stdio,
            log: self.log,
        }
    }
}

type Once<T> = Shared<LocalBoxFuture<'static, Result<T>>>;

/// The objects of a run on the connection of the moment, and what is awaited there.
#[derive(Clone)]
struct Now {
    client: Client,
    container: Container,
    created: Once<()>,
    task: Task,
    started: Once<u32>,
    exit: Once<Exit>,
    /// Where the container goes with its task.
    removed: Option<Once<()>>,
}

/// The way to the container. Letting go of a call's result is a message too, and it would follow at once.
type Way = (Namespaces, [Namespace; 2], Images, Image, Containers);
/// Gives what is run, once for each attempt.
type Make = Box<dyn Fn() -> Result<RunRequest>>;

/// A container that was asked to run.
pub struct Run {
    namespace: String,
    id: String,
    began: Timestamp,
    now: RefCell<Now>,
    /// The size that the terminal was last given: a daemon that comes back is told again.
    size: Cell<Option<(u16, u16)>>,
    /// How often the connection was replaced. Who finds the daemon again holds it; the others see that somebody did.
    generation: tokio::sync::Mutex<u64>,
    way: RefCell<Way>,
    /// Where the run may be begun anew.
    make: Option<Make>,
}

impl Client {
    /// Runs a container. Every call goes out before this returns, and none waits for another's answer.
    pub fn run(&self, request: RunRequest) -> Result<Run> {
        self.begin(request, None)
    }

    /// [`Client::run`] with patience for a part of the daemon that is down and comes back. `make` is called for each
    /// attempt, since descriptors can be handed over only once; the id is that of the first.
    pub fn run_patiently(&self, make: impl Fn() -> Result<RunRequest> + 'static) -> Result<Run> {
        self.begin(make()?, Some(Box::new(make)))
    }

    fn begin(&self, mut request: RunRequest, make: Option<Make>) -> Result<Run> {
        if request.container.id.is_empty() {
            request.container.id = random_id()?;
        }
        let (namespace, id, size) = (request.namespace.clone(), request.container.id.clone(), request.stdio.size);
        let (now, way) = self.burst(request);
        Ok(Run {
            namespace,
            id,
            began: Timestamp::now(),
            now: RefCell::new(now),
            size: Cell::new((size != (0, 0)).then_some(size)),
            generation: tokio::sync::Mutex::new(0),
            way: RefCell::new(way),
            make,
        })
    }

    fn burst(&self, request: RunRequest) -> (Now, Way) {
        let namespaces = self.namespaces();
        let outer = namespaces.get(&request.namespace);
        let namespace = outer.with(&request.context);
        let images = namespace.images();
        let image = match request.pull {
            PullPolicy::Never => images.get(&request.image.reference),
            policy => images.obtain(&request.image, policy),
        };
        let containers = namespace.containers();
        let (container, created) = containers.create_and_tell(&image, &request.container);
        let created = created.boxed_local().shared();
        let task = container.create_task(request.stdio, request.log);
        let started = task.start().boxed_local().shared();
        let exit = task.wait().boxed_local().shared();
        let removed = request.container.remove_on_exit.then(|| container.removed().boxed_local().shared());
        let now = Now { client: self.clone(), container, created, task, started, exit, removed };
        (now, (namespaces, [outer, namespace], images, image, containers))
    }
}

impl Run {
    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits for the start, and gives the pid on the host (0 if it has ended since). What never started is removed
    /// before the error is given.
    pub async fn started(&self) -> Result<u32> {
        let (until, mut pause) = (Instant::now() + PATIENCE, PAUSES.0);
        loop {
            let seen = *self.generation.lock().await;
            // A daemon that says that it is overloaded is believed: nothing was made that could be found again.
            let error = match self.outlive(is_lost, |now| now.started.clone()).await {
                Ok(pid) => return Ok(pid.unwrap_or_default()),
                Err(error) => error,
            };
            match &self.make {
                Some(make) if error.comes_back() && Instant::now() < until => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                    self.begin_anew(make, seen, until).await?;
                }
                _ => {
                    if !is_lost(&error) {
                        // If the container was never made this fails with the error that we already have.
                        let _ = self.container().remove(true).await;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Sends the burst again, unless somebody did since `seen`. What the last one made goes first: the id is the same.
    async fn begin_anew(&self, make: &Make, seen: u64, until: Instant) -> Result<()> {
        let mut generation = self.generation.lock().await;
        if *generation != seen {
            return Ok(());
        }
        let Now { client, container, created, .. } = self.now.borrow().clone();
        while created.clone().await.is_ok() {
            match container.remove(true).await {
                Err(error) if error.comes_back() && Instant::now() < until => tokio::time::sleep(PAUSES.1).await,
                Err(error) if error.code != Code::NotFound => return Err(error),
                _ => break,
            }
        }
        let mut request = make()?;
        request.container.id.clone_from(&self.id);
        let (now, way) = client.burst(request);
        (*self.now.borrow_mut(), *self.way.borrow_mut()) = (now, way);
        *generation += 1;
        Ok(())
    }

    /// Waits for the end, and for the removal where that was asked for. Outlives a restart of the daemon.
    pub async fn wait(&self) -> Result<Exit> {
        self.started().await?;
        let exit = match self.outlive(unavailable, |now| now.exit.clone()).await? {
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
        self.on_task(|task| task.resize(rows, columns)).await
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
            Err(_) => Err(Error::not_found("task", &self.id, "has ended")),
        }
    }

    /// Awaits what `call` gives. Where that fails for a reason that passes, finds the task again and asks anew. The
    /// inner error is the exit of a container that was removed meanwhile.
    async fn outlive<T, F: Future<Output = Result<T>>>(
        &self,
        passes: fn(&Error) -> bool,
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
        let container = client.namespace(&self.namespace).containers().get(&self.id);
        let task = container.task();
        let state = match task.state().await {
            Err(error) if error.code == Code::NotFound && old.removed.is_some() => {
                return self.journalled(&client).await.map(Some);
            }
            other => other?,
        };
        let mut pid = state.pid;
        if state.status == Status::Created {
            // Our own start may have been lost with the connection, or may just be at work.
            match task.start().await {
                Ok(started) => pid = started,
                Err(error) if error.code == Code::FailedPrecondition && error.kind != "command" => {}
                Err(error) => return Err(error),
            }
        }
        if let Some((rows, columns)) = self.size.get() {
            // It may end at any time.
            let _ = task.resize(rows, columns).await;
        }
        let started = futures::future::ready(Ok(pid)).boxed_local().shared();
        let exit = task.wait().boxed_local().shared();
        let removed = old.removed.map(|_| container.removed().boxed_local().shared());
        let created = futures::future::ready(Ok(())).boxed_local().shared();
        *self.now.borrow_mut() = Now { client, container, created, task, started, exit, removed };
        Ok(None)
    }

    /// The exit of a container that is gone. Its record went in the same commit that made the event, so the journal has
    /// it unless it is too old.
    async fn journalled(&self, client: &Client) -> Result<Exit> {
        let filter = format!("topic==\"/tasks/exit\",event.container_id==\"{0}\",event.id==\"{0}\"", self.id);
        let mut events = client.namespace(&self.namespace).events().subscribe(0, &[filter]);
        let search = async {
            loop {
                let Ok(event) = events.next().await? else { continue };
                if event.timestamp < self.began {
                    // An earlier container of that name.
                    continue;
                }
                let number = |field: &str| event.payload.get(field).and_then(serde_json::Value::as_u64);
                let status = number("exit_status").and_then(|status| u32::try_from(status).ok());
                let status = status.ok_or_else(|| Error::internal("event", event.sequence, "has no exit status"))?;
                let reason = event.payload.get("reason").and_then(|reason| reason.as_str()).unwrap_or_default();
                let at = event.payload.get("exited_at").and_then(|at| at.as_str()).and_then(parse_time);
                return Ok(Exit { status, at: at.unwrap_or(event.timestamp), reason: reason.to_owned() });
            }
        };
        tokio::time::timeout(LOOKUP, search).await.unwrap_or_else(|_| {
            let why = "is gone since the connection was lost, and the journal has no exit of it";
            Err(Error::not_found("container", &self.id, why))
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
