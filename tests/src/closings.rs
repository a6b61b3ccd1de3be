//! Short connections by the thousand, closed in each of the ways that TCP knows. Every byte is checked both ways, and that both ends saw
//! the end.
//!
//! Clients and servers are kernel sockets, driven by one thread for each side. Each end numbers its connections and begins what it says
//! with its number, so that the two ends of a connection are found again whatever stands between them.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::lab::{Arms, Family, Lab};

/// Bytes that a client of [`Closing::Echo`] sends.
pub const ECHOED: usize = 20_000;

/// The most bytes that an end of the other conversations sends: several segments.
const LONGEST: u64 = 6_000;

/// Bytes of an end's number in front of what it says.
const NUMBER: usize = 8;

/// Who closes, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Closing {
    /// The client asks and closes its direction at once; the server answers when it has seen the end, and closes.
    ClientFirst,
    /// The client asks; the server answers and closes at once; the client closes when it has seen the end.
    ServerFirst,
    /// Both speak and close at once.
    Both,
    /// The client says nothing; the server speaks as soon as it has accepted, and closes; the client closes when it has seen the end.
    Greeting,
    /// The client sends [`ECHOED`] bytes and closes its direction; the server returns them as they come.
    Echo,
}

impl Closing {
    /// Those of short connections.
    pub const SHORT: [Closing; 4] = [Closing::ClientFirst, Closing::ServerFirst, Closing::Both, Closing::Greeting];

    /// In a table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Closing::ClientFirst => "client closes first",
            Closing::ServerFirst => "server closes first",
            Closing::Both => "both close at once",
            Closing::Greeting => "server speaks first",
            Closing::Echo => "20 kB echoed",
        }
    }

    /// What end `role` says as its connection `number`.
    fn words(self, role: Role, number: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(number << 1 | role as u64);
        let length = if self == Closing::Echo { ECHOED } else { random.u64(NUMBER as u64..=LONGEST) as usize };
        let mut words = vec![0; length];
        random.fill(&mut words);
        words[..NUMBER].copy_from_slice(&number.to_be_bytes());
        words
    }
}

#[derive(Clone, Copy, Debug)]
enum Role {
    Client,
    Server,
}

/// What stands in front of the client's bytes at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Header {
    /// Nothing.
    None,
    /// A PROXY header of version 2, which names the client.
    V2,
}

impl Header {
    /// Both.
    pub const BOTH: [Header; 2] = [Header::None, Header::V2];

    /// In a table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Header::None => "raw",
            Header::V2 => "PROXY v2",
        }
    }
}

/// Connections of one kind, to one port of the service's addresses and of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// How they close.
    pub closing: Closing,
    /// What the server reads first.
    pub header: Header,
    /// Where they go.
    pub port: u16,
}

impl Cell {
    /// Each of `closings` with each of `headers`, on ports of their own.
    #[must_use]
    pub fn all(closings: &[Closing], headers: &[Header]) -> Vec<Cell> {
        let pairs = closings.iter().flat_map(|closing| headers.iter().map(|header| (*closing, *header)));
        pairs.zip(7100..).map(|((closing, header), port)| Cell { closing, header, port }).collect()
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.closing.as_str(), self.header.as_str())
    }
}

/// How many connections.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// In each cell.
    pub count: usize,
    /// Of all cells together at once.
    pub at_once: usize,
    /// How long one may take.
    pub patience: Duration,
}

/// A connection that was not what it should be.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The client's end.
    pub client: Option<SocketAddr>,
    /// Where it connected to.
    pub service: SocketAddr,
    /// Who the server saw, if the connection reached it as far as that is known.
    pub source: Option<SocketAddr>,
    /// What went wrong.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |address: Option<SocketAddr>| address.map_or_else(|| "?".to_owned(), |address| address.to_string());
        let Failure { client, service, source, reason } = self;
        write!(f, "{} > {service} (to the server from {}): {reason}", shown(*client), shown(*source))
    }
}

/// What became of the connections of a cell.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which.
    pub cell: Cell,
    /// How many there were.
    pub count: usize,
    /// From the client's first SYN to the later end's end; of those that completed, shortest first.
    pub durations: Vec<Duration>,
    /// The others.
    pub failures: Vec<Failure>,
    /// What the server saw of connections that no client has part in any more.
    pub strays: Vec<String>,
    /// The server's peers in connections that completed.
    pub good_sources: Vec<SocketAddr>,
}

impl Report {
    /// The time within which the `share` of those that completed did so; zero when none did.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (share * self.durations.len() as f64).ceil() as usize;
        self.durations.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, p99, p999, slowest] = [0.5, 0.99, 0.999, 1.0].map(|share| self.quantile(share));
        let (failed, count) = (self.failures.len(), self.count);
        write!(f, "{}: {failed} of {count} failed; median {median:.1?}, p99 {p99:.1?}, ", self.cell)?;
        write!(f, "p99.9 {p999:.1?}, slowest {slowest:.1?}")
    }
}

