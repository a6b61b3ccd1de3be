//! Rotates the keys that sign PROXY headers: reads their file again when it changes.
//!
//! A thread of its own looks at the file once a second. A file that cannot be used leaves the keys in force that were, so a
//! slip of the hand costs a warning and no connection.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use sluice_tcpstack::proxy::{KeyRing, Keys};

use crate::StartError;
use crate::stamp::Stamp;

/// How often the file is looked at.
const POLL: Duration = Duration::from_secs(1);
const THREAD: &str = "sluice-keys";

/// The thread that watches the key file; dropping it ends the thread.
#[derive(Debug)]
pub struct KeyWatch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Watches the key file at `path` and puts its keys into `ring` whenever it has changed, the first time at once.
///
/// # Errors
/// [`StartError::Thread`] when the kernel gives no thread.
pub fn watch(path: &Path, ring: Arc<KeyRing>) -> Result<KeyWatch, StartError> {
    let (stop, stopped) = channel::<()>();
    let mut file = KeyFile::new(path, ring);
    let look = move || {
        loop {
            file.look();
            if stopped.recv_timeout(POLL) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name(THREAD.into())
        .spawn(look)
        .map_err(|cause| StartError::Thread { name: THREAD, cause })?;
    Ok(KeyWatch { stop: Some(stop), thread: Some(thread) })
}

impl Drop for KeyWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that watches the keys ended with a panic");
        }
    }
}

/// The key file as it was last seen.
struct KeyFile {
    path: PathBuf,
    ring: Arc<KeyRing>,
    /// None before the first look.
    seen: Option<Result<Stamp, io::ErrorKind>>,
}

impl KeyFile {
    fn new(path: &Path, ring: Arc<KeyRing>) -> KeyFile {
        KeyFile { path: path.to_owned(), ring, seen: None }
    }

    /// Reads the file if it is not as it was.
    fn look(&mut self) {
        // Taken before reading: a change in between shows at the next look.
        let stamp = Stamp::of(&self.path);
        if self.seen.replace(stamp) == Some(stamp) {
            return;
        }
        match sluice_config::read_proxy_keys(&self.path) {
            Ok(keys) => {
                let keys = Keys::new(&keys);
                let (signs, verify) = (keys.signer(), keys.ids().collect::<Vec<_>>());
                self.ring.replace(keys);
                tracing::info!(signs, ?verify, "the keys of PROXY headers are in force");
            }
            Err(error) => {
                let signs = self.ring.current().signer();
                tracing::warn!(%error, signs, "the key file cannot be used; the old keys stay in force");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    const DIGITS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    /// Puts a key file in place of the one at `path`, as an operator should.
    fn put(path: &Path, ids: &[u32], mode: u32) {
        let text: String = ids.iter().map(|id| format!("{id} {DIGITS}\n")).collect();
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn in_force(ring: &KeyRing) -> Vec<u32> {
        ring.current().ids().collect()
    }

    #[test]
    fn a_changed_file_puts_its_keys_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        put(&path, &[1], 0o600);
        let mut file = KeyFile::new(&path, Arc::new(KeyRing::default()));
        file.look();
        assert_eq!(in_force(&file.ring), [1]);
        put(&path, &[2, 1], 0o600);
        file.look();
        assert_eq!(in_force(&file.ring), [2, 1]);
    }

    #[test]
    fn an_unchanged_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        put(&path, &[1], 0o600);
        let mut file = KeyFile::new(&path, Arc::new(KeyRing::default()));
        file.look();
        let before = file.ring.current();
        file.look();
        assert!(Arc::ptr_eq(&before, &file.ring.current()));
    }

    #[test]
    fn a_broken_or_missing_file_leaves_the_old_keys_in_force_until_it_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        put(&path, &[1], 0o600);
        let mut file = KeyFile::new(&path, Arc::new(KeyRing::default()));
        file.look();
        put(&path, &[3, 3], 0o600);
        file.look();
        assert_eq!(in_force(&file.ring), [1]);
        fs::remove_file(&path).unwrap();
        file.look();
        assert_eq!(in_force(&file.ring), [1]);
        put(&path, &[4], 0o644);
        file.look();
        assert_eq!(in_force(&file.ring), [1]);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        file.look();
        assert_eq!(in_force(&file.ring), [4]);
    }

    #[test]
    fn the_thread_reads_at_once_and_ends_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        put(&path, &[5], 0o600);
        let ring = Arc::new(KeyRing::default());
        let watch = watch(&path, Arc::clone(&ring)).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while in_force(&ring).is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(in_force(&ring), [5]);
        drop(watch);
        assert_eq!(Arc::strong_count(&ring), 1);
    }
}
