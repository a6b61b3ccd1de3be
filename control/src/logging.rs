//! The log: `tracing` events as lines on standard error, panics included.
//!
//! DPDK's own lines arrive with the target `dpdk`, so `SLUICE_LOG=info,dpdk=debug` shows more of them.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use sluice_config::Level;
use tracing_subscriber::EnvFilter;

use crate::StartError;

/// The environment variable that overrides `[log].level`.
pub const ENVIRONMENT: &str = "SLUICE_LOG";

/// Sends the process's events and panics to standard error from now on, from `level` up or as `SLUICE_LOG` says.
///
/// # Errors
/// [`StartError::LogFilter`] when `SLUICE_LOG` is no filter, [`StartError::LoggingTwice`] on a second call.
pub fn init(level: Level) -> Result<(), StartError> {
    let filter = filter(level, std::env::var(ENVIRONMENT).ok())?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A closed standard error is no reason to panic, which its own complaint about it would be.
        .log_internal_errors(false)
        .try_init()
        .map_err(|_| StartError::LoggingTwice)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn filter(level: Level, override_with: Option<String>) -> Result<EnvFilter, StartError> {
    match override_with {
        Some(text) if !text.trim().is_empty() => {
            EnvFilter::try_new(&text).map_err(|error| StartError::LogFilter { filter: text, cause: error.to_string() })
        }
        _ => Ok(EnvFilter::new(match level {
            Level::Error => "error",
            Level::Warn => "warn",
            // capsule tells at this level what sluice's start-up lines say in the operator's words.
            Level::Info => "info,capsule=warn",
            Level::Debug => "debug",
            Level::Trace => "trace",
        })),
    }
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    tracing::error!(
        target: "panic",
        thread = thread.name().unwrap_or("unnamed"),
        location = info.location().map(tracing::field::display),
        backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(&backtrace)),
        "{}", text.unwrap_or("panic without a message"),
    );
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter;

    use super::*;

    #[test]
    fn configured_level_holds_without_the_environment_variable() {
        for (level, hint) in
            [(Level::Error, LevelFilter::ERROR), (Level::Info, LevelFilter::INFO), (Level::Trace, LevelFilter::TRACE)]
        {
            assert_eq!(filter(level, None).unwrap().max_level_hint(), Some(hint));
        }
        assert_eq!(filter(Level::Warn, Some(" ".into())).unwrap().max_level_hint(), Some(LevelFilter::WARN));
    }

    #[test]
    fn environment_variable_overrides_the_configured_level() {
        let filter = filter(Level::Error, Some("info,dpdk=debug".into())).unwrap();
        assert_eq!(filter.max_level_hint(), Some(LevelFilter::DEBUG));
    }

    #[test]
    fn environment_variable_that_is_no_filter_is_refused_by_name() {
        let error = filter(Level::Info, Some("sluice=loud".into())).unwrap_err().to_string();
        assert!(error.starts_with("SLUICE_LOG: \"sluice=loud\" is not a log filter"), "{error}");
    }
}
