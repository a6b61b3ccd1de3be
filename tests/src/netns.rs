//! Network namespaces: created by name, entered by threads, removed on drop.
//!
//! A namespace is a property of a thread. [`Ns::run`] enters it on a thread of its own, so the caller's never changes;
//! a socket made inside stays in the namespace and may be used from anywhere. Processes are started by one thread that
//! lives as long as the [`Ns`]: they die with it (parent-death signal), even when the test process is killed.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};

type Job = Box<dyn FnOnce() + Send>;

/// A named network namespace with loopback up.
#[derive(Debug)]
pub struct Ns {
    name: String,
    jobs: Option<Sender<Job>>,
    spawner: Option<JoinHandle<()>>,
}

impl Ns {
    /// Creates the namespace `name` (unique on this machine) and brings its loopback up.
    ///
    /// # Panics
    /// When the kernel refuses; the message says what `ip` printed.
    #[must_use]
    pub fn create(name: &str) -> Ns {
        host(&["ip", "netns", "add", name]);
        let (jobs, queue) = mpsc::channel::<Job>();
        let inside = name.to_owned();
        let spawner = thread::Builder::new()
            .name(format!("spawn-{name}"))
            .spawn(move || {
                enter(&inside);
                for job in queue {
                    job();
                }
            })
            .expect("a thread for the namespace");
        let ns = Ns { name: name.to_owned(), jobs: Some(jobs), spawner: Some(spawner) };
        // No duplicate address detection: addresses are unique by construction and a test cannot wait a second for each.
        ns.sh("echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad; ip link set lo up");
        ns
    }

    /// Its name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` inside the namespace and waits for it. A panic in `work` goes on in the caller.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let joined = thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(&self.name);
                    work()
                })
                .join()
        });
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `work` inside the namespace on a thread of its own.
    pub fn spawn<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
        let name = self.name.clone();
        thread::spawn(move || {
            enter(&name);
            work()
        })
    }

    /// Starts a process inside the namespace; it is killed when the namespace goes.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[must_use]
    pub fn start(&self, program: &str, arguments: &[&str], output: Stdio, errors: Stdio) -> Child {
        let mut command = Command::new("setpriv");
        // `ip netns exec` also shows the process the namespace's own /sys.
        command.args(["--pdeathsig", "KILL", "--", "ip", "netns", "exec", &self.name, program]).args(arguments);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let (reply, answer) = mpsc::channel();
        let job: Job = Box::new(move || {
            let _ = reply.send(command.spawn());
        });
        self.jobs.as_ref().expect("the namespace lives").send(job).expect("the namespace's thread lives");
        let spawned = answer.recv().expect("the namespace's thread answers");
        spawned.unwrap_or_else(|error| panic!("cannot start {program} in {}: {error}", self.name))
    }

    /// Runs a program inside the namespace to its end.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        self.start(program, arguments, Stdio::piped(), Stdio::piped())
            .wait_with_output()
            .unwrap_or_else(|error| panic!("cannot wait for {program}: {error}"))
    }

    /// Runs a shell script inside the namespace and returns what it printed.
    ///
    /// # Panics
    /// When a command of it fails.
    pub fn sh(&self, script: &str) -> String {
        checked(&format!("{script} (in {})", self.name), &self.output("sh", &["-ec", script]))
    }

    /// The path MTU the kernel has learned for packets to `address`; none when it believes in its link's.
    ///
    /// # Panics
    /// When there is no route to it.
    #[must_use]
    pub fn path_mtu(&self, address: IpAddr) -> Option<u16> {
        let shown = self.sh(&format!("ip route get {address}"));
        let mut words = shown.split_whitespace();
        words.find(|word| *word == "mtu")?;
        words.find(|word| *word != "lock")?.parse().ok()
    }

    /// The MAC address of interface `name` in this namespace.
    ///
    /// # Panics
    /// When there is no such interface.
    #[must_use]
    pub fn mac_of(&self, name: &str) -> [u8; 6] {
        let shown = self.sh(&format!("ip -o link show dev {name}"));
        let text = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
        let octets: Vec<u8> = text
            .unwrap_or_else(|| panic!("no MAC address in {shown:?}"))
            .split(':')
            .map(|octet| u8::from_str_radix(octet, 16).expect("ip prints hex"))
            .collect();
        octets.try_into().expect("six octets")
    }

    /// Connects from inside, from any local address.
    ///
    /// # Errors
    /// As the kernel's `connect`.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))
    }

    /// Connects from inside, from the local address `from` (port 0 = any).
    ///
    /// # Errors
    /// As the kernel's `bind` and `connect`.
    pub fn connect_from(&self, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
        self.connect_within(from, to, Duration::from_secs(10))
    }

    /// As [`Ns::connect_from`], with a patience of one's own: of a SYN that is dropped one hears nothing.
    ///
    /// # Errors
    /// As the kernel's `bind` and `connect`; `TimedOut` when nobody answers in time.
    pub fn connect_within(&self, from: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
        self.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&to.into(), patience)?;
            Ok(socket.into())
        })
    }

    /// Listens inside, with a backlog for crowds.
    ///
    /// # Panics
    /// When the address is taken.
    #[must_use]
    pub fn listen(&self, at: SocketAddr) -> TcpListener {
        self.try_listen(at).unwrap_or_else(|error| panic!("cannot listen on {at} in {}: {error}", self.name))
    }

    /// As [`Ns::listen`], where somebody else may listen already.
    ///
    /// # Errors
    /// As the kernel's `bind` and `listen`.
    pub fn try_listen(&self, at: SocketAddr) -> io::Result<TcpListener> {
        self.run(|| {
            let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&at.into())?;
            socket.listen(4096)?;
            Ok(socket.into())
        })
    }

    /// Ends what still runs in the namespace. Only processes of ours can be in it: we made it.
    fn end_processes(&self) {
        let Ok(listed) = Command::new("ip").args(["netns", "pids", &self.name]).output() else { return };
        for pid in String::from_utf8_lossy(&listed.stdout).lines().filter_map(|line| line.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(spawner) = self.spawner.take() {
            let _ = spawner.join();
        }
        self.end_processes();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

/// Moves the calling thread into the namespace `name`.
fn enter(name: &str) {
    let path = Path::new("/run/netns").join(name);
    let file = File::open(&path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
    setns(file, CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| panic!("cannot enter {name}: {error}"));
}

/// Runs a command outside all namespaces of ours and returns what it printed.
///
/// # Panics
/// When it fails.
pub fn host(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).output();
    checked(&command.join(" "), &output.unwrap_or_else(|error| panic!("cannot run {}: {error}", command[0])))
}

fn checked(what: &str, output: &Output) -> String {
    assert!(
        output.status.success(),
        "{what}\nended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
