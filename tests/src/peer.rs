//! Small TCP peers: data that can be recognised, and conversations whose every turn is chosen.
//!
//! A conversation runs over a [`Route`] and says what each side saw. Run over a cable it is the yardstick, run through sluice it
//! is the test.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use socket2::{Domain, SockRef, Socket, Type};

use crate::lab::{Family, Lab};

/// How long a peer waits for the other before it calls it silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// Size of one block of test data.
const BLOCK: usize = 256 * 1024;

/// How a stream ended for its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// FIN.
    Eof,
    /// RST.
    Reset,
    /// Neither, within a minute.
    Silent,
}

/// What a reader got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Octets.
    pub octets: u64,
    /// Their SHA-256, in hex.
    pub sha256: String,
    /// How it ended.
    pub ending: Ending,
}

/// Endless recognisable data: a seeded block whose copies are numbered, so that loss, repetition and swaps change the hash.
#[derive(Clone, Debug)]
pub struct Pattern {
    block: Vec<u8>,
    number: u64,
}

impl Pattern {
    /// The data of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Pattern {
        let mut block = vec![0; BLOCK];
        fastrand::Rng::with_seed(seed).fill(&mut block);
        Pattern { block, number: 0 }
    }

    fn next(&mut self) -> &[u8] {
        self.number += 1;
        self.block[..8].copy_from_slice(&self.number.to_be_bytes());
        &self.block
    }

    /// What a reader of the first `octets` of `seed` that then sees `ending` should have heard.
    #[must_use]
    pub fn heard(seed: u64, octets: u64, ending: Ending) -> Heard {
        let mut hash = Sha256::new();
        Pattern::new(seed)
            .feed(octets, |part| {
                hash.update(part);
                Ok(())
            })
            .expect("hashing does not fail");
        Heard { octets, sha256: hex(&hash.finalize()), ending }
    }

    fn feed(&mut self, octets: u64, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut left = octets;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
            take(&self.next()[..part])?;
            left -= part as u64;
        }
        Ok(())
    }
}

/// Writes the first `octets` of the data of `seed`.
///
/// # Errors
/// As the socket's; `WouldBlock` when the other side took nothing for a minute.
pub fn send(mut stream: &TcpStream, seed: u64, octets: u64) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    Pattern::new(seed).feed(octets, |part| stream.write_all(part))
}

/// A reader that remembers what it heard in several turns.
#[derive(Debug, Default)]
pub struct Ear {
    hash: Sha256,
    octets: u64,
}

impl Ear {
    /// Reads up to `octets` more and says how the stream ended before that; none when it did not.
    pub fn hear(&mut self, mut stream: &TcpStream, octets: u64) -> Option<Ending> {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        let mut buffer = vec![0; BLOCK];
        let mut left = octets;
        while left > 0 {
            let room = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
            match stream.read(&mut buffer[..room]) {
                Ok(0) => return Some(Ending::Eof),
                Ok(n) => {
                    self.hash.update(&buffer[..n]);
                    self.octets += n as u64;
                    left -= n as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Some(Ending::Silent);
                }
                Err(_) => return Some(Ending::Reset),
            }
        }
        None
    }

    /// Reads to the end and says what was heard in all turns.
    #[must_use]
    pub fn finish(mut self, stream: &TcpStream) -> Heard {
        let ending = self.hear(stream, u64::MAX).unwrap_or(Ending::Silent);
        Heard { octets: self.octets, sha256: hex(&self.hash.finalize()), ending }
    }
}

/// Reads to the end.
#[must_use]
pub fn hear(stream: &TcpStream) -> Heard {
    Ear::default().finish(stream)
}

/// How the stream ends, without regard to data.
#[must_use]
pub fn ending(stream: &TcpStream) -> Ending {
    hear(stream).ending
}

/// Closes with RST.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger can be set");
    drop(stream);
}

/// SHA-256 in hex.
#[must_use]
pub fn sha256(octets: &[u8]) -> String {
    hex(&Sha256::digest(octets))
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Accepts the next connection.
///
/// # Panics
/// When none comes within ten seconds.
#[must_use]
pub fn accept(listener: &TcpListener) -> TcpStream {
    accept_within(listener, Duration::from_secs(10)).expect("a connection within ten seconds")
}

/// Accepts connections until one begins with a PROXY v2 header, and returns the header as it came. By its length: what it ends
/// with may be any byte. (Probes come and go, and say nothing.)
///
/// # Panics
/// When none comes, or a header is cut short.
#[must_use]
pub fn accept_with_header(listener: &TcpListener) -> (TcpStream, Vec<u8>) {
    loop {
        let mut server = accept(listener);
        let mut header = vec![0; 16];
        if server.read_exact(&mut header).is_err() {
            continue;
        }
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        header.resize(16 + length, 0);
        server.read_exact(&mut header[16..]).expect("the whole header");
        return (server, header);
    }
}

/// Accepts the next connection, if one comes in time.
#[must_use]
pub fn accept_within(listener: &TcpListener, patience: Duration) -> Option<TcpStream> {
    listener.set_nonblocking(true).expect("listeners can be non-blocking");
    let deadline = Instant::now() + patience;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("streams can block");
                return Some(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    return None;
                }
                thread::sleep(Duration::from_micros(200));
            }
            Err(error) => panic!("accept: {error}"),
        }
    }
}

