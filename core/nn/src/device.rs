//! From a device's name to the device.

use candle_core::Device;
use diffaug::{Error, ErrorKind, Result, ResultExt};

/// A device's name, understood.
enum Kind {
    Cpu,
    Cuda(usize),
    Metal(usize),
}

/// Opens the device called `cpu`, `cuda`, `cuda:N`, `metal` or `metal:N`; without a number it is
/// the first of its kind.
///
/// # Errors
/// When the name is another, when this build lacks the feature for it, or when the driver says no.
pub fn open(name: &str) -> Result<Device> {
    let failed = || format!("cannot use device `{name}`");
    match parse(name)? {
        Kind::Cpu => Ok(Device::Cpu),
        Kind::Cuda(index) => Device::new_cuda(index).or_error(ErrorKind::Config, failed),
        Kind::Metal(index) => Device::new_metal(index).or_error(ErrorKind::Config, failed),
    }
}

/// Checks, without touching it, that this build can compute on the device called `name`.
///
/// # Errors
/// Those of [`open`], but for the driver's.
pub fn check(name: &str) -> Result<()> {
    parse(name).map(drop)
}

fn parse(name: &str) -> Result<Kind> {
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, index.parse().map_err(|_| unknown(name))?),
        None => (name, 0),
    };
    let missing = |feature: &str| {
        Error::config(format!(
            "device `{name}` needs a build with the feature `{feature}`"
        ))
        .at("device")
    };
    match kind {
        "cpu" if name == "cpu" => Ok(Kind::Cpu),
        "cuda" if !cfg!(feature = "cuda") => Err(missing("cuda")),
        "cuda" => Ok(Kind::Cuda(index)),
        "metal" if !cfg!(feature = "metal") => Err(missing("metal")),
        "metal" => Ok(Kind::Metal(index)),
        _ => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> Error {
    Error::config(format!(
        "unknown device `{name}`, expected `cpu`, `cuda`, `cuda:N` or `metal`"
    ))
    .at("device")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_always_there() {
        assert!(open("cpu").unwrap().is_cpu());
    }

    #[test]
    fn a_wrong_name_is_told_apart_from_a_missing_feature() {
        for name in ["gpu", "cuda:x", "cpu:1", "", "cuda:-1"] {
            let error = open(name).unwrap_err();
            assert!(error.message.starts_with("unknown device"), "{error}");
            assert_eq!(error.field, "device");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_so() {
        let error = open("cuda:0").unwrap_err();
        let expected = "device `cuda:0` needs a build with the feature `cuda`";
        assert_eq!(error.to_string(), expected);
        assert_eq!(check("cuda:0").unwrap_err(), error);
        assert!(check("cpu").is_ok());
    }
}
