//! A small HTTP server on loopback that fails in all the ways that a registry can.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// What came in. Header names are lowercase.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte of a range request.
    pub fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What goes out.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub then: Then,
}

/// What happens to the body.
pub enum Then {
    /// All of it is sent.
    All,
    /// This much is sent, then the connection is cut.
    Cut(usize),
    /// This much is sent, then nothing more until the server ends.
    Hang(usize),
    /// Header bytes without end.
    EndlessHeader,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, headers: Vec::new(), body: body.into(), then: Then::All }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply::new(200, body)
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Reply {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub fn then(mut self, then: Then) -> Reply {
        self.then = then;
        self
    }

    /// Answers a range request properly.
    pub fn ranged(seen: &Seen, body: &[u8]) -> Reply {
        match seen.from() {
            None => Reply::ok(body),
            Some(from) => Reply::new(206, &body[from..])
                .with("content-range", format!("bytes {from}-{}/{}", body.len() - 1, body.len())),
        }
    }
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;

/// Runs until dropped.
pub struct Server {
    pub port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    pub fn new(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, stop, open) =
            (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let handler: Arc<Handler> = Arc::new(handler);
        let accepting = std::thread::spawn({
            let (seen, stop, open) = (seen.clone(), stop.clone(), open.clone());
            move || {
                let mut threads = Vec::new();
                for stream in listener.incoming() {
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    let Ok(stream) = stream else { break };
                    open.lock().unwrap().push(stream.try_clone().unwrap());
                    let (seen, handler) = (seen.clone(), handler.clone());
                    threads.push(std::thread::spawn(move || {
                        let _ = serve(stream, &seen, &*handler);
                    }));
                }
                for stream in open.lock().unwrap().drain(..) {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                for thread in threads {
                    let _ = thread.join();
                }
            }
        });
        Server { port, seen, stop, open, accepting: Some(accepting) }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.accepting.take().unwrap().join();
        self.open.lock().unwrap().clear();
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Seen>>, handler: &Handler) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(0, |l| l.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let seen = Seen { method, target, headers, body };
        log.lock().unwrap().push(seen.clone());
        let reply = handler(&seen);
        let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
        if !reply.headers.iter().any(|(n, _)| n == "content-length") {
            head += &format!("content-length: {}\r\n", reply.body.len());
        }
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Then::EndlessHeader = reply.then {
            out.write_all(head.as_bytes())?;
            loop {
                out.write_all(b"x-more: and more\r\n")?;
            }
        }
        out.write_all((head + "\r\n").as_bytes())?;
        if seen.method == "HEAD" {
            continue;
        }
        match reply.then {
            Then::All => out.write_all(&reply.body)?,
            Then::Cut(n) => {
                out.write_all(&reply.body[..n])?;
                return out.shutdown(Shutdown::Both);
            }
            Then::Hang(n) => {
                out.write_all(&reply.body[..n])?;
                // Ends when the client hangs up or the server shuts the socket.
                let mut rest = Vec::new();
                reader.read_to_end(&mut rest)?;
                return Ok(());
            }
            Then::EndlessHeader => unreachable!(),
        }
    }
}