/// From where to where a conversation goes.
#[derive(Clone, Copy, Debug)]
pub struct Route<'lab> {
    /// The lab.
    pub lab: &'lab Lab,
    /// Where the client dials.
    pub dial: SocketAddr,
    /// Where the server listens.
    pub serve: SocketAddr,
    /// Octets in front of the client's that the server reads and drops: a PROXY header.
    pub header: usize,
}

impl<'lab> Route<'lab> {
    /// Service `port` over IPv4, to the same port of the server.
    #[must_use]
    pub fn v4(lab: &'lab Lab, port: u16) -> Route<'lab> {
        Route::of(lab, Family::V4, port)
    }

    /// Service `port` over `family`; on a cable the server has the service's address, otherwise it is dialled over IPv4.
    #[must_use]
    pub fn of(lab: &'lab Lab, family: Family, port: u16) -> Route<'lab> {
        let dial = family.service(port);
        let serve = if lab.arms == crate::lab::Arms::Cable { dial } else { Family::V4.server(port) };
        Route { lab, dial, serve, header: 0 }
    }

    /// With a PROXY header of so many octets.
    #[must_use]
    pub fn behind_header(self, header: usize) -> Route<'lab> {
        Route { header, ..self }
    }

    /// Listens for the server's side.
    #[must_use]
    pub fn listen(&self) -> TcpListener {
        self.lab.server.listen(self.serve)
    }

    /// Connects the client.
    ///
    /// # Panics
    /// When the connection is refused or not answered.
    #[must_use]
    pub fn dial(&self) -> TcpStream {
        self.lab.client.connect(self.dial).unwrap_or_else(|error| panic!("connect to {}: {error}", self.dial))
    }

    /// Connects a client that is not expected to be served: its address and how its stream ended. A reset that comes on the
    /// heels of the handshake is seen by `connect` itself.
    ///
    /// # Panics
    /// When the handshake is not answered.
    #[must_use]
    pub fn dial_in_vain(&self) -> (SocketAddr, Ending) {
        let socket = self.lab.client.run(|| {
            let socket = Socket::new(Domain::for_address(self.dial), Type::STREAM, None).expect("a socket");
            // Not `bind`: only the kernel's choice at `connect` says which port is free towards this address.
            let connected = socket.connect_timeout(&self.dial.into(), Duration::from_secs(10));
            (socket, connected)
        });
        let (socket, connected) = socket;
        let stream = TcpStream::from(socket);
        let seen = match connected {
            Ok(()) => ending(&stream),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ending::Reset,
            Err(error) => panic!("connect to {}: {error}", self.dial),
        };
        (stream.local_addr().expect("a socket that connected has an address"), seen)
    }

    /// A connection: the client's end, the server's end, the client's address. The client sends one octet and the server reads it, so that
    /// a service which dials on the first data works alike.
    #[must_use]
    pub fn connect(&self, listener: &TcpListener) -> (TcpStream, TcpStream, SocketAddr) {
        let mut client = self.dial();
        client.write_all(b"!").expect("one octet fits");
        let mut server = accept(listener);
        server.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        server.read_exact(&mut vec![0; self.header + 1]).expect("the header and the first octet arrive");
        let local = client.local_addr().expect("a connected socket has an address");
        (client, server, local)
    }
}

/// What both sides of a conversation saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What the client read.
    pub by_client: Heard,
    /// What the server read after the first octet.
    pub by_server: Heard,
    /// The client's address: which record in the log is this conversation's. Not part of the comparison.
    pub client: Client,
}

/// An address that is equal to every other: it differs between runs and says nothing about the conversation.
#[derive(Clone, Copy, Debug)]
pub struct Client(pub SocketAddr);

impl PartialEq for Client {
    fn eq(&self, _: &Client) -> bool {
        true
    }
}

impl Eq for Client {}

/// Data seed of the client.
pub const UP: u64 = 0x75;
/// Data seed of the server.
pub const DOWN: u64 = 0x64;

