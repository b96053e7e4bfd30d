//! Whether what a run keeps in memory fits: asked before work starts, because nobody tells a program that is killed for it.

use std::path::{Path, PathBuf};

use cinder::models::cache::CacheFormat;
use cinder::models::checkpoint::Checkpoint;
use cinder::models::{Hint, Precision};

use super::context::Cached;
use super::format::bytes;

/// Bytes that are taken to be available, in place of what the system says; for tests.
const LIMIT: &str = "CINDER_MEMORY_LIMIT";
/// Rows of logits that are made at a time, at most.
const LOGIT_ROWS: usize = 128;

/// How many tokens a run has to do with.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// Tokens that the cache will hold; 0 for a pass without one.
    pub held: usize,
    /// Tokens that go through a layer at a time.
    pub at_once: usize,
}

/// The bytes that a run needs, roughly, and what could make them fewer.
#[derive(Debug, Clone)]
pub struct Demand {
    length: Length,
    cached: Cached,
    /// What is not mapped from the file.
    weights: u64,
    activations: u64,
    /// Bytes a token in the cache: of the asked format and of each that the model can have.
    per_token: u64,
    formats: Vec<(CacheFormat, u64)>,
    /// Bytes of the residual window, with those of a prompt's tokens.
    window: u64,
}

/// A run that needs more memory than there is.
#[derive(Debug, thiserror::Error)]
#[error(
    "about {} of memory are needed, and {} are available: {}",
    bytes(demand.total()), bytes(*available), demand.parts()
)]
pub struct DoesNotFit {
    demand: Demand,
    available: u64,
}

impl Demand {
    /// What a model needs for a run of this length.
    pub fn of(
        checkpoint: &Checkpoint,
        precision: Precision,
        cached: Cached,
        length: Length,
    ) -> Self {
        let config = checkpoint.config();
        let rotary = match checkpoint.has_latents() {
            true => rotary_bytes_per_token(checkpoint),
            false => 0,
        };
        let per_token = |format| checkpoint.kv_bytes_per_token(format) + rotary;
        let possible = |format: &CacheFormat| checkpoint.check_cache_format(*format).is_ok();
        let formats = CacheFormat::ALL.into_iter().filter(possible);
        // The stream and its norm, queries, keys and values and what is mixed of them, and the feed-forward neurons.
        let attention = (2 * config.heads + 2 * config.kv_heads) * config.head_dim;
        let numbers = 3 * config.hidden_size + attention + 3 * config.intermediate_size;
        let logits = length.at_once.min(LOGIT_ROWS) * config.vocab_size;
        let weights = checkpoint.memory_bytes(precision);
        // The tokens of a prompt are all in the window until the next one comes.
        let window = match cached.residual_window {
            0 => 0,
            tokens => tokens.saturating_add(256 + length.at_once).min(length.held) as u64,
        };
        Demand {
            length,
            cached,
            weights: weights.saturating_sub(checkpoint.mapped_bytes(precision)),
            activations: (4 * (length.at_once * numbers + logits)) as u64,
            per_token: per_token(cached.format),
            formats: formats.map(|format| (format, per_token(format))).collect(),
            window: window.saturating_mul(checkpoint.kv_bytes_per_token(CacheFormat::F16)),
        }
    }

    /// Bytes of the cache and of activations: all but weights.
    pub fn beside_weights(&self) -> u64 {
        let cache = self.cache(self.per_token).saturating_add(self.window);
        self.activations.saturating_add(cache)
    }

    fn cache(&self, per_token: u64) -> u64 {
        per_token.saturating_mul(self.length.held as u64)
    }

    /// Bytes of the window beside a cache of this format.
    fn window(&self, format: CacheFormat) -> u64 {
        if format.is_packed() { self.window } else { 0 }
    }

    fn total(&self) -> u64 {
        self.weights
            .saturating_add(self.activations)
            .saturating_add(self.cache(self.per_token))
            .saturating_add(self.window)
    }

    /// What needs how much.
    fn parts(&self) -> String {
        let mut parts = vec![format!("{} for weights", bytes(self.weights))];
        if self.length.held > 0 {
            let cache = bytes(self.cache(self.per_token));
            let (tokens, format) = (self.length.held, self.cached.format);
            parts.push(format!(
                "{cache} for a cache of {tokens} tokens as {format}"
            ));
        }
        if self.window > 0 {
            let (window, tokens) = (bytes(self.window), self.cached.residual_window);
            parts.push(format!("{window} for its residual window of {tokens}"));
        }
        parts.push(format!("{} for activations", bytes(self.activations)));
        parts.join(", ")
    }

    /// Compares with what is available, where that is known.
    ///
    /// # Errors
    /// [`DoesNotFit`].
    pub fn check(self, available: Option<u64>) -> Result<(), DoesNotFit> {
        match available {
            Some(available) if self.total() > available => Err(DoesNotFit {
                demand: self,
                available,
            }),
            _ => Ok(()),
        }
    }
}

impl Hint for DoesNotFit {
    fn hint(&self) -> Option<String> {
        let demand = &self.demand;
        let left = self
            .available
            .saturating_sub(demand.weights + demand.activations);
        let enough = |format, per_token: u64| {
            let cache = demand.cache(per_token);
            cache.saturating_add(demand.window(format)) <= left
        };
        let mut formats = demand.formats.iter();
        let format = formats.find(|(format, per_token)| enough(*format, *per_token));
        let tokens = left.saturating_sub(demand.window) / demand.per_token.max(1);
        let asked = demand.cached.format;
        Some(match format {
            _ if left == 0 => "give shorter windows or prompts, or narrower `--weights`".into(),
            Some((format, _)) => {
                format!("`--cache {format}` fits; as {asked}, {tokens} tokens do")
            }
            None if demand.window >= left => {
                "give a shorter `--residual-window`, or none (0), or a shorter prompt".into()
            }
            None => format!("as {asked}, {tokens} tokens fit"),
        })
    }
}

