//! Carries the `tracing` events of a loaded library to the host.
//!
//! A library has its own copy of `tracing`'s statics, so its events would vanish without a word.
//! [`attach`] installs a subscriber there that formats events and calls the host's function.
//! Spans stay behind; the host's own span names the stage.

use abi_stable::{StableAbi, std_types::RStr};
use std::fmt::Write;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Where a library's events go.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct LogSink {
    /// The most talkative level wanted: 1 (error) to 5 (trace).
    pub level: u8,
    /// Takes level, target and text of an event.
    pub write: extern "C" fn(u8, RStr<'_>, RStr<'_>),
}

/// The number of a level as [`LogSink`] counts: 1 (error) to 5 (trace).
pub fn level_number(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// Sends this artifact's events, and the text of its panics, to `sink`.
pub(crate) extern "C" fn attach(sink: LogSink) {
    // A second attach keeps the first subscriber: the library was loaded twice on purpose.
    if tracing::subscriber::set_global_default(Forward(sink)).is_ok() {
        std::panic::set_hook(Box::new(|info| tracing::debug!("panic: {info}")));
    }
}

struct Forward(LogSink);

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && level_number(*metadata.level()) <= self.0.level
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let line = format!("{}{}", text.message, text.fields);
        let metadata = event.metadata();
        (self.0.write)(
            level_number(*metadata.level()),
            metadata.target().into(),
            line.trim().into(),
        );
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
