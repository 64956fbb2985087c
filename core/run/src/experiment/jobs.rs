//! The tasks of an experiment as processes of this machine, some of them at once.

use super::{
    Experiment,
    tasks::{self, Task},
};
use crate::session::{Session, Step};
use diffaug::{Error, Result, files};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

/// How often it is looked whether a process has ended.
const INTERVAL: Duration = Duration::from_millis(100);
/// Variables that say how many threads a process may use.
const THREADS: &str = "RAYON_NUM_THREADS";
/// Most bytes of the output of a process that are read when it failed.
const MOST_OUTPUT: u64 = 1 << 20;

/// Processes that do the tasks of an experiment.
pub struct Jobs<'a> {
    /// The experiment.
    pub experiment: &'a Experiment,
    /// The program and its arguments up to `--step`.
    pub words: &'a [String],
    /// Most processes at once.
    pub at_once: usize,
    /// Follows and stops them.
    pub session: &'a Session<'a>,
    /// Hears of each task that failed: its name, the file of its output, and the error it ended with.
    pub on_failure: &'a dyn Fn(&str, &Path, &str),
}

/// A process at work.
struct Job {
    name: String,
    process: Child,
    /// Where its output goes.
    output: PathBuf,
}

impl Jobs<'_> {
    /// Does all tasks, phase by phase; answers the cells of those that failed.
    ///
    /// # Errors
    /// When a process cannot be started, or the user stops them.
    pub fn run(&self, phases: &[Vec<Task>]) -> Result<Vec<String>> {
        let mut failed: Vec<String> = Vec::new();
        for tasks in phases {
            let names = tasks.iter().map(|task| task.name(self.experiment));
            let names: Vec<String> = names.collect();
            let shown = self.session.begin(&format!("{} steps", names.len()));
            for cell in self.phase(names, &*shown)? {
                if !failed.contains(&cell) {
                    failed.push(cell);
                }
            }
            shown.finish("done");
        }
        if failed.is_empty() {
            // What they made is in the store.
            let _ = fs::remove_dir_all(self.experiment.folder.join(tasks::FOLDER));
        }
        Ok(failed)
    }

    /// Does the tasks of a phase; answers the cells of those that failed.
    fn phase(&self, names: Vec<String>, shown: &dyn Step) -> Result<Vec<String>> {
        let total = names.len() as u64;
        let mut left = names.into_iter();
        let mut at_work: Vec<Job> = Vec::new();
        let (mut failed, mut done) = (Vec::new(), 0);
        loop {
            let stopped = self.session.stopped();
            while !stopped && at_work.len() < self.at_once {
                let Some(name) = left.next() else { break };
                at_work.push(self.start(name)?);
            }
            if at_work.is_empty() {
                break;
            }
            thread::sleep(INTERVAL);
            let mut still = Vec::new();
            for mut job in at_work {
                let Some(status) = job.process.try_wait()? else {
                    still.push(job);
                    continue;
                };
                done += 1;
                shown.progress(done, total, &job.name);
                if !status.success() && !stopped {
                    failed.push(self.report(&job));
                }
            }
            at_work = still;
        }
        self.session.check_stopped()?;
        Ok(failed)
    }

    /// Starts the process of a task.
    fn start(&self, name: String) -> Result<Job> {
        let file = name.replace(['/', ':'], "-") + ".txt";
        let output = self.experiment.folder.join(tasks::FOLDER).join(file);
        files::make_folder(files::parent(&output))?;
        let Some((program, arguments)) = self.words.split_first() else {
            return Err(Error::internal("no program to start"));
        };
        let mut command = Command::new(program);
        command.args(arguments).args(["--step", &name]);
        if std::env::var_os(THREADS).is_none() {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            let threads = (cores / self.at_once).max(1);
            command.env(THREADS, threads.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&output)?);
        Ok(Job {
            process: command.spawn()?,
            name,
            output,
        })
    }

    /// Tells how a task failed; answers its cell.
    fn report(&self, job: &Job) -> String {
        let text = files::read_text(&job.output, MOST_OUTPUT).unwrap_or_default();
        let error = text
            .rfind("error: ")
            .map_or(text.as_str(), |at| &text[at..]);
        (self.on_failure)(&job.name, &job.output, error.trim());
        let cell = job.name.rsplit_once(':').map_or("", |(cell, _)| cell);
        cell.to_owned()
    }
}
