//! A child process whose output is read as it comes and which ends with its owner.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Ns;

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

#[derive(Debug, Default)]
struct Output {
    lines: Mutex<Vec<(Stream, String)>>,
    news: Condvar,
}

/// A running program in a namespace.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
}

impl Process {
    /// Starts `program` in `ns`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(ns: &Ns, program: &str, arguments: &[&str]) -> Process {
        let mut child = ns.start(program, arguments, Stdio::piped(), Stdio::piped());
        let output = Arc::new(Output::default());
        collect(child.stdout.take(), Stream::Out, &output);
        collect(child.stderr.take(), Stream::Err, &output);
        Process { name: program.to_owned(), child, output }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    /// Everything it printed so far.
    #[must_use]
    pub fn text(&self) -> String {
        let lines = self.output.lines.lock().expect("no reader panicked");
        lines.iter().map(|(_, line)| format!("{line}\n")).collect()
    }

    /// The lines of one stream so far.
    #[must_use]
    pub fn lines(&self, stream: Stream) -> Vec<String> {
        let lines = self.output.lines.lock().expect("no reader panicked");
        lines.iter().filter(|(from, _)| *from == stream).map(|(_, line)| line.clone()).collect()
    }

    /// Waits for a line that contains `wanted` on either stream and returns it.
    ///
    /// # Errors
    /// All output so far, when `patience` runs out or the program ends first.
    pub fn wait_for_line(&mut self, wanted: &str, patience: Duration) -> Result<String, String> {
        let deadline = Instant::now() + patience;
        loop {
            let ended = self.child.try_wait().ok().flatten();
            let lines = self.output.lines.lock().expect("no reader panicked");
            if let Some((_, line)) = lines.iter().find(|(_, line)| line.contains(wanted)) {
                return Ok(line.clone());
            }
            if ended.is_some() || Instant::now() >= deadline {
                drop(lines);
                let state = ended.map_or_else(|| "still running".to_owned(), |status| status.to_string());
                return Err(format!("{}: no line with {wanted:?} ({state}):\n{}", self.name, self.text()));
            }
            let (lines, _) =
                self.output.news.wait_timeout(lines, Duration::from_millis(20)).expect("no reader panicked");
            drop(lines);
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(self.pid(), signal);
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it still runs after `patience`; the message holds its output.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                // The readers see the end of the pipes a moment later.
                thread::sleep(Duration::from_millis(30));
                return status;
            }
            assert!(Instant::now() < deadline, "{} still runs after {patience:?}:\n{}", self.name, self.text());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_millis(300);
            while self.ended().is_none() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn collect<R: Read + Send + 'static>(pipe: Option<R>, stream: Stream, output: &Arc<Output>) {
    let Some(pipe) = pipe else { return };
    let output = Arc::clone(output);
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            output.lines.lock().expect("no reader panicked").push((stream, line));
            output.news.notify_all();
        }
    });
}
