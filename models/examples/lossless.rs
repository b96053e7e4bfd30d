//! Whether speculative decoding gives the text of plain decoding, token for token, on many prompts.
//!
//! `lossless MODEL PROMPTS [--count N] [--tokens N] [--drafts q4,ngram] [--widths 1,2] [--depths 4,auto] [--temperature T]
//! [--seed N] [--cache FILE] [--skip N]`: MODEL is a file or directory, PROMPTS JSON lines with `turns` (Spec-Bench) or `prompt`
//! (HumanEval), of which N (100) are taken, evenly spaced. Every prompt is continued plainly once, by at most N tokens (256);
//! FILE keeps that for the next run (default: in the temporary folder, by model, tokens and sampling). Then every draft (`ngram`,
//! a precision for a copy, or a low-bit copy such as `hqq:2:128`) runs with every width and depth; what differs is printed, and
//! the end says how many did. Exits with 1 where any did. Drafts are separated by `;` where there is one, since a low-bit copy
//! may have commas of its own: `--drafts 'hqq:4:64,head=8;ngram'`.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use burn::tensor::Device;
use cinder_models::checkpoint::sha256;
use cinder_models::decode::speculative::{
    Depth, Drafter, ModelDrafter, NGramDrafter, SpeculationSettings, Verification, speculate,
};
use cinder_models::decode::{SamplingSettings, generate};
use cinder_models::progress::Silent;
use cinder_models::{Checkpoint, Precision, SubstituteSettings};
use serde_json::Value;

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Options {
    model: PathBuf,
    prompts: PathBuf,
    named: BTreeMap<String, String>,
}

impl Options {
    fn read() -> Outcome<Self> {
        let (mut placed, mut named) = (Vec::new(), BTreeMap::new());
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix("--") {
                Some(name) => {
                    let value = arguments.next().ok_or("an option without a value")?;
                    named.insert(name.to_owned(), value);
                }
                None => placed.push(PathBuf::from(argument)),
            }
        }
        let [model, prompts]: [PathBuf; 2] = placed
            .try_into()
            .map_err(|_| "lossless MODEL PROMPTS [options]; its source says which")?;
        Ok(Options {
            model,
            prompts,
            named,
        })
    }

    fn text(&self, name: &str, default: &str) -> String {
        self.named
            .get(name)
            .map_or(default, String::as_str)
            .to_owned()
    }

    fn number<T: std::str::FromStr>(&self, name: &str, default: &str) -> Outcome<T> {
        let text = self.text(name, default);
        text.parse().map_err(|_| format!("--{name} {text}").into())
    }
}

/// The texts to continue, evenly spaced over the file.
fn prompts(path: &Path, count: usize, skip: usize) -> Outcome<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.is_empty())
        .skip(skip)
        .collect();
    let count = count.min(lines.len());
    let mut found = Vec::new();
    for i in 0..count {
        let value: Value = serde_json::from_str(lines[i * lines.len() / count])?;
        let prompt = match &value["turns"][0] {
            Value::String(turn) => turn,
            _ => value["prompt"]
                .as_str()
                .ok_or("a line without `turns` or `prompt`")?,
        };
        found.push(prompt.to_owned());
    }
    Ok(found)
}

