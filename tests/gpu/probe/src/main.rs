//! One check of a device from inside a process, for `tests/gpu/check`:
//!
//! ```sh
//! diffaug-gpu-probe NAME DEVICE [tiny]
//! ```
//!
//! The figure goes to stdout in one line, what is wrong to stderr. Exit code 0: passed; 1: the device
//! computes something wrong; 2: the check could not be made.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod counts;
mod memory;
mod networks;
mod operations;
mod optimizers;
mod times;

use candle_core::Device;
use std::process::ExitCode;

// The allocator of the host.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a check answers.
pub struct Answer {
    /// What was found, in one line.
    figure: String,
    /// What is wrong; nothing where all is right.
    wrong: Vec<String>,
}

impl Answer {
    fn measured(figure: String) -> Self {
        Answer {
            figure,
            wrong: Vec::new(),
        }
    }
}

/// What is computed on, and whether sizes are to be tiny.
pub struct Setting {
    device: Device,
    tiny: bool,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let answer = match words.as_slice() {
        [name, device] => check(name, device, false),
        [name, device, "tiny"] => check(name, device, true),
        _ => Err("usage: diffaug-gpu-probe NAME DEVICE [tiny]".into()),
    };
    match answer {
        Ok(answer) => {
            println!("{}", answer.figure);
            answer.wrong.iter().for_each(|line| eprintln!("{line}"));
            ExitCode::from(u8::from(!answer.wrong.is_empty()))
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn check(name: &str, device: &str, tiny: bool) -> Result<Answer, Failure> {
    let setting = Setting {
        device: diffaug_nn::device::open(device).map_err(|e| e.to_string())?,
        tiny,
    };
    let (kind, rest) = name.split_once('/').unwrap_or((name, ""));
    match kind {
        "device" => Ok(Answer::measured(diffaug_nn::device::describe(
            &setting.device,
        ))),
        "operations" => operations::check(rest, &setting),
        "optimizers" => optimizers::check(&setting),
        "networks" => networks::check(rest, &setting),
        "counts" => counts::check(&setting),
        "memory" => memory::check(rest, &setting),
        "times" => times::check(&setting),
        _ => Err(format!("there is no check `{name}`").into()),
    }
}
