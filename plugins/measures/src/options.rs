//! Checks of options that several measures have.

use diffaug::{Error, Result};

/// Checks that the option `field` is a number from `least` to `most`.
///
/// # Errors
/// Naming the option, where it is not.
pub fn check_range(field: &str, value: f64, least: f64, most: f64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::config(format!("`{field}` is {value}, expected {least} to {most}")).at(field))
}

/// Checks that the option `field` is a share above 0, at most 1.
///
/// # Errors
/// Naming the option, where it is not.
pub fn check_share(field: &str, value: f64) -> Result<()> {
    if value > 0.0 && value <= 1.0 {
        return Ok(());
    }
    let message = format!("`{field}` is {value}, expected a number above 0, at most 1");
    Err(Error::config(message).at(field))
}
