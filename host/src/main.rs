//! `diffaug`: paints synthetic lesions into medical images, keeps what a segmenter confirms, and
//! trains segmenters with it. Parses the command line, dispatches, and turns failures into exit
//! codes: 0 done, 1 the user can mend it, 2 a fault of ours or of a plugin, 130 stopped by Ctrl-C.

mod builtin;
mod cli;
mod commands;
mod library;
mod load;
mod logging;
mod plugins;
mod ui;

use clap::Parser;
use diffaug_run::{escape, failure::Failure};
use std::process::ExitCode;

// Training allocates and frees large buffers all the time; the system's allocator would give each
// back to the kernel and fetch it anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let_candle_sleep();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are results (0); a wrong command line is the user's to mend (1).
        Err(error) => return told(&error),
    };
    let global = &cli.global;
    let ui = ui::Ui::new(global.json, global.quiet, global.verbose, global.color);
    logging::start(&ui);
    ui::stop_on_interrupt();
    // A panic of the host itself is a fault of ours, and ends like any other.
    let done = std::panic::catch_unwind(|| {
        commands::dispatch(cli.command, &cli.global, ui)?;
        Ok(ui::printed()?)
    });
    let failure: Failure = match done {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => failure,
        Err(payload) => {
            let text = payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            diffaug::Error::internal(format!("this is a bug in diffaug: {text}")).into()
        }
    };
    tracing::info!(error = %failure.error, "failed");
    ui.failure(&failure);
    ExitCode::from(failure.exit_code())
}

/// Prints help, the version or what is wrong with the command line.
fn told(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        // It repeats what was typed, which may come from a script.
        ui::write_talk(&escape::text(&error.render().to_string()));
        return ExitCode::FAILURE;
    }
    let lost = error.print().err();
    match lost.filter(|lost| lost.kind() != std::io::ErrorKind::BrokenPipe) {
        Some(lost) => {
            ui::tell(format_args!("error: {}", ui::unprinted(lost)));
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

/// Lets candle's own threads sleep between two sums. By default each spins for up to a millisecond
/// after every one, which on a machine of few cores takes them from the kernels (a sixth of the time
/// of a training on two). Whoever sets the variable is obeyed.
#[allow(unsafe_code)]
fn let_candle_sleep() {
    const LIMIT: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(LIMIT).is_none() {
        // SAFETY: the first statement of the process; no other thread exists that could read the
        // environment.
        unsafe { std::env::set_var(LIMIT, "1") };
    }
}
