//! All that is drawn or printed: progress, tables, errors. stdout carries results, stderr talk.
//!
//! Talk that nobody reads any more is no error. A result that cannot be written is one, unless its
//! reader has seen enough and closed the pipe. What others wrote is escaped here.

use crate::logging;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use diffaug::{Error, ErrorKind, Progress};
use diffaug_run::{
    escape,
    failure::Failure,
    session::{Monitor, Step},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    fmt::Display,
    fs::File,
    io::{self, IsTerminal, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

/// Why a result could not be written.
static UNPRINTED: Mutex<Option<io::Error>> = Mutex::new(None);

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
    pub fn say(&self, text: impl Display) {
        if !self.quiet {
            tell(text);
        }
    }

    /// A result: the JSON value with `--json`, the text otherwise.
    ///
    /// [`printed`] tells whether it could be written.
    pub fn result(&self, text: impl FnOnce() -> String, json: &serde_json::Value) {
        let text = if self.json {
            let json = serde_json::to_string_pretty(json).unwrap_or_default();
            escape::json(&json).into_owned()
        } else {
            escape::text(&text()).into_owned()
        };
        let mut out = io::stdout().lock();
        let written = writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush());
        if let Err(error) = written {
            *UNPRINTED.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    }

    /// An error, its place, its hint.
    pub fn failure(&self, failure: &Failure) {
        let (red, bold, off) = if self.color {
            ("\x1b[31;1m", "\x1b[1m", "\x1b[0m")
        } else {
            ("", "", "")
        };
        let sentence = shortened(failure.error.to_string());
        let sentence = escape::sentence(&sentence);
        write_talk(&format!("{red}error{off}{bold}:{off} {sentence}\n"));
        if let Some(place) = &failure.place {
            tell(place);
        }
        if let Some(hint) = &failure.hint {
            let hint = escape::sentence(hint);
            write_talk(&format!("\n{bold}hint{off}: {hint}\n"));
        }
    }

    /// The same for libraries: the run folder's log wants `info` whatever the terminal shows.
    pub fn library_log_level(&self) -> u8 {
        self.log_level().max(3)
    }

    fn bar(&self, label: &str) -> Bar {
        let label = escape::line(label).into_owned();
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
        bar.set_prefix(label.clone());
        Bar {
            bar,
            label,
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

/// A sentence without what nobody reads: a value in it may be megabytes long.
fn shortened(mut sentence: String) -> String {
    const MOST: usize = 4000;
    if let Some((at, _)) = sentence.char_indices().nth(MOST) {
        sentence.truncate(at);
        sentence.push('…');
    }
    sentence
}

/// A line of talk, whatever the settings.
pub fn tell(text: impl Display) {
    write_talk(&(escape::text(&text.to_string()).into_owned() + "\n"));
}

/// Writes to stderr; when nobody reads it any more, the work goes on in silence.
pub fn write_talk(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Whether all results could be written.
///
/// # Errors
/// When standard output took one not or not whole, as on a full disk. A closed pipe is no error:
/// whoever reads has seen enough.
pub fn printed() -> Result<(), Error> {
    let lost = UNPRINTED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    match lost.filter(|error| error.kind() != io::ErrorKind::BrokenPipe) {
        Some(error) => Err(unprinted(error)),
        None => Ok(()),
    }
}

/// What is said where a result could not be written.
pub fn unprinted(error: io::Error) -> Error {
    let mut error = Error::from(error).context("cannot write the result to standard output");
    error.kind = ErrorKind::Data;
    error
}

/// Installs the answer to Ctrl-C: the first stops at the next step, the second at once.
pub fn stop_on_interrupt() {
    let handler = || {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        tell("stopping after this step; press Ctrl-C again to stop at once");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::warn!("Ctrl-C will end the run at once: {error}");
    }
}

/// Whether the user asked to stop.
fn stopped() -> bool {
    STOP.load(Ordering::SeqCst)
}

struct State {
    last: Instant,
    /// Steps that were done when this bar first heard of any: a resumed step did not do them.
    first_done: Option<u64>,
    done: u64,
    note: String,
}

impl Monitor for Ui {
    fn begin(&self, label: &str) -> Box<dyn Step> {
        Box::new(self.bar(label))
    }

    fn stopped(&self) -> bool {
        stopped()
    }

    fn log_to(&self, file: File) {
        logging::to_file(file);
    }
}

/// The progress of one step: a bar on a terminal, a line every ten seconds elsewhere.
struct Bar {
    bar: ProgressBar,
    label: String,
    plain: bool,
    start: Instant,
    state: Mutex<State>,
}

impl Progress for Bar {
    fn progress(&self, done: u64, total: u64, note: &str) {
        let note = escape::line(note);
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(note.clone().into_owned());
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        state.done = done;
        note.as_ref().clone_into(&mut state.note);
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
            tell(format_args!("{}: {done}/{total}{eta} {note}", self.label));
        }
    }

    fn cancelled(&self) -> bool {
        stopped()
    }
}

impl Step for Bar {
    fn finish(self: Box<Self>, summary: &str) {
        self.bar.finish_and_clear();
        if self.plain || !self.bar.is_hidden() {
            let seconds = human(self.start.elapsed().as_secs_f64());
            let summary = escape::line(summary);
            tell(format_args!("{}: {summary} ({seconds})", self.label));
        }
    }
}

/// Seconds as people write them.
pub fn human(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 60.0 => format!("{s:.0} s"),
        s if s < 3600.0 => format!("{} min {:02} s", s as u64 / 60, s as u64 % 60),
        s if s < 172_800.0 => format!("{} h {:02} min", s as u64 / 3600, s as u64 % 3600 / 60),
        s if s < 1e8 => format!("{} days", s as u64 / 86_400),
        _ => "long".into(),
    }
}

/// A table in Markdown, which reads well as it is: first column to the left, the others to the
/// right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header.to_vec());
    let cells = |row: &Vec<String>| {
        row.iter()
            .map(|cell| escape::line(cell).into_owned())
            .collect()
    };
    table.add_rows(rows.iter().map(cells).collect::<Vec<Vec<String>>>());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}
