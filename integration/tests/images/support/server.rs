//! A small HTTP server on loopback that behaves as a registry should, or as it should not.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use super::craft::{Picture, sha};

/// What came in. Header names are lowercase.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

impl Request {
    /// Where a range request begins.
    pub fn from(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What goes out.
pub struct Response {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub end: End,
}

/// What becomes of the body.
pub enum End {
    /// All of it is sent.
    Whole,
    /// This much is sent, then the connection is cut.
    Cut(usize),
    /// This much is sent; the rest once the door is open.
    Wait(usize, Arc<Door>),
}

/// Opens once, for all who wait.
#[derive(Default)]
pub struct Door {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Door {
    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
    }
}

impl Response {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Response {
        Response { status, headers: Vec::new(), body: body.into(), end: End::Whole }
    }

    pub fn with(mut self, name: &'static str, value: impl ToString) -> Response {
        self.headers.push((name, value.to_string()));
        self
    }

    pub fn end(mut self, end: End) -> Response {
        self.end = end;
        self
    }
}

/// What registries answer for one image under the tag `latest` of any repository; `None` is for the caller to answer.
pub fn serve_picture(picture: &Picture, request: &Request) -> Option<Response> {
    let last = request.path.rsplit('/').next().unwrap_or_default();
    if request.path == "/v2/" {
        return Some(Response::new(200, "{}"));
    }
    let target = sha(&picture.manifest).to_string();
    if request.path.contains("/manifests/") {
        return (last == "latest" || last == target).then(|| {
            Response::new(200, picture.manifest.clone())
                .with("content-type", &picture.media_type)
                .with("docker-content-digest", &target)
        });
    }
    let blob = picture.blobs().into_iter().find(|blob| sha(blob).to_string() == last)?.to_vec();
    Some(match request.from() {
        None => Response::new(200, blob),
        Some(from) => Response::new(206, &blob[from..])
            .with("content-range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())),
    })
}

type Handler = dyn Fn(&Request) -> Response + Send + Sync;

/// Runs until dropped.
pub struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let open = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        let accepting = std::thread::spawn({
            let (seen, stop, open) = (seen.clone(), stop.clone(), open.clone());
            move || {
                for stream in listener.incoming() {
                    let Ok(stream) = stream else { break };
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    open.lock().unwrap().push(stream.try_clone().unwrap());
                    let (seen, handler) = (seen.clone(), handler.clone());
                    std::thread::spawn(move || drop(serve(stream, &seen, &*handler)));
                }
            }
        });
        Server { port, seen, stop, open, accepting: Some(accepting) }
    }

    /// A registry with one image.
    pub fn of(picture: Picture) -> Server {
        Server::start(move |request| serve_picture(&picture, request).unwrap_or_else(|| Response::new(404, "{}")))
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A name of the image that this server has.
    pub fn reference(&self) -> String {
        format!("{}/test/image:latest", self.address())
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Cuts every connection and takes no more, as a machine does that goes down.
    pub fn die(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.die();
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Request>>, handler: &Handler) -> std::io::Result<()> {
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
        let length: u64 = headers.get("content-length").map_or(0, |l| l.parse().unwrap_or(0));
        std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink())?;
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let request = Request { method, path, headers };
        log.lock().unwrap().push(request.clone());
        let response = handler(&request);
        let mut head = format!("HTTP/1.1 {} x\r\ncontent-length: {}\r\n", response.status, response.body.len());
        for (name, value) in &response.headers {
            head += &format!("{name}: {value}\r\n");
        }
        out.write_all((head + "\r\n").as_bytes())?;
        if request.method == "HEAD" {
            continue;
        }
        match response.end {
            End::Whole => out.write_all(&response.body)?,
            End::Cut(n) => {
                out.write_all(&response.body[..n.min(response.body.len())])?;
                return out.shutdown(Shutdown::Both);
            }
            End::Wait(n, door) => {
                let n = n.min(response.body.len());
                out.write_all(&response.body[..n])?;
                door.pass();
                out.write_all(&response.body[n..])?;
            }
        }
    }
}
