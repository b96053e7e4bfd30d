//! The only place that writes to stdout and stderr. Results are data and go to stdout; everything else goes to stderr.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use cinder::models::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// How often a line is written where no bar can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Decides what the user sees.
pub struct Printer {
    json: bool,
    quiet: bool,
    task: Mutex<Option<Task>>,
}

/// The long task that is running.
struct Task {
    name: String,
    note: String,
    total: u64,
    done: u64,
    start: Instant,
    last_line: Instant,
    /// None where stderr is not a terminal: lines are written instead.
    bar: Option<ProgressBar>,
}

impl Printer {
    pub fn new(json: bool, quiet: bool) -> Self {
        Printer {
            json,
            quiet,
            task: Mutex::new(None),
        }
    }

    /// Prints the result of a command: `value` with `--json`, else `text`.
    pub fn result(&self, value: &Value, text: &str) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(out, "{value}"),
            false => writeln!(out, "{}", text.trim_end()),
        }
    }

    /// Prints part of a result as it comes, such as generated text.
    pub fn stream(&self, text: &str) -> std::io::Result<()> {
        if self.json {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Says something in passing.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            self.above_bar(text);
        }
    }

    /// Says something the user should not miss, even with `--quiet`.
    pub fn warn(&self, text: &str) {
        self.above_bar(&format!("warning: {text}"));
    }

    fn above_bar(&self, text: &str) {
        match self.lock().as_ref().and_then(|t| t.bar.as_ref()) {
            Some(bar) => bar.println(text),
            None => line(text),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Task>> {
        // The state is only shown; a panic elsewhere can not leave it wrong in a way that matters.
        self.task.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Progress for Printer {
    fn start(&self, task: &str, total: u64) {
        if self.quiet {
            return;
        }
        let bar = std::io::stderr().is_terminal().then(|| {
            let style =
                "{msg:>14} {bar:32} {percent:>3} %  {pos}/{len}  {elapsed} (left {eta})  {prefix}";
            let length = (total > 0).then_some(total);
            let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
            // The template is a constant; an invalid one would only lose the layout.
            bar.set_style(
                ProgressStyle::with_template(style)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_message(task.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if bar.is_none() && total == 0 {
            line(&format!("{task} ..."));
        }
        let now = Instant::now();
        *self.lock() = Some(Task {
            name: task.into(),
            note: String::new(),
            total,
            done: 0,
            start: now,
            last_line: now,
            bar,
        });
    }

    fn advance(&self, steps: u64) {
        if let Some(task) = self.lock().as_mut() {
            task.done += steps;
            match &task.bar {
                Some(bar) => bar.inc(steps),
                None => task.line_if_due(),
            }
        }
    }

    fn note(&self, text: &str) {
        if let Some(task) = self.lock().as_mut() {
            task.note = text.into();
            if let Some(bar) = &task.bar {
                bar.set_prefix(text.to_owned());
            }
        }
    }

    fn finish(&self) {
        let Some(task) = self.lock().take() else {
            return;
        };
        if let Some(bar) = &task.bar {
            bar.finish_and_clear();
        }
        let seconds = task.start.elapsed().as_secs_f64();
        if seconds >= 1.0 {
            line(&format!("{}: done in {seconds:.0} s", task.name));
        }
    }
}

impl Task {
    fn line_if_due(&mut self) {
        if self.last_line.elapsed() < LINE_EVERY || self.done == 0 {
            return;
        }
        self.last_line = Instant::now();
        let elapsed = self.start.elapsed().as_secs_f64();
        let left = elapsed * self.total.saturating_sub(self.done) as f64 / self.done as f64;
        let note = match self.note.as_str() {
            "" => String::new(),
            note => format!("  {note}"),
        };
        line(&format!(
            "{}: {}/{} ({:.0} %, {left:.0} s left){note}",
            self.name,
            self.done,
            self.total,
            100.0 * self.done as f64 / self.total.max(1) as f64,
        ));
    }
}

/// Writes a line to stderr. Work goes on where nobody can read it any more.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
