//! `cinder logits`

use std::process::ExitCode;

use anyhow::Result;
use burn::tensor::Tensor;
use cinder::models::ops::log_sum_exp;
use serde_json::json;

use super::context::{Cache, Context, Weights};
use super::format::table;
use super::memory::Length;

/// Show the most likely next tokens at each position of a text
///
/// For comparing Cinder with other implementations of the same model.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    cache: Cache,
    /// The text
    #[arg(long)]
    text: String,
    /// How many of the largest logits to show at each position
    #[arg(long, default_value_t = 5, value_name = "K")]
    top: usize,
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let checkpoint = context.open(&args.model)?;
    let cached = args.cache.of(&checkpoint)?;
    let tokenizer = checkpoint.tokenizer()?;
    let ids = tokenizer.encode(&args.text)?;
    let length = Length {
        held: 0,
        at_once: ids.len(),
    };
    let decoder = context.decoder(&checkpoint, args.weights.weights, cached, length)?;
    let hidden = decoder.hidden(std::slice::from_ref(&ids), None)?;
    let [_, tokens, width] = hidden.dims();
    let hidden: Tensor<2> = hidden.reshape([tokens, width]);

    let mut out = table(&[
        "position",
        "id",
        "token",
        "next ids",
        "logits",
        "log-sum-exp",
    ]);
    let (mut top_ids, mut top_logits, mut sums) = (Vec::new(), Vec::new(), Vec::new());
    for (position, id) in ids.iter().enumerate() {
        let row = decoder.logits(hidden.clone().narrow(0, position, 1));
        let row = row
            .into_data()
            .try_into_vec::<f32>()
            .map_err(|e| anyhow::anyhow!("logits could not be read: {e:?}"))?;
        anyhow::ensure!(
            row.iter().all(|v| v.is_finite()),
            "a logit at position {position} is not finite"
        );
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
        order.truncate(args.top);
        let values: Vec<f32> = order.iter().map(|i| row[*i as usize]).collect();
        let sum = log_sum_exp(&row);
        let list = |items: Vec<String>| items.join(" ");
        out.add_row(vec![
            position.to_string(),
            id.to_string(),
            format!("{:?}", tokenizer.decode(&[*id], false)?),
            list(order.iter().map(u32::to_string).collect()),
            list(values.iter().map(|v| format!("{v:.3}")).collect()),
            format!("{sum:.3}"),
        ]);
        top_ids.push(order);
        top_logits.push(values);
        sums.push(sum);
    }
    let value = json!({"ids": ids, "top_ids": top_ids, "top_logits": top_logits, "logsumexp": sums, "bos_ids": tokenizer.bos_ids(),
        "cache": cached.format, "kv_bytes_per_token": checkpoint.kv_bytes_per_token(cached.format),
        "residual_window": cached.residual_window, "residual_window_bytes": cached.window_bytes(&checkpoint)});
    context.printer.result(&value, &out.to_string())?;
    Ok(ExitCode::SUCCESS)
}
