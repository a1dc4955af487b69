//! Answers `GET /metrics` and `GET /healthz`, and nothing else: just enough of HTTP/1.1
//! (RFC 9112) for a scraper and a load balancer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use dataplane::Handle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

const MAX_CONNECTIONS: usize = 32;
const MAX_REQUEST_BYTES: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(10);
/// After a failed accept: the usual cause, too many open files, passes as connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers until the task is dropped. More than a few connections at once wait their turn.
pub(crate) async fn serve(listener: TcpListener, handle: Arc<dyn Handle>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let handle = Arc::clone(&handle);
        tokio::spawn(async move {
            let answered = timeout(PATIENCE, answer(stream, handle)).await;
            if let Ok(Err(error)) = answered {
                tracing::debug!(%error, "a metrics connection broke");
            }
            drop(place);
        });
    }
}

/// What `/metrics` answers.
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

async fn answer(mut stream: TcpStream, handle: Arc<dyn Handle>) -> io::Result<()> {
    let Some(line) = request_line(&mut stream).await? else {
        return respond(&mut stream, "400 Bad Request", "not an HTTP request\n").await;
    };
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    if method != "GET" {
        return respond(&mut stream, "405 Method Not Allowed", "only GET\n").await;
    }
    match target.split('?').next().unwrap_or("") {
        "/metrics" => match super::page(&handle.status().await) {
            Ok(page) => respond_as(&mut stream, METRICS, "200 OK", &page).await,
            Err(error) => {
                respond(&mut stream, "500 Internal Server Error", &format!("{error}\n")).await
            }
        },
        "/healthz" if handle.status().await.draining => {
            respond(&mut stream, "503 Service Unavailable", "draining\n").await
        }
        "/healthz" => respond(&mut stream, "200 OK", "ok\n").await,
        _ => respond(&mut stream, "404 Not Found", "try /metrics or /healthz\n").await,
    }
}

/// The first line, once the whole head is there; `None` if it is too long or not text.
async fn request_line(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::with_capacity(1024);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= MAX_REQUEST_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or(&head);
    Ok(std::str::from_utf8(line).ok().map(str::to_owned))
}

async fn respond(stream: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    respond_as(stream, "text/plain; charset=utf-8", status, body).await
}

async fn respond_as(
    stream: &mut TcpStream,
    kind: &str,
    status: &str,
    body: &str,
) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn exchange(request: &[u8]) -> Option<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(request).await.expect("sent");
        client.shutdown().await.expect("half closed");
        let (mut stream, _) = listener.accept().await.expect("accepted");
        request_line(&mut stream).await.expect("read")
    }

    #[tokio::test]
    async fn request_lines_are_bounded() {
        let line = exchange(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(line.as_deref(), Some("GET /metrics HTTP/1.1"));
        assert_eq!(exchange(b"GET /metrics").await, None, "cut short");
        let endless = vec![b'x'; MAX_REQUEST_BYTES + 10];
        assert_eq!(exchange(&endless).await, None, "too long");
    }
}
