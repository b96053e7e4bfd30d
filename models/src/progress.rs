//! How long work tells that it goes on, without knowing who listens.

/// Receives the progress of one long task at a time.
pub trait Progress: Sync {
    /// A task of `total` steps begins.
    fn start(&self, task: &str, total: u64);
    /// `steps` more are done.
    fn advance(&self, steps: u64);
    /// A short remark beside the bar, such as the running perplexity.
    fn note(&self, text: &str);
    /// The task is over.
    fn finish(&self);
}

/// Nobody listens.
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _task: &str, _total: u64) {}
    fn advance(&self, _steps: u64) {}
    fn note(&self, _text: &str) {}
    fn finish(&self) {}
}