/// Bytes a token of the rotations that rebuilt keys need, once for all layers.
pub fn rotary_bytes_per_token(checkpoint: &Checkpoint) -> u64 {
    4 * checkpoint.config().head_dim as u64
}

/// Bytes that this process may still take: what the system has left and what its control groups allow; none where neither
/// is known.
pub fn available_bytes() -> Option<u64> {
    if let Some(limit) = std::env::var(LIMIT).ok().and_then(|v| v.parse().ok()) {
        return Some(limit);
    }
    let system =
        field(Path::new("/proc/meminfo"), "MemAvailable:").map(|kilobytes| 1024 * kilobytes);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = groups.lines().filter_map(group_left);
    system.into_iter().chain(groups).min()
}

/// Bytes that resident memory of this process takes, mapped files included.
pub fn resident_bytes() -> Option<u64> {
    field(Path::new("/proc/self/status"), "VmRSS:").map(|kilobytes| 1024 * kilobytes)
}

/// The most memory this process has had resident, mapped files included; none where the system does not say.
pub fn peak_resident_bytes() -> Option<u64> {
    field(Path::new("/proc/self/status"), "VmHWM:").map(|kilobytes| 1024 * kilobytes)
}

/// Makes [`peak_resident_bytes`] count from here on; whether the system does that.
pub fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// What one control group, a line of `/proc/self/cgroup`, and those above it leave to take.
fn group_left(line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (controllers, path) = (parts.nth(1)?, parts.next()?);
    // Version 2 has one tree, version 1 one for memory.
    let (root, limit, used, file_pages) = match controllers {
        "" => (
            "/sys/fs/cgroup",
            "memory.max",
            "memory.current",
            "inactive_file",
        ),
        "memory" => (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
        _ => return None,
    };
    let folder = PathBuf::from(format!("{root}{path}"));
    let number =
        |path: PathBuf| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    let left = |folder: &Path| {
        let used = number(folder.join(used))?;
        // What the system has read of files and can drop is not taken.
        let spare = field(&folder.join("memory.stat"), file_pages).unwrap_or(0);
        Some(number(folder.join(limit))?.saturating_sub(used.saturating_sub(spare)))
    };
    let folders = folder.ancestors().take_while(|f| f.starts_with(root));
    folders.filter_map(left).min()
}

/// The number behind a name in a file of lines.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut lines = text.lines().map(str::split_whitespace);
    let mut words = lines.find_map(|mut words| (words.next()? == name).then_some(words))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(format: CacheFormat, held: usize) -> Demand {
        Demand {
            length: Length { held, at_once: 1 },
            cached: Cached {
                values: None,
                format,
                residual_window: 0,
            },
            weights: 1000,
            activations: 100,
            per_token: 40,
            formats: vec![
                (CacheFormat::F32, 40),
                (CacheFormat::F16, 20),
                (CacheFormat::Q4, 6),
            ],
            window: 0,
        }
    }

    #[test]
    fn what_does_not_fit_says_its_sizes_and_what_would() {
        assert!(demand(CacheFormat::F32, 100).check(Some(5100)).is_ok());
        assert!(demand(CacheFormat::F32, 100).check(None).is_ok());
        let refused = |held, available| {
            let error = demand(CacheFormat::F32, held)
                .check(Some(available))
                .expect_err("too much");
            (error.to_string(), error.hint().expect("always"))
        };
        let (text, hint) = refused(100, 5099);
        assert_eq!(
            text,
            "about 5.1 kB of memory are needed, and 5.1 kB are available: 1.0 kB for weights, 4.0 kB for a cache of \
             100 tokens as f32, 100 B for activations"
        );
        assert_eq!(hint, "`--cache f16` fits; as f32, 99 tokens do");
        assert_eq!(
            refused(100, 1900).1,
            "`--cache q4` fits; as f32, 20 tokens do"
        );
        assert_eq!(refused(1000, 1900).1, "as f32, 20 tokens fit");
        assert_eq!(
            refused(100, 900).1,
            "give shorter windows or prompts, or narrower `--weights`"
        );
        let windowed = |available| {
            let mut demand = demand(CacheFormat::Q4, 100);
            (
                demand.per_token,
                demand.window,
                demand.cached.residual_window,
            ) = (6, 300, 10);
            let error = demand.check(Some(available)).expect_err("too much");
            (error.to_string(), error.hint().expect("always"))
        };
        let (text, hint) = windowed(1999);
        assert_eq!(
            text,
            "about 2.0 kB of memory are needed, and 2.0 kB are available: 1.0 kB for weights, 600 B for a cache of 100 tokens \
             as q4, 300 B for its residual window of 10, 100 B for activations"
        );
        assert_eq!(hint, "as q4, 99 tokens fit");
        assert!(windowed(1400).1.contains("`--residual-window`"));
    }

    #[test]
    fn this_system_says_what_it_has() {
        if cfg!(target_os = "linux") {
            let (available, resident) = (
                available_bytes().expect("known"),
                resident_bytes().expect("known"),
            );
            assert!(available > 1 << 20 && resident > 1 << 20);
            assert!(peak_resident_bytes().expect("known") >= resident);
        }
    }
}
