//! Thousands of connections at once, each with data of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::netns::Ns;

/// How many handshakes are under way at once: a crowd that arrives, not a flood.
const ARRIVING: usize = 256;

/// One connection's patience.
const PATIENCE: Duration = Duration::from_secs(15);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a tokio runtime")
}

/// An echo server for crowds; ends when dropped.
#[derive(Debug)]
pub struct Echo {
    _stop: oneshot::Sender<()>,
}

impl Echo {
    /// Serves at `at` in `ns`.
    #[must_use]
    pub fn start(ns: &Ns, at: SocketAddr) -> Echo {
        Echo {
            _stop: serve(ns, at, |mut stream| async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            }),
        }
    }
}

/// Serves each connection at `at` in `ns` with `converse`, until what it returns is dropped.
fn serve<F>(ns: &Ns, at: SocketAddr, converse: impl Fn(TcpStream) -> F + Send + 'static) -> oneshot::Sender<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = ns.listen(at);
    listener.set_nonblocking(true).expect("listeners can be non-blocking");
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(converse(stream));
                }
            });
            // An error is the sender's drop: the end either way.
            let _ = stopped.await;
        });
    });
    stop
}

/// What a greeter says.
const GREETING: &[u8] = b"hello and good-bye\n";

/// A server that speaks first and closes first; ends when dropped.
#[derive(Debug)]
pub struct Greeter {
    _stop: oneshot::Sender<()>,
}

impl Greeter {
    /// Serves at `at` in `ns`.
    #[must_use]
    pub fn start(ns: &Ns, at: SocketAddr) -> Greeter {
        Greeter {
            _stop: serve(ns, at, |mut stream| async move {
                let _ = stream.write_all(GREETING).await;
                let _ = stream.shutdown().await;
                // The client closes second.
                let _ = stream.read(&mut [0]).await;
            }),
        }
    }
}

/// Opens `count` connections from `ns` to the greeter behind `to`, some at a time, hears it out and closes.
///
/// # Panics
/// When any connection fails, says something else or takes longer than `patience`.
pub fn hear_greetings(ns: &Ns, to: SocketAddr, count: usize, patience: Duration) {
    let heard = ns.run(|| {
        runtime().block_on(async {
            let gate = std::sync::Arc::new(Semaphore::new(ARRIVING));
            let mut visits = JoinSet::new();
            for _ in 0..count {
                let gate = std::sync::Arc::clone(&gate);
                visits.spawn(async move {
                    let _turn = gate.acquire().await.expect("the gate stays");
                    let visit = async {
                        let mut heard = Vec::new();
                        TcpStream::connect(to).await?.read_to_end(&mut heard).await?;
                        if heard == GREETING { Ok(()) } else { Err(io::Error::other("not the greeting")) }
                    };
                    timeout(patience, visit).await?
                });
            }
            let mut failures = Vec::new();
            while let Some(visit) = visits.join_next().await {
                failures.extend(visit.expect("no task panics").err());
            }
            failures
        })
    });
    assert!(heard.is_empty(), "{} of {count} visits failed, such as: {}", heard.len(), heard[0]);
}

/// Opens `count` connections from `ns` to the echo server behind `to`; sends `octets` of its own on each and reads them back, three times:
/// on arrival, when all stand, and after `meanwhile`; closes all.
///
/// # Panics
/// When any connection fails or returns other data.
pub fn visit(ns: &Ns, to: SocketAddr, count: usize, octets: usize, meanwhile: impl FnOnce()) {
    let (arrived, all_here) = mpsc::channel();
    let (go, leave) = oneshot::channel();
    let crowd = ns.spawn(move || {
        runtime().block_on(async move {
            let gate = std::sync::Arc::new(Semaphore::new(ARRIVING));
            let mut dials = JoinSet::new();
            for number in 0..count {
                let gate = std::sync::Arc::clone(&gate);
                dials.spawn(async move {
                    let _turn = gate.acquire().await.expect("the gate stays");
                    let mut stream = timeout(PATIENCE, TcpStream::connect(to)).await??;
                    exchange(&mut stream, number, octets).await?;
                    io::Result::Ok((number, stream))
                });
            }
            let mut standing = Vec::with_capacity(count);
            while let Some(dialled) = dials.join_next().await {
                match dialled.expect("no task panics") {
                    Ok(connection) => standing.push(connection),
                    Err(error) => {
                        let _ = arrived.send(Err(format!("after {} good ones: {error}", standing.len())));
                        return;
                    }
                }
            }
            // Again now that all stand, and again after whatever happens meanwhile.
            let _ = arrived.send(once_more(&mut standing, octets).await);
            let _ = leave.await;
            let _ = arrived.send(once_more(&mut standing, octets).await);
            for (_, mut stream) in standing {
                let _ = stream.shutdown().await;
                let _ = timeout(PATIENCE, stream.read(&mut [0])).await;
            }
        });
    });
    let check = |turn| {
        let outcome = all_here.recv().unwrap_or_else(|_| Err("the crowd's thread ended".to_owned()));
        if let Err(error) = outcome {
            panic!("{turn}, of {count} connections: {error}");
        }
    };
    check("while they stand");
    meanwhile();
    let _ = go.send(());
    check("before they leave");
    crowd.join().expect("the crowd's thread");
}

/// An exchange on each of the connections; the error counts those that failed.
async fn once_more(standing: &mut [(usize, TcpStream)], octets: usize) -> Result<(), String> {
    let mut failures = Vec::new();
    for (number, stream) in standing {
        if let Err(error) = exchange(stream, *number, octets).await {
            failures.push(format!("connection {number}: {error}"));
            // Those that hang would take a minute each.
            if failures.len() == 3 {
                break;
            }
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

/// Sends data that only connection `number` sends, and reads it back.
async fn exchange(stream: &mut TcpStream, number: usize, octets: usize) -> io::Result<()> {
    let mut data = vec![0; octets];
    fastrand::Rng::with_seed(number as u64).fill(&mut data);
    let mut echo = vec![0; octets];
    timeout(PATIENCE, stream.write_all(&data)).await??;
    timeout(PATIENCE, stream.read_exact(&mut echo)).await??;
    if echo == data { Ok(()) } else { Err(io::Error::other("the echo is not what was sent")) }
}
