//! A benchmark of speculative decoding on the terminal.

use cinder::eval::speculation::{SpeculationResult, SpeculationRun};

use crate::cli::format::{bytes, table as plain_table};

/// One line a way, and what the columns mean.
pub fn table(result: &SpeculationResult) -> String {
    let mut out = plain_table(&[
        "decoding",
        "blocks read at",
        "in memory",
        "tokens/s",
        "speed-up",
        "predicted",
        "tokens a pass",
        "drafted",
        "draft/read/verify/rest",
        "read a token",
        "same text",
    ]);
    for run in result.baselines.iter().chain(&result.runs) {
        let two = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.2}"));
        let streams = run.bytes_read_per_token > 0.0;
        out.add_row(vec![
            run.label.clone(),
            match run.bandwidth_bytes_per_second {
                Some(rate) => format!("{} GB/s (simulated)", rate / 1e9),
                None if streams => "its own speed".into(),
                None => String::new(),
            },
            match streams {
                true => format!("{} blocks", run.resident_blocks),
                false => "all".into(),
            },
            format!("{:.2}", run.tokens_per_second),
            two(run.speedup_over_plain),
            two(run.predicted_speedup),
            two(run.tokens_per_round_with_bonus),
            two(run.accepted_per_round),
            times(run),
            match streams {
                true => bytes(run.bytes_read_per_token.round() as u64),
                false => String::new(),
            },
            format!("{} of {}", run.identical, run.prompts),
        ]);
    }
    let tokens = result.baselines.first().map_or(0, |run| run.tokens);
    format!(
        "{out}\n\nGreedy; {tokens} tokens in all. Speed-ups are over the plain decoding marked 1.00: with as much memory where \
         blocks are streamed, the draft's bytes spent on blocks that stay."
    )
}

/// Shares of decoding, in percent.
fn times(run: &SpeculationRun) -> String {
    let s = &run.seconds;
    let parts = [s.draft, s.read, s.verify, s.overhead];
    let total: f64 = parts.iter().sum();
    let shares = parts.map(|part| format!("{:.0}", 100.0 * part / total.max(f64::MIN_POSITIVE)));
    format!("{} %", shares.join("/"))
}