fn main() -> Outcome<ExitCode> {
    let options = Options::read()?;
    let tokens: usize = options.number("tokens", "256")?;
    let sampling = SamplingSettings {
        temperature: options.number("temperature", "0")?,
        seed: options.number("seed", "0")?,
        ..SamplingSettings::GREEDY
    };
    let checkpoint = Checkpoint::open(&options.model)?;
    let tokenizer = checkpoint.tokenizer()?;
    let load = |precision| checkpoint.load(precision, &Device::flex(), &Silent);
    let mut target = load(Precision::F32)?;
    let texts = prompts(
        &options.prompts,
        options.number("count", "100")?,
        options.number("skip", "0")?,
    )?;
    let room = checkpoint.config().max_context.saturating_sub(tokens);
    let mut ids = Vec::new();
    for text in &texts {
        let mut prompt = tokenizer.encode_prompt(text)?;
        prompt.truncate(room);
        ids.push(prompt);
    }

    let run = format!("{} {tokens} {sampling:?}", checkpoint.sha256()?);
    let default =
        std::env::temp_dir().join(format!("lossless-{}.json", &sha256(run.as_bytes())[..16]));
    let cache = options.named.get("cache").map_or(default, PathBuf::from);
    let mut known: BTreeMap<String, Vec<u32>> = match std::fs::read(&cache) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => BTreeMap::new(),
    };
    let mut plain = Vec::new();
    for (i, prompt) in ids.iter().enumerate() {
        let key = sha256(serde_json::to_string(&(&run, prompt))?.as_bytes());
        if !known.contains_key(&key) {
            let begun = Instant::now();
            let eos = tokenizer.eos_ids();
            let done = generate(&mut target, prompt, tokens, eos, sampling, &mut |_| Ok(()))?;
            let seconds = begun.elapsed().as_secs_f64();
            eprintln!(
                "plain {}/{}: {} tokens in {seconds:.1} s",
                i + 1,
                ids.len(),
                done.ids.len()
            );
            known.insert(key.clone(), done.ids);
            // Whole or not at all: the next run trusts it.
            let partial = cache.with_extension("partial");
            std::fs::write(&partial, serde_json::to_vec(&known)?)?;
            std::fs::rename(&partial, &cache)?;
        }
        plain.push(known[&key].clone());
    }

    let (mut runs, mut wrong) = (0, 0);
    let drafts = options.text("drafts", "q4");
    let separator = if drafts.contains(';') { ';' } else { ',' };
    for draft in drafts.split(separator).filter(|draft| !draft.is_empty()) {
        for width in options.text("widths", "1").split(',') {
            for depth in options.text("depths", "auto").split(',') {
                let (width, depth): (usize, Depth) = (width.parse()?, depth.parse()?);
                let mut drafter: Box<dyn Drafter> = match draft {
                    "ngram" => Box::new(NGramDrafter::new(3)),
                    copy => {
                        let model = match copy.parse() {
                            Ok(precision) => load(precision)?,
                            Err(_) => {
                                let settings: SubstituteSettings = copy.parse()?;
                                let device = Device::flex();
                                checkpoint.load_substitute(
                                    &settings,
                                    Precision::F32,
                                    &device,
                                    &Silent,
                                )?
                            }
                        };
                        Box::new(ModelDrafter::shared(Box::new(model), width, None))
                    }
                };
                let settings = SpeculationSettings {
                    sampling,
                    depth,
                    verification: Verification::Match,
                    prefill_chunk: None,
                };
                let (begun, mut rounds, mut given) = (Instant::now(), 0, 0);
                let before = wrong;
                for (i, (prompt, expected)) in ids.iter().zip(&plain).enumerate() {
                    let (eos, emit) = (tokenizer.eos_ids(), &mut |_| Ok(()));
                    let (done, found) = speculate(
                        &mut target,
                        drafter.as_mut(),
                        prompt,
                        tokens,
                        eos,
                        &settings,
                        emit,
                    )?;
                    rounds += found.rounds;
                    given += found.tokens;
                    runs += 1;
                    if done.ids != *expected {
                        wrong += 1;
                        let same = done
                            .ids
                            .iter()
                            .zip(expected)
                            .take_while(|(a, b)| a == b)
                            .count();
                        println!(
                            "MISMATCH {draft} width {width} depth {depth}, prompt {i}: from token {same} on"
                        );
                    }
                    if (i + 1) % 10 == 0 {
                        eprintln!(
                            "{draft} width {width} depth {depth}: {}/{}",
                            i + 1,
                            ids.len()
                        );
                    }
                }
                println!(
                    "{draft} width {width} depth {depth}: {} prompts, {given} tokens in {rounds} passes (tau {:.2}), {:.0} s, {} \
                     differ",
                    ids.len(),
                    given as f64 / f64::from(u32::try_from(rounds)?).max(1.0),
                    begun.elapsed().as_secs_f64(),
                    wrong - before
                );
            }
        }
    }
    println!("{runs} texts, {wrong} differ from plain decoding");
    Ok(ExitCode::from(u8::from(wrong > 0)))
}
