//! `cinder bench`

mod context;
mod speculation;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use cinder::eval::speculation::SpeculationResult;
use cinder::models::decode::{SamplingSettings, generate};
use cinder::models::ops::{self, Machine};
use cinder::models::progress::Progress;
use cinder::models::projection::Projection;
use cinder::models::{Checkpoint, Decoder, Precision, Site};
use serde_json::{Value, json};

use super::context::{Cache, Cached, Context, Usage, Weights};
use super::format::{bytes, pairs, table};
use super::memory::{Length, peak_resident_bytes};
use context::AtContext;
use speculation::{SpeculationArgs, Subject};

/// Measure speed and memory
///
/// Prefill runs a prompt and computes the logits of its last position; decoding draws the most likely token after a prompt,
/// one at a time, with a KV cache. Each figure is the median of the runs. What the machine could do at most is measured in
/// the same run: products of f32 (of bf16, with bf16 weights) a second from registers, which bounds prefill but for the
/// block formats, whose whole-number products are faster; and bytes a second from memory, which bounds decoding.
///
/// With `--context`, a cache of each length is filled with random numbers, because what they are does not change the work,
/// and tokens are decoded behind it.
///
/// With `--draft` or `--offload`, prompts are continued greedily in every way that such decoding has to be compared with: plainly
/// with all blocks in memory, with none, and with as many as the draft's bytes hold; by the low-bit copy alone, whose text is
/// another; with drafts from the text itself; and with each draft asked for. A way that changes the text ends it with an error.
/// The speed-up of the cost model, `τ / (D·t_draft/t_target + t_verify/t_target)`, stands beside the measured one.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    cache: Cache,
    /// Lengths of the prompts that are prefilled, in tokens [default: 512; none with `--draft` or `--offload`]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    prefill: Vec<usize>,
    /// Contexts after which tokens are decoded, in tokens [default: 128; none with `--draft` or `--offload`]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    decode: Vec<usize>,
    /// Also decode behind caches filled to these lengths, in tokens: time, attention's share of it, and memory
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    context: Vec<usize>,
    /// Measure contexts longer than the model was made for: its text would be of no use there, its speed is the same
    #[arg(long)]
    beyond_context: bool,
    /// Tokens to decode in each run
    #[arg(long, value_name = "N", default_value_t = 64)]
    tokens: usize,
    /// Runs of each measurement, after one that does not count
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    #[command(flatten)]
    speculation: SpeculationArgs,
}

/// What is prefilled, and what is decoded behind, where nothing else is asked for.
const LENGTHS: (usize, usize) = (512, 128);

