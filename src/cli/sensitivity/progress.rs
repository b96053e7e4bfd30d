//! What a run has measured so far, on disk: each site when it is known.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cinder::compress::pipeline::check_identity;
use cinder::eval::SiteSensitivity;
use cinder::models::Site;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::compress::nothing_to_resume;

/// A folder beside the output: what decides the run, a line for each site that is done, and statistics.
pub struct Unfinished {
    folder: PathBuf,
    lines: fs::File,
    done: Vec<Line>,
    /// Seconds of the runs before this one.
    before: f64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    site: SiteSensitivity,
    /// Since the run that measured it began, and the runs before it.
    seconds: f64,
}

impl Unfinished {
    /// Begins a run for `out`, or goes on with the one that was interrupted.
    ///
    /// # Errors
    /// When there is nothing to go on with, or it was made from something else than `made_from`.
    pub fn open(out: &Path, made_from: &Value, resume: bool) -> Result<Self> {
        let mut folder = out.as_os_str().to_owned();
        folder.push(".unfinished");
        let folder = PathBuf::from(folder);
        let identity = folder.join("run.json");
        match (resume, identity.is_file()) {
            (true, false) => return Err(nothing_to_resume("measurement", out).into()),
            (false, _) if folder.is_dir() => fs::remove_dir_all(&folder)?,
            _ => {}
        }
        fs::create_dir_all(&folder)?;
        check_identity(&identity, made_from)?;
        let path = folder.join("sites.jsonl");
        let text = match path.is_file() {
            true => fs::read_to_string(&path)?,
            false => String::new(),
        };
        // A line that was being written when the run was killed is no line.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let done = text[..whole].lines().map(serde_json::from_str);
        let done: Vec<Line> = done.collect::<Result<_, _>>()?;
        let lines = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)?;
        lines.file().set_len(whole as u64)?;
        Ok(Unfinished {
            folder,
            lines,
            before: done.last().map_or(0.0, |line| line.seconds),
            done,
        })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn has(&self, layer: usize, site: Site) -> bool {
        let same = |line: &Line| line.site.layer == layer as u64 && line.site.site == site.name();
        self.done.iter().any(same)
    }

    /// Keeps what was measured; `seconds` have gone by in this run.
    pub fn add(&mut self, site: SiteSensitivity, seconds: f64) -> Result<()> {
        let line = Line {
            site,
            seconds: self.before + seconds,
        };
        let text = serde_json::to_string(&line)?;
        writeln!(self.lines, "{text}")?;
        // As a run that goes on would read it: JSON may move a number by its last bit.
        self.done.push(serde_json::from_str(&text)?);
        Ok(())
    }

    /// Of all runs.
    pub fn seconds(&self) -> f64 {
        self.done.last().map_or(0.0, |line| line.seconds)
    }

    pub fn sites(&self) -> Vec<SiteSensitivity> {
        self.done.iter().map(|line| line.site.clone()).collect()
    }

    /// Removes the folder, once the result is written.
    pub fn remove(self) -> Result<()> {
        Ok(fs::remove_dir_all(self.folder)?)
    }
}
