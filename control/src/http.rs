//! The metrics endpoint: plain HTTP/1.1 on the host's own network.
//!
//! One thread, one connection a scrape, at most [`MAX_CONNECTIONS`] at once and none for longer than [`DEADLINE`], so no
//! client of this port can take more of the control core than that. When there are as many, the oldest of the host that has most of them
//! gives way: whoever connects and says nothing keeps nobody else from a scrape. Every scrape reads the counters anew.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::StartError;
use crate::metrics::Exporter;

/// Connections served at once.
const MAX_CONNECTIONS: usize = 16;
/// A request must be complete after this.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// A connection is cut after this, whatever its client does.
const DEADLINE: Duration = Duration::from_secs(10);
/// Room for a request's head.
const REQUEST_BUFFER: usize = 16 * 1024;
/// The text exposition format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const THREAD: &str = "sluice-metrics";

/// A bound port that nobody serves yet.
#[derive(Debug)]
pub(crate) struct Listener(std::net::TcpListener);

/// The thread that answers scrapes.
#[derive(Debug)]
pub(crate) struct Server {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Listener {
    pub(crate) fn bind(listen: SocketAddr) -> Result<Listener, StartError> {
        let bind = || {
            let listener = std::net::TcpListener::bind(listen)?;
            listener.set_nonblocking(true)?;
            Ok(Listener(listener))
        };
        bind().map_err(|cause| StartError::MetricsListen { listen, cause })
    }
}

impl Server {
    pub(crate) fn start(listener: Listener, exporter: Exporter) -> Result<Server, StartError> {
        let failed = |cause: io::Error| StartError::Thread { name: THREAD, cause };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener.0).map_err(failed)?
        };
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.spawn(accept(listener, router(exporter)));
            // Ends when the sender speaks or is dropped: both mean stop.
            let _ = runtime.block_on(stopped);
        };
        let thread = std::thread::Builder::new().name(THREAD.into()).spawn(serve).map_err(failed)?;
        Ok(Server { stop, thread })
    }

    pub(crate) fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the metrics thread ended with a panic");
        }
    }
}

fn router(exporter: Exporter) -> Router {
    Router::new()
        .route("/", get(async || "sluice: metrics are at /metrics\n"))
        .route("/metrics", get(scrape))
        .fallback(async || (StatusCode::NOT_FOUND, "not found; metrics are at /metrics\n"))
        .with_state(Arc::new(exporter))
}

async fn scrape(State(exporter): State<Arc<Exporter>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], exporter.render())
}

/// Makes room for one more connection.
fn make_room(open: &mut Vec<(IpAddr, AbortHandle)>) {
    open.retain(|(_, task)| !task.is_finished());
    if open.len() < MAX_CONNECTIONS {
        return;
    }
    let of = |host: &IpAddr| open.iter().filter(|(other, _)| other == host).count();
    let most = open.iter().map(|(host, _)| of(host)).max();
    // In their order: the oldest first.
    if let Some(at) = open.iter().position(|(host, _)| Some(of(host)) == most) {
        open.remove(at).1.abort();
    }
}

async fn accept(listener: tokio::net::TcpListener, router: Router) {
    let mut open: Vec<(IpAddr, AbortHandle)> = Vec::with_capacity(MAX_CONNECTIONS);
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                make_room(&mut open);
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_DEADLINE)
                    .max_buf_size(REQUEST_BUFFER)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
                let task = tokio::spawn(async move {
                    // A client that breaks off is its own concern.
                    let _ = tokio::time::timeout(DEADLINE, connection).await;
                });
                open.push((from.ip(), task.abort_handle()));
            }
            Err(error) => {
                // Out of file descriptors, or a connection gone before it was taken: neither may spin the control core.
                tracing::debug!(%error, "metrics: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    use super::*;
    use crate::fake::{self, Fake};
    use crate::metrics::{BuildInfo, FilterSide};

    fn serve() -> (Server, SocketAddr, Arc<Fake>) {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.0.local_addr().unwrap();
        let fake = Arc::new(Fake::new(&fake::config()));
        let build = BuildInfo { version: "0".into(), dpdk: "0".into() };
        let exporter =
            Exporter::new(&fake::config(), fake.clone(), Arc::default(), FilterSide::of(&fake::config()), build);
        (Server::start(listener, exporter).unwrap(), address, fake)
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn scrape_is_prometheus_text_of_this_moment() {
        let (server, address, fake) = serve();
        for n in 1..=3 {
            fake.workers[0].stack.cookies_sent.bump();
            let answer = ask(address, "GET /metrics");
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
            assert!(answer.contains(&format!("sluice_syn_cookies_sent_total{{worker=\"0\"}} {n}\n")), "{answer}");
        }
        server.stop();
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        let (server, address, _) = serve();
        assert!(ask(address, "GET /").contains("metrics are at /metrics"));
        assert!(ask(address, "GET /admin").starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "POST /metrics").starts_with("HTTP/1.1 405 "));
        assert!(ask(address, &format!("GET /{}", "a".repeat(2 * REQUEST_BUFFER))).starts_with("HTTP/1.1 4"));
        server.stop();
    }

    #[test]
    fn busy_port_is_refused_with_its_key_and_a_remedy() {
        let taken = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.0.local_addr().unwrap();
        let error = Listener::bind(address).unwrap_err().to_string();
        assert!(error.starts_with(&format!("metrics.listen: cannot listen on {address}")), "{error}");
        assert!(error.ends_with("another program has this port: end it or choose another port"), "{error}");
    }

    #[test]
    fn address_of_another_host_is_refused_with_a_remedy() {
        let error = Listener::bind("192.0.2.1:9150".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("choose an address of this host"), "{error}");
    }

    #[test]
    fn silent_clients_do_not_keep_a_scrape_waiting_however_many_they_are() {
        for count in [MAX_CONNECTIONS - 1, MAX_CONNECTIONS, 20 * MAX_CONNECTIONS] {
            let (server, address, _) = serve();
            let silent: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(address).unwrap()).collect();
            let start = Instant::now();
            assert!(ask(address, "GET /metrics").starts_with("HTTP/1.1 200 OK"), "beside {count}");
            assert!(start.elapsed() < HEADER_DEADLINE, "beside {count}");
            drop(silent);
            server.stop();
        }
    }

    #[test]
    fn whoever_has_most_connections_loses_his_oldest() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let task = || runtime.spawn(std::future::pending::<()>()).abort_handle();
        let [many, few]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|host| host.parse().unwrap());
        let mut open = vec![(few, task())];
        open.extend((1..MAX_CONNECTIONS).map(|_| (many, task())));
        let victim = open[1].1.id();
        make_room(&mut open);
        assert_eq!(open.len(), MAX_CONNECTIONS - 1);
        assert!(open.iter().all(|(_, task)| task.id() != victim));
        make_room(&mut open);
        assert_eq!(open.len(), MAX_CONNECTIONS - 1, "there was room");
    }

    #[test]
    fn stopped_server_gives_its_port_back() {
        let (server, address, _) = serve();
        server.stop();
        assert!(Listener::bind(address).is_ok());
    }
}