/// One end of a connection.
#[derive(Debug)]
struct End {
    /// What it is about.
    stage: &'static str,
    /// What the other end said.
    heard: Vec<u8>,
    /// Whose connection the PROXY header says it is, and where that went.
    named: Option<(SocketAddr, SocketAddr)>,
}

impl End {
    fn new() -> End {
        End { stage: "connecting", heard: Vec::new(), named: None }
    }

    /// The other end's number, when it was heard.
    fn number(&self) -> Option<u64> {
        self.heard.first_chunk().map(|number| u64::from_be_bytes(*number))
    }

    async fn say(&mut self, to: &mut (impl AsyncWrite + Unpin), words: &[u8]) -> io::Result<()> {
        self.stage = "speaking";
        to.write_all(words).await
    }

    async fn close(&mut self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        self.stage = "closing";
        to.shutdown().await
    }

    /// Hears the other end out.
    async fn hear_out(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        self.stage = "waiting for the end";
        while from.read_buf(&mut self.heard).await? > 0 {}
        Ok(())
    }

    /// Hears until the other end has said `count` bytes.
    async fn hear(&mut self, from: &mut (impl AsyncRead + Unpin), count: usize) -> io::Result<()> {
        self.stage = "listening";
        while self.heard.len() < count {
            let missing = count - self.heard.len();
            if (&mut *from).take(missing as u64).read_buf(&mut self.heard).await? == 0 {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the other end closed early"));
            }
        }
        Ok(())
    }

    /// The other end said what `role` says as the number it gave, and nothing else.
    fn understood(&mut self, closing: Closing, role: Role) -> io::Result<()> {
        self.stage = "comparing";
        let right = self.number().is_some_and(|number| self.heard == closing.words(role, number));
        if right { Ok(()) } else { Err(io::Error::other("what was heard is not what was said")) }
    }

    async fn visit(&mut self, stream: &mut TcpStream, closing: Closing, number: u64) -> io::Result<()> {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        let (mut from, mut to) = stream.split();
        let words = closing.words(Role::Client, number);
        match closing {
            Closing::ClientFirst | Closing::Both | Closing::Echo => {
                self.say(&mut to, &words).await?;
                self.close(&mut to).await?;
            }
            Closing::ServerFirst => self.say(&mut to, &words).await?,
            Closing::Greeting => {}
        }
        self.hear_out(&mut from).await?;
        if closing != Closing::Echo {
            return self.understood(closing, Role::Server);
        }
        if self.heard == words { Ok(()) } else { Err(io::Error::other("the echo is not what was said")) }
    }

    async fn serve(&mut self, stream: &mut TcpStream, cell: Cell, number: u64) -> io::Result<()> {
        let (mut from, mut to) = stream.split();
        if cell.header == Header::V2 {
            self.stage = "reading the header";
            self.named = Some(read_header(&mut from).await?);
        }
        let (closing, words) = (cell.closing, cell.closing.words(Role::Server, number));
        match closing {
            Closing::ClientFirst => {
                self.hear_out(&mut from).await?;
                self.understood(closing, Role::Client)?;
                self.say(&mut to, &words).await?;
                self.close(&mut to).await
            }
            Closing::ServerFirst => {
                self.hear(&mut from, NUMBER).await?;
                let asked = closing.words(Role::Client, self.number().unwrap_or_default());
                self.hear(&mut from, asked.len()).await?;
                self.say(&mut to, &words).await?;
                self.close(&mut to).await?;
                self.hear_out(&mut from).await?;
                self.understood(closing, Role::Client)
            }
            Closing::Both => {
                self.say(&mut to, &words).await?;
                self.close(&mut to).await?;
                self.hear_out(&mut from).await?;
                self.understood(closing, Role::Client)
            }
            Closing::Greeting => {
                self.say(&mut to, &words).await?;
                self.close(&mut to).await?;
                self.hear_out(&mut from).await?;
                if self.heard.is_empty() { Ok(()) } else { Err(io::Error::other("the client was to be silent")) }
            }
            Closing::Echo => {
                self.stage = "echoing";
                let mut returned = 0;
                while from.read_buf(&mut self.heard).await? > 0 {
                    to.write_all(&self.heard[returned..]).await?;
                    returned = self.heard.len();
                }
                self.understood(closing, Role::Client)?;
                self.close(&mut to).await
            }
        }
    }

