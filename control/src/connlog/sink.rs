//! Where lines go: standard output, a file that may be rotated away, or nowhere.
//!
//! Lines leave whole or wait: after a failed write the rest of the line goes out first when writing works again, so a
//! full disk never leaves a torn line behind. What waits is bounded by [`MAX_WAITING`].

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libc::{ENXIO, O_NONBLOCK};
use serde::Serialize;
use sluice_config::ConnectionLog as Destination;

use super::LogCounters;
use crate::StartError;

/// Octets of lines kept while writing fails; some ten thousand connections.
const MAX_WAITING: usize = 4 << 20;
/// How long a failed write rests.
const RETRY: Duration = Duration::from_secs(1);
/// How often a lasting failure is reported.
const REPORT: Duration = Duration::from_secs(60);
/// How often a file is compared with its path.
const ROTATION_CHECK: Duration = Duration::from_secs(1);
/// The lines carry client addresses: the owner writes, the group may read.
const MODE: u32 = 0o640;

/// An opened destination.
#[derive(Debug)]
pub(crate) enum Output {
    Off,
    Stdout(File),
    File(PathBuf, File),
    /// A pipe that nobody reads yet: lines wait for a reader.
    Unread(PathBuf),
}

impl Output {
    pub(crate) fn open(destination: &Destination) -> Result<Output, StartError> {
        let failed = |path: &Path, cause| StartError::ConnectionLog { path: path.to_owned(), cause };
        match destination {
            Destination::Off => Ok(Output::Off),
            Destination::Stdout => {
                // A descriptor of our own, unbuffered: how much was written is known to the octet.
                let duplicate = io::stdout().as_fd().try_clone_to_owned();
                duplicate.map(|fd| Output::Stdout(fd.into())).map_err(|cause| failed(Path::new("stdout"), cause))
            }
            Destination::File(path) => match append(path) {
                Ok(Some(file)) => Ok(Output::File(path.clone(), file)),
                Ok(None) => {
                    tracing::warn!(path = %path.display(), "log.connections is a pipe that nobody reads; lines wait in memory");
                    Ok(Output::Unread(path.clone()))
                }
                Err(cause) => Err(failed(path, cause)),
            },
        }
    }
}

