//! Where the time goes: seconds spent in each kind of operation while a profile is taken.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// A kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Products with weights of f32, f16 or bf16.
    Linear,
    /// Products with block-quantised weights.
    BlockLinear,
    Attention,
    RmsNorm,
    Rotary,
    SwiGlu,
    /// The way back through attention.
    AttentionBackward,
    /// The way back through RMSNorm and SwiGLU.
    ElementwiseBackward,
    /// The loss of rows of logits and its gradient.
    CrossEntropy,
}

impl Op {
    /// Every kind.
    pub const ALL: [Op; 9] = [
        Op::Linear,
        Op::BlockLinear,
        Op::Attention,
        Op::RmsNorm,
        Op::Rotary,
        Op::SwiGlu,
        Op::AttentionBackward,
        Op::ElementwiseBackward,
        Op::CrossEntropy,
    ];

    /// The name of the operation.
    pub fn name(self) -> &'static str {
        match self {
            Op::Linear => "linear",
            Op::BlockLinear => "block_linear",
            Op::Attention => "attention",
            Op::RmsNorm => "rms_norm",
            Op::Rotary => "rotary",
            Op::SwiGlu => "swiglu",
            Op::AttentionBackward => "attention_backward",
            Op::ElementwiseBackward => "elementwise_backward",
            Op::CrossEntropy => "cross_entropy",
        }
    }
}

static TAKING: AtomicBool = AtomicBool::new(false);
static NANOSECONDS: [AtomicU64; Op::ALL.len()] = [const { AtomicU64::new(0) }; Op::ALL.len()];

/// Runs `work` and returns the seconds it spent in each kind of operation, those of other threads included.
pub fn profile<R>(work: impl FnOnce() -> R) -> (R, Vec<(Op, f64)>) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    NANOSECONDS
        .iter()
        .for_each(|n| n.store(0, Ordering::Relaxed));
    struct Stop;
    impl Drop for Stop {
        fn drop(&mut self) {
            TAKING.store(false, Ordering::Relaxed);
        }
    }
    TAKING.store(true, Ordering::Relaxed);
    let stop = Stop;
    let result = work();
    drop(stop);
    let seconds = |op: Op| NANOSECONDS[op as usize].load(Ordering::Relaxed) as f64 / 1e9;
    (
        result,
        Op::ALL.into_iter().map(|op| (op, seconds(op))).collect(),
    )
}

/// Counts the time of one operation, if a profile is being taken.
pub(super) fn timed<R>(op: Op, work: impl FnOnce() -> R) -> R {
    if !TAKING.load(Ordering::Relaxed) {
        return work();
    }
    let start = Instant::now();
    let result = work();
    NANOSECONDS[op as usize].fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    result
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_is_counted_under_its_operation_and_only_while_asked_for() {
        let nap = || std::thread::sleep(Duration::from_millis(5));
        timed(Op::Rotary, nap);
        let ((), seconds) = profile(|| timed(Op::SwiGlu, nap));
        for (op, seconds) in seconds {
            // Tests that run beside this one may add to other kinds.
            assert!(op != Op::SwiGlu || seconds >= 0.005);
        }
    }
}
