//! An HTTP proxy in front of a server, which does wrong what it is told to.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What goes wrong with one request.
pub enum Fault {
    /// The server is not asked; this is the answer.
    Status(u16),
    /// The connection is reset before an answer.
    Reset,
    /// The server is asked, but the connection ends before its answer comes back.
    LoseAnswer,
    /// No answer ever comes.
    Stall,
    /// The connection ends after this many bytes of the body.
    BreakOff(usize),
    /// The connection stays, but nothing follows after this many bytes of the body.
    StallAfter(usize),
    /// The body is cut to this many bytes, and the answer says so.
    Truncate(usize),
    /// The answer carries another entity tag.
    ChangeTag,
    /// Something happens before the request reaches the server.
    Before(Pin<Box<dyn Future<Output = ()> + Send>>),
}

/// A request's head.
#[derive(Clone, Debug)]
pub struct Head {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub lines: Vec<String>,
}

impl Head {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

type Matches = Box<dyn Fn(&Head) -> bool + Send>;

#[derive(Default)]
struct State {
    faults: VecDeque<(Matches, Fault)>,
    seen: Vec<Head>,
}

/// A proxy; dropping it ends it.
pub struct Proxy {
    pub port: u16,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A proxy in front of a port of this machine.
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A client that goes away in the middle is part of the game.
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { drop(serve(client, server, &shared).await) });
            }
        });
        Self { port, state, task }
    }

    /// The next request that matches meets this fault. Faults are met in order, each once.
    pub fn next(&self, matches: impl Fn(&Head) -> bool + Send + 'static, fault: Fault) {
        self.state.lock().expect("sound").faults.push_back((Box::new(matches), fault));
    }

    /// Requests seen since the last time.
    pub fn take_seen(&self) -> Vec<Head> {
        std::mem::take(&mut self.state.lock().expect("sound").seen)
    }

    /// Faults that were not met.
    pub fn faults_left(&self) -> usize {
        self.state.lock().expect("sound").faults.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, server: u16, state: &Mutex<State>) -> io::Result<()> {
    let (head, body) = request(&mut client).await?;
    let fault = {
        let mut state = state.lock().expect("sound");
        state.seen.push(head.clone());
        let met = state.faults.iter().position(|(matches, _)| matches(&head));
        met.and_then(|index| state.faults.remove(index)).map(|(_, fault)| fault)
    };
    match fault {
        Some(Fault::Status(status)) => {
            let body = "<Error><Code>SlowDown</Code></Error>";
            let answer = format!(
                "HTTP/1.1 {status} Asked For\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}",
                body.len(),
                if head.method == "HEAD" { "" } else { body },
            );
            return client.write_all(answer.as_bytes()).await;
        }
        Some(Fault::Reset) => {
            client.set_zero_linger()?;
            return Ok(());
        }
        Some(Fault::Stall) => return until_closed(client).await,
        Some(Fault::Before(what)) => {
            what.await;
            return client.write_all(&forward(server, &head, &body).await?).await;
        }
        _ => {}
    }
    let answer = forward(server, &head, &body).await?;
    let body_at = find(&answer, b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let (head, body) = answer.split_at(body_at);
    match fault {
        Some(Fault::LoseAnswer) => client.set_zero_linger(),
        Some(Fault::BreakOff(bytes)) => {
            client.write_all(&answer[..body_at + bytes.min(body.len())]).await
        }
        Some(Fault::StallAfter(bytes)) => {
            client.write_all(&answer[..body_at + bytes.min(body.len())]).await?;
            until_closed(client).await
        }
        Some(Fault::Truncate(bytes)) => {
            let head = rewrite(head, "content-length", &bytes.to_string());
            client.write_all(&head).await?;
            client.write_all(&body[..bytes]).await
        }
        Some(Fault::ChangeTag) => {
            client.write_all(&rewrite(head, "etag", "\"changed\"")).await?;
            client.write_all(body).await
        }
        _ => client.write_all(&answer).await,
    }
}

/// Waits until the client gives up.
async fn until_closed(mut client: TcpStream) -> io::Result<()> {
    let mut rest = [0; 1024];
    while client.read(&mut rest).await? > 0 {}
    Ok(())
}

pub(super) async fn request(client: &mut TcpStream) -> io::Result<(Head, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = find(&bytes, b"\r\n\r\n") {
            break at;
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = text.split("\r\n").map(str::to_owned);
    let first = lines.next().unwrap_or_default();
    let mut words = first.split(' ').map(str::to_owned);
    let head = Head {
        method: words.next().unwrap_or_default(),
        target: words.next().unwrap_or_default(),
        lines: lines.collect(),
    };
    let length = head.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0usize);
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        if client.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((head, body))
}

/// The server's whole answer.
async fn forward(server: u16, head: &Head, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut text = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", head.method, head.target);
    for line in &head.lines {
        if !line.to_ascii_lowercase().starts_with("connection:") {
            text.push_str(line);
            text.push_str("\r\n");
        }
    }
    text.push_str("\r\n");
    let mut stream = TcpStream::connect(("127.0.0.1", server)).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The head with another value of a header.
fn rewrite(head: &[u8], name: &str, value: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(head);
    let lines = text.split("\r\n").map(|line| match line.split_once(':') {
        Some((found, _)) if found.eq_ignore_ascii_case(name) => format!("{found}: {value}"),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\r\n").into_bytes()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