/// One line of the result.
struct Measured {
    what: &'static str,
    /// Tokens of the prompt, or of the context.
    length: usize,
    tokens_per_second: f64,
    /// What it asks of the machine in a second: floating-point operations to prefill, bytes to decode.
    demand: f64,
    /// Milliseconds for each kind of operation, per token when decoding.
    profile: Vec<(&'static str, f64)>,
}

pub fn run(context: &Context, mut args: Args) -> Result<ExitCode> {
    args.speculation.check()?;
    if !args.speculation.is_asked() {
        for (lengths, usual) in [
            (&mut args.prefill, LENGTHS.0),
            (&mut args.decode, LENGTHS.1),
        ] {
            if lengths.is_empty() {
                lengths.push(usual);
            }
        }
    }
    let lengths = || args.prefill.iter().chain(&args.decode).chain(&args.context);
    if args.runs == 0 || args.tokens < 2 || lengths().any(|n| *n == 0) {
        let what = "`--runs` and the lengths must be at least 1, `--tokens` at least 2";
        return Err(Usage::new(what, "see `cinder bench --help`").into());
    }
    let checkpoint = context.open(&args.model)?;
    let cached = args.cache.of(&checkpoint)?;
    let most = checkpoint.config().max_context;
    let behind = |contexts: &[usize]| {
        let longest = contexts.iter().max();
        longest.map_or(0, |n| n.saturating_add(args.tokens + 1))
    };
    let prompts = args.prefill.iter().chain(&args.decode).max();
    let longest = prompts.map_or(0, |n| n + 1).max(behind(&args.decode));
    let context_length = behind(&args.context);
    if longest > most || (context_length > most && !args.beyond_context) {
        let hint = match longest > most {
            true => "give shorter lengths",
            false => {
                "give shorter lengths, or `--beyond-context` to measure speed there all the same"
            }
        };
        let longest = if longest > most {
            longest
        } else {
            context_length
        };
        let what = format!("{longest} tokens do not fit the model's context of {most}");
        return Err(Usage::new(what, hint).into());
    }
    let precision = args.weights.weights;
    let weight_bytes = checkpoint.memory_bytes(precision);
    let mut work = Work {
        precision,
        weight_bytes,
        // A tied embedding is read as the head, unless that has codes of its own.
        unread: match checkpoint.config().tied_embeddings && checkpoint.coded_head().is_none() {
            true => 0,
            false => precision.of_embedding().matrix_bytes(
                checkpoint.config().vocab_size,
                checkpoint.config().hidden_size,
            ),
        },
        projections: checkpoint.projections().iter().map(|p| p.scalars).sum(),
        attention: (checkpoint.config().layers
            * checkpoint.config().heads
            * checkpoint.config().head_dim) as u64,
        cache: checkpoint.kv_bytes_per_token(cached.format),
        window: cached.window_bytes(&checkpoint),
    };
    let length = Length {
        held: longest.max(context_length),
        at_once: prompts.copied().unwrap_or(1),
    };
    let mut found = Found {
        cached,
        measured: Vec::new(),
        at_context: Vec::new(),
        load_seconds: None,
        speculation: None,
    };
    if lengths().next().is_some() {
        let start = Instant::now();
        let mut decoder = context.decoder(&checkpoint, precision, cached, length)?;
        decoder.allow_context(context_length);
        found.load_seconds = Some(start.elapsed().as_secs_f64());
        let kv_heads = checkpoint.config().kv_heads;
        work.count_folded(&checkpoint, &decoder);
        found.measure(context, &args, &work, &mut decoder, kv_heads)?;
    }
    let subject = Subject {
        name: &args.model,
        checkpoint: &checkpoint,
        weights: precision,
        cached,
        tokens: args.tokens,
    };
    found.speculation = speculation::run(context, &args.speculation, subject)?;
    report(context, &args, &work, &found)
}

/// All that was measured.
struct Found {
    cached: Cached,
    measured: Vec<Measured>,
    at_context: Vec<AtContext>,
    /// None where no length was asked for.
    load_seconds: Option<f64>,
    speculation: Option<SpeculationResult>,
}

impl Found {
    /// Prefills and decodes at every length.
    fn measure(
        &mut self,
        context: &Context,
        args: &Args,
        work: &Work,
        decoder: &mut Decoder,
        kv_heads: usize,
    ) -> Result<()> {
        let lengths = args.prefill.len() + args.decode.len() + args.context.len();
        let steps = (lengths * (args.runs + 1)) as u64;
        context.printer.start("measuring", steps);
        for &length in &args.prefill {
            let measured = work.prefill(context, decoder, length, args.runs)?;
            self.measured.push(measured);
        }
        for &length in &args.decode {
            let measured = work.decode(context, decoder, length, args.tokens, args.runs)?;
            self.measured.push(measured);
        }
        for &length in &args.context {
            let (tokens, runs) = (args.tokens, args.runs);
            let measured = context::measure(context, decoder, kv_heads, length, tokens, runs)?;
            self.at_context.push(measured);
        }
        context.printer.finish();
        Ok(())
    }
}

/// What a token costs.
struct Work {
    precision: Precision,
    weight_bytes: u64,
    /// Bytes of an embedding that is not the head too: a token reads one row of it.
    unread: u64,
    /// Scalars of the decoder projections: one product for each and token.
    projections: u64,
    /// Query values a token: two products for each and key.
    attention: u64,
    /// Bytes of the KV cache a token.
    cache: u64,
    /// Bytes of its residual window.
    window: u64,
}

impl Work {
    /// Leaves out what output projections no longer read where values are folded into them.
    fn count_folded(&mut self, checkpoint: &Checkpoint, decoder: &Decoder) {
        let stored = checkpoint.projections();
        let stored = stored.iter().filter(|p| p.site == Site::O);
        let stored: u64 = stored.map(|p| p.scalars).sum();
        let outputs = decoder.layers.iter().map(|l| &l.attention.output);
        let less = stored.saturating_sub(outputs.map(Projection::scalars).sum());
        self.projections -= less;
        // Codes are not folded, and a float takes the same in any matrix.
        self.weight_bytes -= self.precision.matrix_bytes(1, 1) * less;
    }

