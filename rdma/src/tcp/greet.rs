use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use extent::wire::{REFUSAL_MAGIC, Refusal, STREAM_MAGIC, StreamHello};
use extent::{Error, Kind, Proof, Result};
use socket2::{SockRef, TcpKeepalive};

/// Silence of so long is looked into, so often, until the node counts as gone after nine times.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(1));

/// Connects, shows a proof if there is one, and exchanges the magic words.
pub(super) fn greet(
    address: SocketAddr,
    timeout: Duration,
    proof: Option<&Proof>,
) -> Result<TcpStream> {
    let failed = |doing: &str, error: io::Error| {
        Kind::Disconnected
            .error(format!("{doing} {address} failed: is a node listening there?"))
            .caused_by(error)
    };
    let deadline = now() + timeout;
    let mut stream =
        TcpStream::connect_timeout(&address, timeout).map_err(|e| failed("connecting to", e))?;
    let mut prepare = || {
        stream.set_nodelay(true)?;
        // A node whose host is gone says nothing: who waits for it finds out all the same.
        SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE)?;
        stream.set_write_timeout(Some(timeout))?;
        stream.write_all(&StreamHello::encode(proof))
    };
    prepare().map_err(|e| failed("greeting", e))?;
    let mut answer = [0; STREAM_MAGIC.len()];
    match read_before(deadline, &mut stream, &mut answer) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            return Err(Kind::Disconnected.error(format!(
                "{address} closed the connection: it takes no more sessions, or is no node"
            )));
        }
        Err(error) => return Err(failed("hearing from", error)),
    }
    if answer == REFUSAL_MAGIC {
        return Err(refusal(deadline, &mut stream).map_err(|e| failed("hearing from", e))?);
    }
    if answer != STREAM_MAGIC {
        return Err(Kind::Corrupt.error(format!(
            "{address} does not answer as a Forebay node of protocol 1 does: check the port"
        )));
    }
    stream.set_nonblocking(true).map_err(|e| failed("setting up the socket to", e))?;
    Ok(stream)
}

#[expect(clippy::disallowed_methods, reason = "a call that blocks ends by the real clock")]
fn now() -> Instant {
    Instant::now()
}

/// Fills `bytes`, however slowly they come, but not later than this.
fn read_before(deadline: Instant, stream: &mut TcpStream, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = deadline.saturating_duration_since(now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Why the node turns this client away.
fn refusal(deadline: Instant, stream: &mut TcpStream) -> io::Result<Error> {
    let mut said = [0; REFUSAL_MAGIC.len() + Refusal::HEADER_BYTES + Refusal::SENTENCE_BYTES];
    let (magic, header) = (REFUSAL_MAGIC.len(), REFUSAL_MAGIC.len() + Refusal::HEADER_BYTES);
    said[..magic].copy_from_slice(&REFUSAL_MAGIC);
    read_before(deadline, stream, &mut said[magic..header])?;
    let end = (header + usize::from(said[header - 1])).min(said.len());
    read_before(deadline, stream, &mut said[header..end])?;
    let nothing = || Kind::Denied.error("the node turned this client away and did not say why");
    Ok(Refusal::parse(&REFUSAL_MAGIC, &said[..end]).unwrap_or_else(nothing))
}
