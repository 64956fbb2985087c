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
        Kind::Cuda(index) => named(Device::new_cuda(index).or_error(ErrorKind::Config, failed)?),
        Kind::Metal(index) => named(Device::new_metal(index).or_error(ErrorKind::Config, failed)?),
    }
}

fn named(device: Device) -> Result<Device> {
    tracing::info!("computing on {}", describe(&device));
    Ok(device)
}

/// The device in words: a GPU by its name, compute capability and memory.
pub fn describe(device: &Device) -> String {
    match device {
        Device::Cpu => format!("the processor ({})", diffaug_kernels::simd()),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => gpu(&cuda.cuda_stream()).unwrap_or_else(|| "a GPU".to_owned()),
        _ => "a GPU".to_owned(),
    }
}

#[cfg(feature = "cuda")]
fn gpu(stream: &candle_core::cuda_backend::cudarc::driver::CudaStream) -> Option<String> {
    let context = stream.context();
    let (major, minor) = context.compute_capability().ok()?;
    let gibibytes = context.total_mem().ok()? as f64 / f64::from(1 << 30);
    let name = context.name().ok()?;
    Some(format!(
        "{name}, compute capability {major}.{minor}, {gibibytes:.0} GiB"
    ))
}

/// Bytes of a GPU's memory that are in use, by whomever; `None` for a processor.
pub fn memory_in_use(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            let (free, total) = cuda.cuda_stream().context().mem_get_info().ok()?;
            Some((total - free) as u64)
        }
        _ => None,
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
        let device = open("cpu").unwrap();
        assert!(device.is_cpu());
        assert!(describe(&device).starts_with("the processor ("));
        assert_eq!(memory_in_use(&device), None);
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
