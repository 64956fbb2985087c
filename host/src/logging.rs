//! Where `tracing` events go: warnings (more with -v) to stderr, everything from `info` up to the
//! run folder's `log.jsonl`.

use crate::ui::{Ui, write_talk};
use diffaug_run::escape;
use std::{
    fs::File,
    io::{self, Write},
    sync::{Mutex, PoisonError},
};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// The log of the folder of the run that is under way, once there is one.
static RUN_LOG: Mutex<Option<File>> = Mutex::new(None);

/// The run's log, or a sink before there is one.
struct RunLog;

impl Write for RunLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(file) = &mut *RUN_LOG.lock().unwrap_or_else(PoisonError::into_inner) {
            let line = String::from_utf8_lossy(bytes);
            file.write_all(escape::json(&line).as_bytes())?;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// stderr, which takes an event at a time. Words of others are escaped before colour is added, so
/// that none can pass for ours.
struct Talk {
    color: bool,
}

impl Write for Talk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let event = String::from_utf8_lossy(bytes);
        let event = escape::sentence(event.trim_end_matches('\n'));
        write_talk(&(painted(&event, self.color) + "\n"));
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An event with its level in colour.
fn painted(event: &str, color: bool) -> String {
    let colors = [
        ("ERROR", 31),
        (" WARN", 33),
        (" INFO", 32),
        ("DEBUG", 34),
        ("TRACE", 35),
    ];
    let level = |(word, code)| Some((word, code, event.strip_prefix(word)?));
    match colors.into_iter().find_map(level).filter(|_| color) {
        Some((word, code, rest)) => format!("\x1b[{code}m{word}\x1b[0m{rest}"),
        None => event.to_owned(),
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
    let color = ui.color();
    let talk = fmt::layer()
        .with_writer(move || Talk { color })
        .with_ansi(false)
        // A log that cannot be written is no reason to write elsewhere.
        .log_internal_errors(false)
        .without_time()
        .with_target(ui.log_level() > 3)
        .with_filter(level);
    let file = fmt::layer()
        .json()
        .with_writer(|| RunLog)
        .log_internal_errors(false)
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
    *RUN_LOG.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
}

#[cfg(test)]
mod tests {
    use super::painted;

    #[test]
    fn a_level_is_in_colour_and_nothing_else() {
        assert_eq!(painted(" WARN a", true), "\x1b[33m WARN\x1b[0m a");
        assert_eq!(painted(" WARN a", false), " WARN a");
        assert_eq!(painted("a WARN", true), "a WARN");
    }
}
