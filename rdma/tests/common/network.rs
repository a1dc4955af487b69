//! A node on a loopback port, stepped by the test, and clients of it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use extent::Generation;
use extent::wire::{Command, LONG_REQUEST_BYTES, OpenMode, Request};
use forebay_rdma::{Fabric, SessionId, TcpChannel, TcpTransport};

use super::{TestClient, TestNode, until};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const READ: OpenMode = OpenMode::Read(Generation(0));

pub(crate) struct Network {
    pub(crate) listener: TcpListener,
    pub(crate) node: TestNode<TcpTransport>,
}

impl Network {
    pub(crate) fn new(buffers: usize) -> Self {
        let transport = TcpTransport::new(SessionId::base(Fabric::Tcp, 3)).expect("an epoll");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        Self { listener, node: TestNode::new(transport, buffers) }
    }

    pub(crate) fn accept(&mut self) {
        let (stream, peer) = self.listener.accept().expect("a client");
        self.node.transport.adopt(stream, peer.to_string()).expect("room");
    }

    pub(crate) fn client(&mut self, bytes: usize) -> TestClient<TcpChannel> {
        let address = self.listener.local_addr().expect("bound");
        let connecting = thread::spawn(move || TcpChannel::connect(address, PATIENCE));
        self.accept();
        let sessions = self.node.opened.len();
        until(&mut self.node, |node| node.opened.len() > sessions);
        until(&mut self.node, |_| connecting.is_finished());
        TestClient::new(connecting.join().expect("no panic").expect("connected"), bytes)
    }

    /// A client that speaks for itself.
    pub(crate) fn raw(&mut self, first: &[u8]) -> TcpStream {
        let mut stream =
            TcpStream::connect(self.listener.local_addr().expect("bound")).expect("listening");
        stream.write_all(first).expect("room");
        self.accept();
        stream
    }

    /// What the node says until it closes the connection.
    pub(crate) fn rest_of(&mut self, mut stream: TcpStream) -> Vec<u8> {
        stream.set_nonblocking(true).expect("a socket");
        let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
        let mut over = false;
        until(&mut self.node, |_| {
            match stream.read(&mut buffer) {
                Ok(0) => over = true,
                Ok(count) => heard.extend_from_slice(&buffer[..count]),
                Err(error) => over = error.kind() != std::io::ErrorKind::WouldBlock,
            }
            over
        });
        heard
    }
}

pub(crate) fn capsule(tag: u32, command: Command) -> Vec<u8> {
    let mut out = [0; LONG_REQUEST_BYTES];
    let length = Request { tag, payload_crc: None, command }.encode(&mut out);
    out[..length].to_vec()
}
