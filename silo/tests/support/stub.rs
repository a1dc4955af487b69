//! A server of one bucket in memory: plain HTTP with ranges, or enough of Google's XML API.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::proxy::Head;

/// What the server does and does not do.
#[derive(Clone, Copy)]
pub struct Manners {
    /// Whether answers carry entity tags, weak ones if `weak_tags`.
    pub tags: bool,
    pub weak_tags: bool,
    /// Whether answers carry a time of modification.
    pub times: bool,
    /// Whether ranges are served.
    pub ranges: bool,
    /// Whether conditions on reads are looked at.
    pub conditions: bool,
}

impl Default for Manners {
    fn default() -> Self {
        Self { tags: true, weak_tags: false, times: true, ranges: true, conditions: true }
    }
}

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    generation: u64,
    metadata: Vec<String>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Object>,
    generations: u64,
    seen: Vec<Head>,
}

/// A stub; dropping it ends it.
pub struct Stub {
    pub port: u16,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Stub {
    pub async fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { drop(serve(client, manners, &shared).await) });
            }
        });
        Self { port, state, task }
    }

    /// Writes an object as somebody else would.
    pub fn put(&self, path: &str, bytes: impl Into<Bytes>) {
        self.state.lock().expect("sound").put(path, bytes.into(), Vec::new());
    }

    pub fn bytes(&self, path: &str) -> Option<Bytes> {
        let state = self.state.lock().expect("sound");
        state.objects.get(path).map(|object| object.bytes.clone())
    }

    pub fn take_seen(&self) -> Vec<Head> {
        std::mem::take(&mut self.state.lock().expect("sound").seen)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn put(&mut self, path: &str, bytes: Bytes, metadata: Vec<String>) -> u64 {
        self.generations += 1;
        let generation = self.generations;
        self.objects.insert(path.to_owned(), Object { bytes, generation, metadata });
        generation
    }

    fn answer(&mut self, manners: Manners, head: &Head, body: Vec<u8>) -> (String, Bytes) {
        let path = head.target.split('?').next().unwrap_or_default().replace("%2F", "/");
        let found = self.objects.get(&path).cloned();
        if head.method == "PUT" {
            let wanted = head.header("x-goog-if-generation-match").and_then(|g| g.parse().ok());
            let current = found.map_or(0, |object| object.generation);
            if wanted.is_some_and(|wanted: u64| wanted != current) {
                return (status("412 Precondition Failed"), Bytes::new());
            }
            let metadata = head.lines.iter().filter(|l| l.starts_with("x-goog-meta-")).cloned();
            let generation = self.put(&path, body.into(), metadata.collect());
            let tag =
                format!("200 OK\r\nETag: \"{generation}\"\r\nx-goog-generation: {generation}");
            return (status(&tag), Bytes::new());
        }
        let Some(object) = found else { return (status("404 Not Found"), Bytes::new()) };
        let tag = format!("{}\"{}\"", if manners.weak_tags { "W/" } else { "" }, object.generation);
        let wanted = head.header("if-match").filter(|_| manners.conditions && manners.tags);
        if wanted.is_some_and(|wanted| wanted != tag) {
            return (status("412 Precondition Failed"), Bytes::new());
        }
        let mut text = format!("x-goog-generation: {}", object.generation);
        if manners.tags {
            text += &format!("\r\nETag: {tag}");
        }
        if manners.times {
            // A second for every generation, all of them long ago.
            let second = object.generation % 60;
            text += &format!("\r\nLast-Modified: Tue, 15 Nov 1994 12:45:{second:02} GMT");
        }
        for line in &object.metadata {
            text += &format!("\r\n{line}");
        }
        let total = object.bytes.len();
        let range = head.header("range").filter(|_| manners.ranges).and_then(parse_range);
        match range {
            None => (status(&format!("200 OK\r\n{text}")), object.bytes),
            Some((start, _)) if start >= total => {
                (status("416 Range Not Satisfiable"), Bytes::new())
            }
            Some((start, last)) => {
                let end = total.min(last + 1);
                let place = format!("Content-Range: bytes {start}-{}/{total}", end - 1);
                let partial = format!("206 Partial Content\r\n{text}\r\n{place}");
                (status(&partial), object.bytes.slice(start..end))
            }
        }
    }
}

fn status(text: &str) -> String {
    format!("HTTP/1.1 {text}\r\nConnection: close\r\n")
}

fn parse_range(text: &str) -> Option<(usize, usize)> {
    let (start, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    Some((start.parse().ok()?, last.parse().ok()?))
}

async fn serve(mut client: TcpStream, manners: Manners, state: &Mutex<State>) -> io::Result<()> {
    let (head, body) = super::proxy::request(&mut client).await?;
    let (text, bytes) = {
        let mut state = state.lock().expect("sound");
        state.seen.push(head.clone());
        state.answer(manners, &head, body)
    };
    let text = format!("{text}Content-Length: {}\r\n\r\n", bytes.len());
    client.write_all(text.as_bytes()).await?;
    if head.method != "HEAD" {
        client.write_all(&bytes).await?;
    }
    let mut rest = [0; 64];
    client.shutdown().await?;
    client.read(&mut rest).await.map(drop)
}
