//! A small HTTP client that reads ranges of one file: so many connections, kept alive, with so
//! many requests on the way on each (RFC 9112, section 9.3.2).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use extent::{Error, Kind, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::clock;
use crate::files::Random;

const LONGEST_HEAD_BYTES: usize = 16 << 10;

/// What to read.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// The server.
    pub address: SocketAddr,
    /// The path on it, beginning with a slash.
    pub path: String,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of a range.
    pub block_bytes: u64,
    /// Connections.
    pub connections: usize,
    /// Requests on the way on each.
    pub pipeline: usize,
    /// How long to measure.
    pub time: Duration,
}

/// Reads random ranges for a while, and returns bytes a second. All connections share one thread,
/// as a session of ours does.
///
/// # Errors
/// [`Kind::Io`] if the server goes away; [`Kind::Corrupt`] if it answers anything but the range.
pub fn read_ranges(ranges: &Ranges) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("starting a runtime", e))?;
    runtime.block_on(async {
        let end = clock::now() + ranges.time;
        let bytes = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..ranges.connections {
            let (ranges, bytes) = (ranges.clone(), Arc::clone(&bytes));
            tasks.spawn(async move {
                let seed = 11 + index as u64;
                Connection::open(ranges, seed).await?.read_until(end, &bytes).await
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(|e| Kind::Io.error("a connection's task ended").caused_by(e))??;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate is rounded anyway")]
        Ok(bytes.load(Ordering::Relaxed) as f64 / ranges.time.as_secs_f64())
    })
}

struct Connection {
    ranges: Ranges,
    stream: TcpStream,
    random: Random,
    /// What was received: the head of the next answer begins at `begin`, what came ends at `end`.
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Connection {
    async fn open(ranges: Ranges, seed: u64) -> Result<Self> {
        let lost = |e| Error::io("connecting to the HTTP server", e);
        let stream = TcpStream::connect(ranges.address).await.map_err(lost)?;
        stream.set_nodelay(true).map_err(lost)?;
        let block = usize::try_from(ranges.block_bytes)
            .map_err(|_| Kind::Invalid.error("a block does not fit into memory"))?;
        let buffer = vec![0; block + LONGEST_HEAD_BYTES];
        Ok(Self { ranges, stream, random: Random::new(seed), buffer, begin: 0, end: 0 })
    }

    async fn read_until(mut self, end: Instant, bytes: &AtomicU64) -> Result<()> {
        for _ in 0..self.ranges.pipeline {
            self.ask().await?;
        }
        let mut outstanding = self.ranges.pipeline;
        while outstanding != 0 {
            self.take_answer().await?;
            if clock::now() < end {
                bytes.fetch_add(self.ranges.block_bytes, Ordering::Relaxed);
                self.ask().await?;
            } else {
                outstanding -= 1;
            }
        }
        Ok(())
    }

    async fn ask(&mut self) -> Result<()> {
        let block = self.ranges.block_bytes;
        let blocks = (self.ranges.file_bytes / block).max(1);
        let first = self.random.below(blocks) * block;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: compare\r\nRange: bytes={first}-{}\r\n\r\n",
            self.ranges.path,
            first + block - 1
        );
        let sent = self.stream.write_all(request.as_bytes()).await;
        sent.map_err(|e| Error::io("asking the HTTP server", e))
    }

    async fn take_answer(&mut self) -> Result<()> {
        let head_bytes = loop {
            let received = &self.buffer[self.begin..self.end];
            if let Some(at) = received.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if received.len() >= LONGEST_HEAD_BYTES {
                return Err(Kind::Corrupt.error("the HTTP server's head does not end"));
            }
            self.receive().await?;
        };
        let head = &self.buffer[self.begin..self.begin + head_bytes];
        let length = content_length(&String::from_utf8_lossy(head))?;
        if length != self.ranges.block_bytes {
            return Err(Kind::Corrupt.error(format!(
                "the HTTP server answered with {length} bytes of {}",
                self.ranges.block_bytes
            )));
        }
        self.begin += head_bytes;
        let mut left = usize::try_from(length).expect("it fits the buffer");
        loop {
            let now = left.min(self.end - self.begin);
            self.begin += now;
            left -= now;
            if left == 0 {
                return Ok(());
            }
            self.receive().await?;
        }
    }

    /// Receives more. Bytes of a body are passed over, so that the buffer begins anew whenever it
    /// is empty.
    async fn receive(&mut self) -> Result<()> {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        let received = self.stream.read(&mut self.buffer[self.end..]).await;
        match received.map_err(|e| Error::io("reading from the HTTP server", e))? {
            0 => Err(Kind::Disconnected.error("the HTTP server hung up")),
            bytes => {
                self.end += bytes;
                Ok(())
            }
        }
    }
}

fn content_length(head: &str) -> Result<u64> {
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 206") {
        return Err(Kind::Corrupt.error(format!("the HTTP server answered {status:?}")));
    }
    lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| Kind::Corrupt.error("the HTTP server told no length"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn heads_are_read() {
        let head = "HTTP/1.1 206 Partial Content\r\nServer: x\r\nContent-Length: 1048576\r\n\r\n";
        assert_eq!(content_length(head).expect("a length"), 1 << 20);
        let whole = head.replace("206 Partial Content", "200 OK");
        assert_eq!(content_length(&whole).expect_err("no range").kind(), Kind::Corrupt);
    }

    /// Answers every request with so many bytes, in pieces of odd sizes.
    fn serve(listener: &TcpListener, block: usize) {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut received = Vec::new();
        let mut buffer = [0; 1000];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            received.extend_from_slice(&buffer[..length]);
            while let Some(at) = received.windows(4).position(|four| four == b"\r\n\r\n") {
                received.drain(..at + 4);
                let head =
                    format!("HTTP/1.1 206 Partial Content\r\ncontent-length: {block}\r\n\r\n");
                let answer = [head.into_bytes(), vec![7; block]].concat();
                for piece in answer.chunks(701) {
                    if stream.write_all(piece).is_err() {
                        return;
                    }
                }
            }
        }
    }

    #[test]
    fn pipelined_answers_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let server = thread::spawn(move || serve(&listener, 5000));
        let ranges = Ranges {
            address,
            path: "/f".to_owned(),
            file_bytes: 100_000,
            block_bytes: 5000,
            connections: 1,
            pipeline: 3,
            time: Duration::from_millis(100),
        };
        assert!(read_ranges(&ranges).expect("answers") > 0.0);
        server.join().expect("it served");
    }
}
