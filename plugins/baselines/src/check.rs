//! Checks of the options of an architecture, with errors that name the field.

use diffaug::{Error, Result};
use diffaug_nn::{
    limits,
    params::{Scope, Shapes},
};
use std::{fmt::Display, ops::RangeInclusive};

/// An error that names a field of the architecture and what it may be.
pub(crate) fn refuse<T>(name: &str, value: impl Display, expected: &str) -> Result<T> {
    let field = format!("architecture.{name}");
    Err(Error::config(format!("`{field}` is {value}, expected {expected}")).at(&field))
}

/// Checks that a field lies in `range`.
pub(crate) fn within(name: &str, value: usize, range: RangeInclusive<usize>) -> Result<()> {
    match range.contains(&value) {
        true => Ok(()),
        false => {
            let expected = format!("{} to {}", range.start(), range.end());
            refuse(name, value, &expected)
        }
    }
}

/// Checks that the network that `build` makes is none that was made to fill memory; `name` and `value` are of the
/// field that decides most of its size.
pub(crate) fn affordable<T>(
    name: &str,
    value: impl Display,
    build: impl FnOnce(Scope<'_>) -> candle_core::Result<T>,
) -> Result<()> {
    let parameters = Shapes::of(build)?.parameters();
    if u128::from(parameters) <= limits::PARAMETERS {
        return Ok(());
    }
    let expected = format!(
        "sizes of at most {} parameters together, not {parameters}",
        limits::PARAMETERS
    );
    refuse(name, value, &expected)
}