    /// When it was done, or why it is not.
    fn outcome(&self, ended: Result<io::Result<()>, impl Sized>, patience: Duration) -> Result<Instant, String> {
        let why = match ended {
            Ok(Ok(())) => return Ok(Instant::now()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not done after {patience:?}"),
        };
        Err(format!("{}: {why}; {} bytes heard", self.stage, self.heard.len()))
    }
}

/// Source and destination of a PROXY header of version 2.
async fn read_header(from: &mut (impl AsyncRead + Unpin)) -> io::Result<(SocketAddr, SocketAddr)> {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let wrong = |what: &str| io::Error::other(format!("no PROXY header: {what}"));
    let mut fixed = [0; 16];
    from.read_exact(&mut fixed).await?;
    if &fixed[..12] != SIGNATURE || fixed[12] != 0x21 {
        return Err(wrong(&format!("it begins with {fixed:02x?}")));
    }
    let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
    from.read_exact(&mut rest).await?;
    let width = match fixed[13] {
        0x11 => 4,
        0x21 => 16,
        other => return Err(wrong(&format!("family {other:#04x}"))),
    };
    let (addresses, ports) = rest.split_at_checked(2 * width).ok_or_else(|| wrong("too short for addresses"))?;
    let ports = ports.first_chunk::<4>().ok_or_else(|| wrong("too short for ports"))?;
    let address = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).expect("four bytes or sixteen")),
    };
    let (source, destination) = addresses.split_at(width);
    Ok((
        SocketAddr::new(address(source), u16::from_be_bytes([ports[0], ports[1]])),
        SocketAddr::new(address(destination), u16::from_be_bytes([ports[2], ports[3]])),
    ))
}

/// What a server knows of a connection that has ended for it.
#[derive(Debug)]
struct Served {
    /// The server's number for a [`Closing::Greeting`], the client's otherwise; none when it was not heard.
    key: Option<u64>,
    source: SocketAddr,
    named: Option<(SocketAddr, SocketAddr)>,
    outcome: Result<Instant, String>,
}

/// What a client knows.
#[derive(Debug)]
struct Visited {
    key: Option<u64>,
    client: Option<SocketAddr>,
    service: SocketAddr,
    began: Instant,
    outcome: Result<Instant, String>,
}

/// Connections of one cell as the server sees them.
#[derive(Debug, Default)]
struct Book {
    standing: AtomicUsize,
    ended: Mutex<Vec<Served>>,
}

/// The server's side of some cells, one listener each. Ends when dropped.
#[derive(Debug)]
pub struct Servers {
    cells: Vec<(Cell, Arc<Book>)>,
    _stop: oneshot::Sender<()>,
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a tokio runtime")
}

impl Servers {
    /// Serves `cells` on the lab's server, over IPv4 and, on a cable, over IPv6 too.
    #[must_use]
    pub fn start(lab: &Lab, cells: &[Cell], patience: Duration) -> Servers {
        let cells: Vec<_> = cells.iter().map(|cell| (*cell, Arc::new(Book::default()))).collect();
        let mut listeners = Vec::new();
        for (cell, book) in &cells {
            let at: &[SocketAddr] = match lab.arms {
                Arms::Cable => &Family::BOTH.map(|family| family.service(cell.port)),
                _ => &[Family::V4.server(cell.port)],
            };
            for (address, first) in at.iter().zip([0, 1 << 32]) {
                let listener = lab.server.listen(*address);
                listener.set_nonblocking(true).expect("listeners can be non-blocking");
                listeners.push((listener, *cell, Arc::clone(book), first));
            }
        }
        let (stop, stopped) = oneshot::channel::<()>();
        thread::spawn(move || {
            runtime().block_on(async move {
                for (listener, cell, book, first) in listeners {
                    let listener = TcpListener::from_std(listener).expect("a listener");
                    tokio::spawn(accept(listener, cell, book, first, patience));
                }
                // An error is the sender's drop: the end either way.
                let _ = stopped.await;
            });
        });
        Servers { cells, _stop: stop }
    }

    /// Loads all cells from the lab's client, half of the connections over IPv6, and says what became of them when both sides are done with
    /// all of them, one way or the other.
    ///
    /// # Panics
    /// When the harness itself is at fault.
    #[must_use]
    pub fn load(&self, lab: &Lab, load: Load) -> Vec<Report> {
        let cells: Vec<_> = self.cells.iter().map(|(cell, _)| *cell).collect();
        let visits = lab.client.run(move || runtime().block_on(visit_all(&cells, load)));
        // Servers that wait for a client that gave up have a patience of their own.
        let deadline = Instant::now() + load.patience + Duration::from_secs(10);
        let standing = || self.cells.iter().any(|(_, book)| book.standing.load(Ordering::SeqCst) > 0);
        while standing() {
            assert!(Instant::now() < deadline, "a server outlasts its patience");
            thread::sleep(Duration::from_millis(20));
        }
        let reports = self.cells.iter().zip(visits).map(|((cell, book), visits)| {
            let served = std::mem::take(&mut *book.ended.lock().unwrap_or_else(PoisonError::into_inner));
            join(*cell, visits, served)
        });
        reports.collect()
    }
}

