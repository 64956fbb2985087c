//! All that is drawn or printed: progress, tables, errors. stdout carries results, stderr talk.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use crate::failure::Failure;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use diffaug::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{IsTerminal, Write},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

/// Between two plain progress lines where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// When colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Decides what reaches the user and how.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    /// Results as JSON.
    pub json: bool,
    quiet: bool,
    verbose: u8,
    color: bool,
}

impl Ui {
    /// Settings from the command line.
    pub fn new(json: bool, quiet: bool, verbose: u8, color: Color) -> Self {
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
            }
        };
        Ui {
            json,
            quiet,
            verbose,
            color,
        }
    }

    /// Whether stderr is coloured.
    pub fn color(&self) -> bool {
        self.color
    }

    /// The most talkative level for stderr, as [`diffaug::log`] counts.
    pub fn log_level(&self) -> u8 {
        match (self.quiet, self.verbose) {
            (true, _) => 1,
            (false, 0) => 2,
            (false, 1) => 3,
            (false, 2) => 4,
            (false, _) => 5,
        }
    }

    /// A line of talk.
    pub fn say(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// A result: the JSON value with `--json`, the text otherwise.
    ///
    /// A closed pipe is no error: whoever reads has seen enough.
    pub fn result(&self, text: impl FnOnce() -> String, json: &serde_json::Value) {
        let text = if self.json {
            serde_json::to_string_pretty(json).unwrap_or_default()
        } else {
            text()
        };
        let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    }

    /// An error, its place, its hint.
    pub fn failure(&self, failure: &Failure) {
        let (red, bold, off) = if self.color {
            ("\x1b[31;1m", "\x1b[1m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        eprintln!("{red}error{off}{bold}:{off} {}", failure.error);
        if let Some(place) = &failure.place {
            eprintln!("{place}");
        }
        if let Some(hint) = &failure.hint {
            eprintln!("\n{bold}hint{off}: {hint}");
        }
    }

    /// Shows the progress of a step called `label`.
    pub fn bar(&self, label: &str) -> Bar {
        let terminal = std::io::stderr().is_terminal() && !self.quiet && self.verbose == 0;
        let bar = if terminal {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10))
        } else {
            ProgressBar::hidden()
        };
        let template = "{prefix:.bold} [{bar:24}] {pos}/{len} {per_sec} eta {eta} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(label.to_owned());
        Bar {
            bar,
            label: label.to_owned(),
            plain: !terminal && !self.quiet,
            start: Instant::now(),
            state: Mutex::new(State {
                last: Instant::now(),
                first_done: None,
                done: 0,
                note: String::new(),
            }),
        }
    }
}

/// Installs the answer to Ctrl-C: the first stops at the next step, the second at once.
pub fn stop_on_interrupt() {
    let handler = || {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; press Ctrl-C again to stop at once");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::warn!("Ctrl-C will end the run at once: {error}");
    }
}

/// Whether the user asked to stop.
pub fn stopped() -> bool {
    STOP.load(Ordering::SeqCst)
}

struct State {
    last: Instant,
    /// Steps that were done when this bar first heard of any: a resumed step did not do them.
    first_done: Option<u64>,
    done: u64,
    note: String,
}

/// The progress of one step: a bar on a terminal, a line every ten seconds elsewhere.
pub struct Bar {
    bar: ProgressBar,
    label: String,
    plain: bool,
    start: Instant,
    state: Mutex<State>,
}

impl Progress for Bar {
    fn progress(&self, done: u64, total: u64, note: &str) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(note.to_owned());
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        state.done = done;
        note.clone_into(&mut state.note);
        let first = *state.first_done.get_or_insert(done);
        if self.plain && state.last.elapsed() >= PLAIN_INTERVAL {
            state.last = Instant::now();
            let seconds = self.start.elapsed().as_secs_f64();
            let rate = done.saturating_sub(first) as f64 / seconds;
            let eta = total.saturating_sub(done) as f64 / rate.max(1e-9);
            let eta = if rate > 0.0 {
                format!(", {rate:.1}/s, {} left", human(eta))
            } else {
                String::new()
            };
            eprintln!("{}: {done}/{total}{eta} {note}", self.label);
        }
    }

    fn cancelled(&self) -> bool {
        stopped()
    }
}

impl Bar {
    /// Ends the step and says what came of it.
    pub fn finish(self, summary: &str) {
        self.bar.finish_and_clear();
        if self.plain || !self.bar.is_hidden() {
            let seconds = human(self.start.elapsed().as_secs_f64());
            eprintln!("{}: {summary} ({seconds})", self.label);
        }
    }
}

/// Seconds as people write them.
pub fn human(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 60.0 => format!("{s:.0} s"),
        s if s < 3600.0 => format!("{} min {:02} s", s as u64 / 60, s as u64 % 60),
        s if s < 1e6 => format!("{} h {:02} min", s as u64 / 3600, s as u64 % 3600 / 60),
        _ => "long".into(),
    }
}

/// A table in Markdown, which reads well as it is: first column to the left, the others to the
/// right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header.to_vec());
    table.add_rows(rows.iter().cloned());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}