/// The client sends `octets` and closes its direction; only then the server answers as many and closes.
#[must_use]
pub fn client_closes_first(route: &Route<'_>, octets: u64) -> Seen {
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    let serving = thread::spawn(move || {
        let heard = hear(&server);
        let _ = send(&server, DOWN, octets);
        let _ = server.shutdown(Shutdown::Write);
        heard
    });
    let _ = send(&client, UP, octets);
    let _ = client.shutdown(Shutdown::Write);
    let by_client = hear(&client);
    Seen { by_client, by_server: serving.join().expect("the server's thread"), client: Client(address) }
}

/// The server sends `octets` and closes its direction; only then the client answers as many and closes.
#[must_use]
pub fn server_closes_first(route: &Route<'_>, octets: u64) -> Seen {
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    let serving = thread::spawn(move || {
        let _ = send(&server, DOWN, octets);
        let _ = server.shutdown(Shutdown::Write);
        hear(&server)
    });
    let by_client = hear(&client);
    let _ = send(&client, UP, octets);
    let _ = client.shutdown(Shutdown::Write);
    Seen { by_client, by_server: serving.join().expect("the server's thread"), client: Client(address) }
}

/// Both send `octets` at the same time and close.
#[must_use]
pub fn both_send(route: &Route<'_>, octets: u64) -> Seen {
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    let side = |stream: TcpStream, seed: u64| {
        thread::spawn(move || {
            let writer = stream.try_clone().expect("a socket can be cloned");
            let sending = thread::spawn(move || {
                let _ = send(&writer, seed, octets);
                let _ = writer.shutdown(Shutdown::Write);
            });
            let heard = hear(&stream);
            sending.join().expect("the sender's thread");
            heard
        })
    };
    let (client, server) = (side(client, UP), side(server, DOWN));
    Seen {
        by_client: client.join().expect("the client's thread"),
        by_server: server.join().expect("the server's thread"),
        client: Client(address),
    }
}

/// What the other side saw of a reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    /// How the stream of the side that did not reset ended.
    pub by_other: Ending,
    /// The client's address.
    pub client: Client,
}

/// Both have said something and heard it; then the client resets.
#[must_use]
pub fn client_resets(route: &Route<'_>) -> Reset {
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    exchange(&client, &server);
    reset(client);
    Reset { by_other: ending(&server), client: Client(address) }
}

/// Both have said something and heard it; then the server resets.
#[must_use]
pub fn server_resets(route: &Route<'_>) -> Reset {
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    exchange(&client, &server);
    reset(server);
    Reset { by_other: ending(&client), client: Client(address) }
}

/// 1,000 octets up, 2,000 down, all heard.
///
/// # Panics
/// When they are not.
pub fn exchange(client: &TcpStream, server: &TcpStream) {
    send(client, UP, 1000).expect("the client can send");
    assert_eq!(Ear::default().hear(server, 1000), None, "1,000 octets reach the server");
    send(server, DOWN, 2000).expect("the server can send");
    assert_eq!(Ear::default().hear(client, 2000), None, "2,000 octets reach the client");
}

/// A sender with more than all buffers together hold, a reader that stops for `pause` and goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// What was heard in the end.
    pub heard: Heard,
    /// Whether the sender was still not done when the pause ended: the reader's silence reached it.
    pub sender_waited: bool,
    /// The client's address.
    pub client: Client,
}

/// The server reads a little, nothing for `pause`, then the rest.
#[must_use]
pub fn server_stalls(route: &Route<'_>, octets: u64, pause: Duration) -> Stalled {
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    let (heard, sender_waited) = stall(client, server, UP, octets, pause);
    Stalled { heard, sender_waited, client: Client(address) }
}

/// The client reads a little, nothing for `pause`, then the rest.
#[must_use]
pub fn client_stalls(route: &Route<'_>, octets: u64, pause: Duration) -> Stalled {
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    let (heard, sender_waited) = stall(server, client, DOWN, octets, pause);
    Stalled { heard, sender_waited, client: Client(address) }
}

fn stall(sender: TcpStream, reader: TcpStream, seed: u64, octets: u64, pause: Duration) -> (Heard, bool) {
    let done = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&done);
    let sending = thread::spawn(move || {
        let _ = send(&sender, seed, octets);
        told.store(true, Ordering::SeqCst);
        let _ = sender.shutdown(Shutdown::Write);
        // The other direction stays open until the reader is done.
        let _ = ending(&sender);
    });
    let mut ear = Ear::default();
    ear.hear(&reader, 10_000);
    thread::sleep(pause);
    let sender_waited = !done.load(Ordering::SeqCst);
    let heard = ear.finish(&reader);
    drop(reader);
    sending.join().expect("the sender's thread");
    (heard, sender_waited)
}
