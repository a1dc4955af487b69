use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

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
    let mut stream =
        TcpStream::connect_timeout(&address, timeout).map_err(|e| failed("connecting to", e))?;
    let mut prepare = || {
        stream.set_nodelay(true)?;
        // A node whose host is gone says nothing: who waits for it finds out all the same.
        SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.write_all(&StreamHello::encode(proof))
    };
    prepare().map_err(|e| failed("greeting", e))?;
    let mut answer = [0; STREAM_MAGIC.len()];
    match stream.read_exact(&mut answer) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            return Err(Kind::Disconnected.error(format!(
                "{address} closed the connection: it takes no more sessions, or is no node"
            )));
        }
        Err(error) => return Err(failed("hearing from", error)),
    }
    if answer == REFUSAL_MAGIC {
        return Err(refusal(&mut stream).map_err(|e| failed("hearing from", e))?);
    }
    if answer != STREAM_MAGIC {
        return Err(Kind::Corrupt.error(format!(
            "{address} does not answer as a Forebay node of protocol 1 does: check the port"
        )));
    }
    stream.set_nonblocking(true).map_err(|e| failed("setting up the socket to", e))?;
    Ok(stream)
}

/// Why the node turns this client away.
fn refusal(stream: &mut TcpStream) -> io::Result<Error> {
    let mut said = REFUSAL_MAGIC.to_vec();
    let rest = Refusal::HEADER_BYTES + Refusal::SENTENCE_BYTES;
    stream.take(rest as u64).read_to_end(&mut said)?;
    let nothing = || Kind::Denied.error("the node turned this client away and did not say why");
    Ok(Refusal::parse(&REFUSAL_MAGIC, &said).unwrap_or_else(nothing))
}