    /// The most the machine gives of what a measurement demands.
    fn limit(&self, what: &str, machine: &Machine) -> f64 {
        match (what, self.precision) {
            ("decode", _) => machine.read_bytes_per_second,
            (_, Precision::Bf16) => machine.bf16_flops,
            _ => machine.flops,
        }
    }

    fn prefill(
        &self,
        context: &Context,
        decoder: &mut Decoder,
        length: usize,
        runs: usize,
    ) -> Result<Measured> {
        let prompt = prompt(decoder, length);
        let mut once = || -> Result<f64> {
            let start = Instant::now();
            generate(
                decoder,
                &prompt,
                1,
                &[],
                SamplingSettings::GREEDY,
                &mut |_| Ok(()),
            )?;
            context.printer.advance(1);
            Ok(start.elapsed().as_secs_f64())
        };
        let (first, profile) = ops::profile(&mut once);
        first?;
        let seconds = median((0..runs).map(|_| once()).collect::<Result<_>>()?);
        let keys = length as f64 / 2.0;
        let products =
            length as f64 * (self.projections as f64 + 2.0 * self.attention as f64 * keys);
        Ok(Measured {
            what: "prefill",
            length,
            tokens_per_second: length as f64 / seconds,
            demand: 2.0 * products / seconds,
            profile: milliseconds(profile, 1),
        })
    }

    fn decode(
        &self,
        context: &Context,
        decoder: &mut Decoder,
        length: usize,
        tokens: usize,
        runs: usize,
    ) -> Result<Measured> {
        let prompt = prompt(decoder, length);
        let mut once = || -> Result<f64> {
            let done = generate(
                decoder,
                &prompt,
                tokens + 1,
                &[],
                SamplingSettings::GREEDY,
                &mut |_| Ok(()),
            )?;
            context.printer.advance(1);
            Ok(done.decode_seconds / tokens as f64)
        };
        once()?;
        let seconds = median((0..runs).map(|_| once()).collect::<Result<_>>()?);
        let bytes = self.weight_bytes - self.unread + self.cache * (length + tokens / 2) as u64;
        Ok(Measured {
            what: "decode",
            length,
            tokens_per_second: 1.0 / seconds,
            demand: bytes as f64 / seconds,
            profile: self.decode_profile(decoder, &prompt, tokens)?,
        })
    }