async fn accept(listener: TcpListener, cell: Cell, book: Arc<Book>, first: u64, patience: Duration) {
    for number in first.. {
        let Ok((mut stream, source)) = listener.accept().await else { return };
        let book = Arc::clone(&book);
        book.standing.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            let mut end = End::new();
            let ended = timeout(patience, end.serve(&mut stream, cell, number)).await;
            let outcome = end.outcome(ended, patience);
            let key = if cell.closing == Closing::Greeting { Some(number) } else { end.number() };
            let served = Served { key, source, named: end.named, outcome };
            book.ended.lock().unwrap_or_else(PoisonError::into_inner).push(served);
            book.standing.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// All visits, by cell.
async fn visit_all(cells: &[Cell], load: Load) -> Vec<Vec<Visited>> {
    let gate = Arc::new(Semaphore::new(load.at_once));
    let mut visits = JoinSet::new();
    for number in 0..load.count {
        for (index, cell) in cells.iter().copied().enumerate() {
            let gate = Arc::clone(&gate);
            visits.spawn(async move {
                let _turn = gate.acquire().await.expect("the gate stays");
                (index, visit(cell, number as u64, load.patience).await)
            });
        }
    }
    let mut by_cell: Vec<_> = cells.iter().map(|_| Vec::with_capacity(load.count)).collect();
    while let Some(visited) = visits.join_next().await {
        let (index, visited) = visited.expect("no task panics");
        by_cell[index].push(visited);
    }
    by_cell
}

async fn visit(cell: Cell, number: u64, patience: Duration) -> Visited {
    let service = Family::BOTH[(number % 2) as usize].service(cell.port);
    let (began, mut end) = (Instant::now(), End::new());
    let mut client = None;
    let ended = timeout(patience, async {
        let mut stream = dial(service)?;
        // Known before the connection stands, so that one that never does can be found in a record.
        client = Some(stream.local_addr()?);
        end.visit(&mut stream, cell.closing, number).await
    });
    let ended = ended.await;
    let outcome = end.outcome(ended, patience);
    let key = if cell.closing == Closing::Greeting { end.number() } else { Some(number) };
    Visited { key, client, service, began, outcome }
}

/// A socket that is connecting.
fn dial(service: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(service), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&service.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(error),
        _ => TcpStream::from_std(socket.into()),
    }
}

/// Both ends' stories of a cell's connections, as one.
fn join(cell: Cell, visits: Vec<Visited>, served: Vec<Served>) -> Report {
    let count = visits.len();
    let (numbered, unheard): (Vec<_>, Vec<_>) = served.into_iter().partition(|served| served.key.is_some());
    let mut strays: Vec<_> = unheard.iter().map(stray).collect();
    let mut by_key = HashMap::new();
    for served in numbered {
        if let Some(twice) = by_key.insert(served.key, served) {
            strays.push(format!("the same number twice: {}", stray(&twice)));
        }
    }
    let mut report =
        Report { cell, count, durations: Vec::new(), failures: Vec::new(), strays, good_sources: Vec::new() };
    for Visited { key, client, service, began, outcome } in visits {
        let served = key.and_then(|key| by_key.remove(&Some(key)));
        let source = served.as_ref().map(|served| served.source);
        let reason = match (outcome, served) {
            (Ok(at), Some(Served { outcome: Ok(there), named, source, .. })) => {
                if cell.header == Header::None || named == client.map(|client| (client, service)) {
                    report.durations.push(at.max(there).duration_since(began));
                    report.good_sources.push(source);
                    continue;
                }
                format!("the header names {named:?}")
            }
            (Ok(_), Some(Served { outcome: Err(reason), .. })) => format!("done for the client; the server: {reason}"),
            (Ok(_), None) => "done for the client; the server knows nothing of it".to_owned(),
            (Err(reason), Some(Served { outcome: Ok(_), .. })) => format!("{reason}; done for the server"),
            (Err(reason), Some(Served { outcome: Err(there), .. })) => format!("{reason}; the server: {there}"),
            (Err(reason), None) => reason,
        };
        report.failures.push(Failure { client, service, source, reason });
    }
    report.strays.extend(by_key.values().map(stray));
    report.durations.sort_unstable();
    report
}

fn stray(served: &Served) -> String {
    let Served { source, named, outcome, .. } = served;
    let ended = outcome.as_ref().err().map_or("done", String::as_str);
    match named {
        Some((client, _)) => format!("{source} for {client}: {ended}"),
        None => format!("{source}: {ended}"),
    }
}