/// Opens a file to append to; none when it is a pipe without a reader, which would have to be waited for.
fn append(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(MODE);
    let is_pipe = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    if !is_pipe {
        return options.open(path).map(Some);
    }
    // Without a reader this fails instead of waiting; with one, a full pipe then is an error that passes.
    match options.custom_flags(O_NONBLOCK).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.raw_os_error() == Some(ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lines on their way to an [`Output`].
#[derive(Debug)]
pub(crate) struct Sink {
    output: Output,
    counters: Arc<LogCounters>,
    /// Lines not written yet; the first may have lost its beginning to an earlier write.
    waiting: Vec<u8>,
    /// Whether the last octet written was inside a line.
    torn: bool,
    retry_at: Option<Instant>,
    report_at: Option<Instant>,
    lost_when_reported: u64,
    check_rotation_at: Option<Instant>,
}

impl Sink {
    pub(crate) fn new(output: Output, counters: Arc<LogCounters>) -> Sink {
        Sink {
            output,
            counters,
            waiting: Vec::new(),
            torn: false,
            retry_at: None,
            report_at: None,
            lost_when_reported: 0,
            check_rotation_at: None,
        }
    }

    /// Takes a line. Beyond [`MAX_WAITING`] it is lost and counted.
    pub(crate) fn push(&mut self, line: &impl Serialize) {
        if matches!(self.output, Output::Off) {
            return;
        }
        let before = self.waiting.len();
        if before >= MAX_WAITING || serde_json::to_writer(&mut self.waiting, line).is_err() {
            self.waiting.truncate(before);
            self.counters.lost.bump();
            return;
        }
        self.waiting.push(b'\n');
        self.counters.waiting.set(self.counters.waiting.get() + 1);
    }

    /// Writes what waits, unless the last failure is too recent.
    pub(crate) fn flush(&mut self, now: Instant) {
        if self.waiting.is_empty() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.follow_rotation(now);
        if !self.is_open() {
            return;
        }
        match self.write_out() {
            Ok(()) => {
                if self.retry_at.take().is_some() {
                    tracing::info!("connection log: writing works again");
                    self.report_at = None;
                }
            }
            // A pipe's reader is slow: it is asked again with the next lines.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.failed(&error, now),
        }
    }

    /// Whether there is something to write to; a pipe may have found its reader.
    fn is_open(&mut self) -> bool {
        let Output::Unread(path) = &self.output else { return true };
        if let Ok(Some(file)) = append(path) {
            tracing::info!("connection log: somebody reads the pipe now");
            self.output = Output::File(path.clone(), file);
        }
        !matches!(self.output, Output::Unread(_))
    }

    /// The last write: what fails now is lost.
    pub(crate) fn finish(&mut self) {
        self.retry_at = None;
        self.flush(Instant::now());
        let lost = self.counters.waiting.get();
        if lost > 0 {
            self.counters.lost.add(lost);
            self.counters.waiting.set(0);
            tracing::error!(lost, "connection log: the last lines could not be written");
        }
    }

    fn failed(&mut self, error: &io::Error, now: Instant) {
        self.counters.write_errors.bump();
        self.retry_at = Some(now + RETRY);
        if self.report_at.is_none_or(|at| now >= at) {
            let lost = self.counters.lost.get();
            tracing::error!(
                %error,
                waiting = self.counters.waiting.get(),
                lost = lost - self.lost_when_reported,
                "connection log: cannot write; lines wait in memory and are lost when that is full"
            );
            self.lost_when_reported = lost;
            self.report_at = Some(now + REPORT);
        }
    }

    fn write_out(&mut self) -> io::Result<()> {
        let mut sent = 0;
        let result = loop {
            if sent == self.waiting.len() {
                break Ok(());
            }
            match write_some(&mut self.output, &self.waiting[sent..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => sent += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.consume(sent);
        result
    }

    /// Takes `sent` written octets off the front.
    fn consume(&mut self, sent: usize) {
        let gone = &self.waiting[..sent];
        if let Some(last) = gone.last() {
            self.torn = *last != b'\n';
        }
        let lines = count_lines(gone);
        self.counters.written.add(lines);
        self.counters.waiting.set(self.counters.waiting.get().saturating_sub(lines));
        self.waiting.drain(..sent);
    }

    /// Opens the path again when what it names is no longer the file we hold: logrotate needs no signal.
    fn follow_rotation(&mut self, now: Instant) {
        let Output::File(path, file) = &self.output else { return };
        if self.check_rotation_at.is_some_and(|at| now < at) {
            return;
        }
        self.check_rotation_at = Some(now + ROTATION_CHECK);
        let same = |held: &Metadata, named: &Metadata| (held.dev(), held.ino()) == (named.dev(), named.ino());
        match (file.metadata(), std::fs::metadata(path)) {
            (Ok(held), Ok(named)) if same(&held, &named) => return,
            _ => {}
        }
        match append(path) {
            Ok(None) => self.output = Output::Unread(path.clone()),
            Ok(Some(next)) => {
                if self.torn {
                    self.end_torn_line();
                }
                if let Output::File(_, file) = &mut self.output {
                    *file = next;
                }
            }
            // The file we hold still takes lines.
            Err(error) => self.failed(&error, now),
        }
    }

    /// Gives the old file the rest of the line it has begun; when it does not take it, that line is lost.
    fn end_torn_line(&mut self) {
        let rest = self.waiting.iter().position(|octet| *octet == b'\n').map_or(self.waiting.len(), |at| at + 1);
        if write_all(&mut self.output, &self.waiting[..rest]).is_ok() {
            self.consume(rest);
        } else {
            self.waiting.drain(..rest);
            self.counters.waiting.set(self.counters.waiting.get().saturating_sub(1));
            self.counters.lost.bump();
        }
        self.torn = false;
    }
}

fn write_some(output: &mut Output, octets: &[u8]) -> io::Result<usize> {
    match output {
        Output::Off => Ok(octets.len()),
        Output::Unread(_) => Err(io::ErrorKind::WouldBlock.into()),
        Output::Stdout(file) | Output::File(_, file) => file.write(octets),
    }
}

fn write_all(output: &mut Output, octets: &[u8]) -> io::Result<()> {
    match output {
        Output::Off => Ok(()),
        Output::Unread(_) => Err(io::ErrorKind::WouldBlock.into()),
        Output::Stdout(file) | Output::File(_, file) => file.write_all(octets),
    }
}

fn count_lines(octets: &[u8]) -> u64 {
    octets.iter().filter(|octet| **octet == b'\n').count() as u64
}
