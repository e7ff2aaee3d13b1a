//! A client that outlives its connection, and handles that are found again on the next one.
//!
//! An object lives as long as its connection. What lasts is the way to it: the socket with the token, and then a chain of
//! calls that costs no round trip. So a [`Sturdy`] handle keeps its way, and goes it again when the connection was
//! replaced; all of one [`Reconnecting`] share the connection.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use cofferdam_types::{Code, Result};

use crate::connect::{Client, PATIENCE, PAUSES, is_lost};

/// An answer that takes so long came from a daemon that works.
const WORKED: Duration = Duration::from_secs(1);

/// A client whose connection is made anew when it is lost, with what it had: the grant of its token (which counts as one of
/// its uses), of its socket, or what the daemon's policy grants.
#[derive(Clone)]
pub struct Reconnecting(Rc<Inner>);

struct Inner {
    client: RefCell<Client>,
    /// How often the connection was replaced.
    generation: Cell<u64>,
    /// Who makes a new connection holds it; the others see that somebody did.
    making: tokio::sync::Mutex<()>,
    patience: Duration,
}

/// How long something is tried again.
struct Trial {
    until: Option<Instant>,
    pause: Duration,
}

impl Client {
    /// The same client, to go on with on other connections when this one is lost.
    pub fn reconnecting(&self) -> Reconnecting {
        self.reconnecting_for(PATIENCE)
    }

    /// The same, with the time that the daemon may be away; without a choice half a minute.
    pub fn reconnecting_for(&self, patience: Duration) -> Reconnecting {
        Reconnecting(Rc::new(Inner {
            client: RefCell::new(self.clone()),
            generation: Cell::new(0),
            making: tokio::sync::Mutex::new(()),
            patience,
        }))
    }

    /// Asks something that may take long, and asks it again on a new connection where this one is lost. The daemon may
    /// be away for half a minute. For what changes nothing, such as a wait. Who asks more than once keeps a
    /// [`Reconnecting`], which keeps the new connection.
    pub async fn persist<T>(&self, ask: impl AsyncFn(Client) -> Result<T>) -> Result<T> {
        self.reconnecting().ask(ask).await
    }
}

impl Reconnecting {
    /// The client of the moment. Its connection may be lost.
    pub fn client(&self) -> Client {
        self.0.client.borrow().clone()
    }

    /// A client whose connection is not known to be lost: a new one is made if it must be, for as long as the daemon may
    /// be away.
    pub async fn connected(&self) -> Result<Client> {
        let mut trial = Trial::new();
        loop {
            let (seen, client) = (self.0.generation.get(), self.client());
            if !client.is_closed() {
                return Ok(client);
            }
            if let Err(error) = self.renew(seen).await {
                trial.again(self, Duration::ZERO).map_err(|()| error)?.await;
            }
        }
    }

    /// A handle that is found again on each new connection, by the way that is given: a chain of calls from the client.
    pub fn sturdy<T>(&self, way: impl Fn(&Client) -> T + 'static) -> Sturdy<T> {
        Sturdy { from: self.clone(), way: Rc::new(way), got: Rc::default() }
    }

    /// Asks something, and asks it again on a new connection where that one is lost. What a lost connection was asked for
    /// may have happened or not: so this is for what changes nothing, or may be done twice. Who is refused at once is
    /// told so; that a part of the daemon is down passes, while it comes back or behind an answer that took its time.
    pub async fn ask<T>(&self, ask: impl AsyncFn(Client) -> Result<T>) -> Result<T> {
        let mut trial = Trial::new();
        loop {
            let (seen, asked) = (self.0.generation.get(), Instant::now());
            let error = match ask(self.client()).await {
                Err(error) if is_lost(&error) || error.code == Code::Unavailable && trial.passes(asked) => error,
                other => return other,
            };
            trial.again(self, asked.elapsed()).map_err(|()| error)?.await;
            while let Err(error) = self.renew(seen).await {
                trial.again(self, Duration::ZERO).map_err(|()| error)?.await;
            }
        }
    }

    /// Makes a new connection, unless somebody did since `seen`.
    async fn renew(&self, seen: u64) -> Result<()> {
        let _making = self.0.making.lock().await;
        if self.0.generation.get() == seen {
            let client = self.client().again().await?;
            self.0.client.replace(client);
            self.0.generation.set(seen + 1);
        }
        Ok(())
    }
}

impl Trial {
    fn new() -> Trial {
        Trial { until: None, pause: PAUSES.0 }
    }

    /// Whether a daemon that has no answer is one that comes back.
    fn passes(&self, asked: Instant) -> bool {
        self.until.is_some() || asked.elapsed() > WORKED
    }

    /// A pause before the next time, unless there is none: what took `worked` was an attempt that began the patience anew.
    fn again(&mut self, of: &Reconnecting, worked: Duration) -> Result<impl Future<Output = ()> + use<>, ()> {
        if self.until.is_none() || worked > WORKED {
            (self.until, self.pause) = (Some(Instant::now() + of.0.patience), PAUSES.0);
        } else if self.until.is_some_and(|until| Instant::now() > until) {
            return Err(());
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSES.1);
        Ok(tokio::time::sleep(pause))
    }
}

/// A handle that is found again on each new connection of its [`Reconnecting`].
pub struct Sturdy<T> {
    from: Reconnecting,
    way: Rc<dyn Fn(&Client) -> T>,
    /// The handle on the connection of that number.
    got: Rc<RefCell<Option<(u64, T)>>>,
}

impl<T> Clone for Sturdy<T> {
    fn clone(&self) -> Sturdy<T> {
        Sturdy { from: self.from.clone(), way: self.way.clone(), got: self.got.clone() }
    }
}

impl<T: Clone> Sturdy<T> {
    /// The handle, on a connection that is not known to be lost. For a call that is to be made once: if its connection
    /// breaks under it, whether it was done is for you to find out.
    pub async fn get(&self) -> Result<T> {
        self.from.connected().await?;
        Ok(self.now())
    }

    /// Asks something of it, as [`Reconnecting::ask`] does.
    pub async fn ask<R>(&self, ask: impl AsyncFn(T) -> Result<R>) -> Result<R> {
        self.from.ask(async |_| ask(self.now()).await).await
    }

    /// The handle on the connection of the moment.
    fn now(&self) -> T {
        let generation = self.from.0.generation.get();
        if let Some((of, handle)) = &*self.got.borrow()
            && *of == generation
        {
            return handle.clone();
        }
        let handle = (self.way)(&self.from.client());
        self.got.replace(Some((generation, handle.clone())));
        handle
    }
}
