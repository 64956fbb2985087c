//! The one error that crosses the plugin border: plain data, so that a plugin's failure reads the
//! same whether the plugin is linked in or loaded.
//!
//! [`Error`] does not implement [`std::error::Error`] on purpose: that is what allows the blanket
//! `From` below, and with it `?` on every standard error inside a plugin.

use abi_stable::{
    StableAbi,
    std_types::{RString, RVec},
};
use std::fmt;

/// Who has to act on an error.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A stage's options or a manifest are wrong; [`Error::field`] may say where.
    Config,
    /// A file of the user's is missing, broken or contradicts another.
    Data,
    /// Weights do not fit, or training went astray.
    Model,
    /// The stage does not offer what was asked of it.
    Unsupported,
    /// The user asked to stop.
    Cancelled,
    /// A plugin panicked: a fault of the plugin, not of the user.
    Panic,
    /// A promise inside DiffAug was broken: a fault of ours.
    Internal,
    /// Whatever the standard library or another crate reported.
    Other,
}

/// A failure: one sentence, the chain of causes below it, and the option it concerns, if any.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Who has to act.
    pub kind: ErrorKind,
    /// One sentence without a full stop; values stand in backticks.
    pub message: RString,
    /// Dotted path of the option that is wrong (`sampler.eta`), or empty.
    pub field: RString,
    /// What lies below, the nearest cause first.
    pub causes: RVec<RString>,
}

/// A result whose error can cross the plugin border.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Error {
            kind,
            message: message.to_string().into(),
            field: RString::new(),
            causes: RVec::new(),
        }
    }

    /// A wrong option or manifest.
    pub fn config(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Config, message)
    }

    /// A wrong or missing file of the user's.
    pub fn data(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Data, message)
    }

    /// Weights or a training run that cannot be used.
    pub fn model(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Model, message)
    }

    /// Something that the stage does not offer.
    pub fn unsupported(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A broken promise inside DiffAug.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// The user's wish to stop, as an error that unwinds through every `?`.
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "stopped on request")
    }

    /// Names the option (dotted path) that the error is about.
    #[must_use]
    pub fn at(mut self, field: impl fmt::Display) -> Self {
        self.field = field.to_string().into();
        self
    }

    /// Puts `message` in front; what was the message becomes the nearest cause.
    #[must_use]
    pub fn context(mut self, message: impl fmt::Display) -> Self {
        let cause = std::mem::replace(&mut self.message, message.to_string().into());
        self.causes.insert(0, cause);
        self
    }

    /// Whether the fault is ours or a plugin's rather than the user's.
    pub fn is_fault(&self) -> bool {
        matches!(self.kind, ErrorKind::Panic | ErrorKind::Internal)
    }
}

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut out = Error::new(ErrorKind::Other, &error);
        let mut next = error.source();
        while let Some(cause) = next {
            out.causes.push(cause.to_string().into());
            next = cause.source();
        }
        out
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

/// Adds a sentence to whatever error a result holds.
pub trait ResultExt<T> {
    /// Puts `message()` in front of the error and gives it `kind`.
    ///
    /// # Errors
    /// The error of `self`, with the message in front.
    fn or_error<M: fmt::Display>(self, kind: ErrorKind, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for std::result::Result<T, E> {
    fn or_error<M: fmt::Display>(self, kind: ErrorKind, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| {
            let mut error = error.into().context(message());
            error.kind = kind;
            error
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_standard_error_keeps_its_causes() {
        fn read() -> Result<Vec<u8>> {
            Ok(std::fs::read("does/not/exist")?)
        }
        let error = read().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Other);
        assert_eq!(error.to_string(), "No such file or directory (os error 2)");
    }

    #[test]
    fn context_goes_in_front() {
        let error = Error::data("mask is missing").context("cannot read `7`");
        assert_eq!(error.to_string(), "cannot read `7`: mask is missing");
    }
}
