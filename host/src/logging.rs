//! Where `tracing` events go: warnings (more with -v) to stderr, everything from `info` up to the
//! run folder's `log.jsonl`.

use crate::ui::Ui;
use std::{
    fs::File,
    io::{self, Write},
    sync::{Arc, Mutex, OnceLock},
};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// The run folder's log, once there is a run.
static RUN_LOG: OnceLock<Arc<Mutex<File>>> = OnceLock::new();

/// A clone of the run log, or a sink before there is one.
struct RunLog;

impl Write for RunLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match RUN_LOG.get().map(|file| file.lock()) {
            Some(Ok(mut file)) => file.write(bytes),
            _ => Ok(bytes.len()),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts logging; call once.
pub fn start(ui: &Ui) {
    let level = match ui.log_level() {
        1 => LevelFilter::ERROR,
        2 => LevelFilter::WARN,
        3 => LevelFilter::INFO,
        4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let talk = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(ui.color())
        .without_time()
        .with_target(ui.log_level() > 3)
        .with_filter(level);
    let file = fmt::layer()
        .json()
        .with_writer(|| RunLog)
        .with_filter(LevelFilter::INFO);
    // Fails only when a subscriber is there already, which then does the work.
    let _ = tracing_subscriber::registry()
        .with(talk)
        .with(file)
        .try_init();
    // A plugin's panic is caught and reported as an error; its text must not appear twice.
    std::panic::set_hook(Box::new(|info| tracing::debug!("panic: {info}")));
}

/// Sends events to `file` from now on.
pub fn to_file(file: File) {
    if RUN_LOG.set(Arc::new(Mutex::new(file))).is_err() {
        tracing::debug!("the log file was set before");
    }
}