    fn decode_profile(
        &self,
        decoder: &Decoder,
        prompt: &[u32],
        tokens: usize,
    ) -> Result<Vec<(&'static str, f64)>> {
        let mut cache = decoder.new_cache(prompt.len() + tokens);
        decoder.hidden(&[prompt.to_vec()], Some(&mut cache))?;
        let (done, profile) = ops::profile(|| -> Result<()> {
            for _ in 0..tokens {
                let hidden = decoder.hidden(&[vec![prompt[0]]], Some(&mut cache))?;
                drop(decoder.logits(hidden).into_data());
            }
            Ok(())
        });
        done?;
        Ok(milliseconds(profile, tokens))
    }
}

/// A prompt of one token, again and again: its values do not change the work.
fn prompt(decoder: &Decoder, length: usize) -> Vec<u32> {
    vec![decoder.embedding.vocab() as u32 / 2; length]
}

fn milliseconds(profile: Vec<(ops::Op, f64)>, tokens: usize) -> Vec<(&'static str, f64)> {
    let used = profile.into_iter().filter(|(_, seconds)| *seconds > 0.0);
    used.map(|(op, seconds)| (op.name(), 1e3 * seconds / tokens as f64))
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

fn report(context: &Context, args: &Args, work: &Work, found: &Found) -> Result<ExitCode> {
    let Found {
        cached,
        measured,
        at_context,
        load_seconds,
        speculation,
    } = found;
    // Before the machine is measured, which takes memory of its own.
    let peak_rss = peak_resident_bytes();
    let machine = ops::machine();
    let fraction = |m: &Measured| m.demand / work.limit(m.what, &machine);
    let of = |what: &str| {
        measured
            .iter()
            .filter(|m| m.what == what)
            .collect::<Vec<_>>()
    };
    let list = |what: &str| -> Vec<Value> {
        of(what)
            .iter()
            .map(|m| {
                let profile: serde_json::Map<_, _> = m
                    .profile
                    .iter()
                    .map(|(op, ms)| ((*op).to_owned(), json!(ms)))
                    .collect();
                json!({"tokens": m.length, "tokens_per_second": m.tokens_per_second,
                       "fraction_of_machine": fraction(m), "milliseconds": profile})
            })
            .collect()
    };
    let first = |what: &str| of(what).first().map(|m| m.tokens_per_second);
    let mut value = json!({
        "model": args.model,
        "weights": work.precision,
        "weight_bytes": work.weight_bytes,
        "cache": cached.format,
        "kv_bytes_per_token": work.cache,
        "residual_window": cached.residual_window,
        "residual_window_bytes": work.window,
        "prefill_tokens_per_second": first("prefill"),
        "decode_tokens_per_second": first("decode"),
        "prefill": list("prefill"),
        "decode": list("decode"),
        "context": context::json(at_context),
        "peak_rss_bytes": peak_rss,
        "load_seconds": load_seconds,
        "runs": args.runs,
        "decoded_tokens": args.tokens,
        "device": context.device_name,
        "machine": {"flops": machine.flops, "bf16_flops": machine.bf16_flops,
                    "read_bytes_per_second": machine.read_bytes_per_second},
    });
    if let Some(speculation) = speculation {
        value["speculation"] = serde_json::to_value(speculation)?;
    }
    let mut rates = table(&[
        "what",
        "tokens",
        "tokens/s",
        "of the machine",
        "where the time goes (ms)",
    ]);
    for m in measured {
        let parts: Vec<String> = m
            .profile
            .iter()
            .map(|(op, ms)| format!("{op} {ms:.2}"))
            .collect();
        rates.add_row(vec![
            m.what.to_owned(),
            m.length.to_string(),
            format!("{:.1}", m.tokens_per_second),
            format!("{:.0} %", 100.0 * fraction(m)),
            parts.join(", "),
        ]);
    }
    let window = match cached.residual_window {
        0 => String::new(),
        tokens => format!(
            ", and {} for a residual window of {tokens}",
            bytes(work.window)
        ),
    };
    let mut facts = vec![
        (
            "weights",
            format!("{} as {}", bytes(work.weight_bytes), work.precision),
        ),
        (
            "KV cache per token",
            format!("{} as {}{window}", bytes(work.cache), cached.format),
        ),
        (
            "peak memory (resident)",
            peak_rss.map_or("unknown".into(), bytes),
        ),
    ];
    if let Some(seconds) = load_seconds {
        facts.push(("loaded in", format!("{seconds:.2} s")));
    }
    facts.push((
        "this machine",
        format!(
            "{:.0} GFLOP/s in f32, {:.0} in bf16, reads {:.1} GB/s ({})",
            machine.flops / 1e9,
            machine.bf16_flops / 1e9,
            machine.read_bytes_per_second / 1e9,
            context.device_name
        ),
    ));
    let facts = pairs(&facts);
    let contexts = context::table(at_context).map_or(String::new(), |t| format!("{t}\n\n"));
    let rates = match measured.is_empty() {
        true => String::new(),
        false => format!("{rates}\n\n"),
    };
    let drafts = speculation.as_ref();
    let drafts = drafts.map_or(String::new(), |s| format!("{}\n\n", speculation::table(s)));
    let text = format!("{rates}{contexts}{drafts}{facts}");
    context.printer.result(&value, &text)?;
    Ok(ExitCode::SUCCESS)
}
