//! The figures' data as CSV, in full precision.

use crate::compression::{Cell, Compressed};
use crate::group::{Group, Row};

const HEADER: &str = "model,recipe,keep_ratio,perplexity,stderr,times_dense,times_dense_stderr,tokens_scored,\
parameters,decoder_projection_scalars,weight_bytes,tokens_per_second,device,dtype,cache,kv_bytes_per_token,residual_window,residual_window_bytes,stored_as,model_sha256,\
corpus_sha256,tool_version,result_file,decode_tokens_per_second,pareto_front";

/// One line a measurement, the dense one first. Empty where there is nothing to state.
pub(crate) fn csv(group: &Group<'_>) -> String {
    let mut text = format!("{HEADER}\n");
    let front = group.front();
    for (index, row) in group.rows.iter().enumerate() {
        text.push_str(&line(row, front.contains(&index)));
        text.push('\n');
    }
    text
}

fn line(row: &Row<'_>, front: bool) -> String {
    let (model, measured) = (&row.result.model, &row.result.perplexity);
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    let cells = [
        quoted(&model.name),
        quoted(model.recipe.as_deref().unwrap_or("")),
        model.keep_ratio.to_string(),
        measured.perplexity.to_string(),
        number(row.stderr()),
        number(row.relative.map(|relative| relative.times)),
        number(row.relative.and_then(|relative| relative.stderr)),
        measured.tokens_scored.to_string(),
        model.parameters.to_string(),
        model.decoder_projection_scalars.to_string(),
        model.bytes.to_string(),
        measured.tokens_per_second.to_string(),
        quoted(&row.result.device),
        quoted(&row.result.dtype),
        row.result.cache.map_or_else(String::new, |c| c.to_string()),
        row.result
            .kv_bytes_per_token
            .map_or_else(String::new, |n| n.to_string()),
        row.result.residual_window.to_string(),
        row.result.residual_window_bytes.to_string(),
        quoted(&model.stored_as),
        quoted(&model.sha256),
        quoted(&row.result.corpus.sha256),
        quoted(&row.result.tool_version),
        quoted(&row.file.display().to_string()),
        number(row.decode),
        if front { "yes" } else { "no" }.to_owned(),
    ];
    cells.join(",")
}

const SITES_HEADER: &str = "model,recipe,model_keep_ratio,model_seconds,layer,site,projection,kind,out,in,rank,neurons,\
scalars,keep_ratio,kept_share,output_error,predicted_loss,condition,growth,fallback,seconds,record_file";

/// One line a projection of every layer of every model. Empty where there is nothing to state.
pub(crate) fn sites(models: &[Compressed<'_>]) -> String {
    let mut text = format!("{SITES_HEADER}\n");
    for model in models {
        for cell in model.cells() {
            text.push_str(&site(model, &cell));
            text.push('\n');
        }
    }
    text
}

fn site(model: &Compressed<'_>, cell: &Cell<'_>) -> String {
    fn optional(value: Option<impl ToString>) -> String {
        value.map_or_else(String::new, |value| value.to_string())
    }
    let (all, record) = (&model.record, &cell.site.record);
    let cells = [
        quoted(&model.label),
        quoted(all.recipe.as_deref().unwrap_or("")),
        all.keep_ratio.to_string(),
        optional(all.seconds),
        record.layer.to_string(),
        quoted(&record.site),
        quoted(&record.projection),
        quoted(&record.kind),
        record.shape[0].to_string(),
        record.shape[1].to_string(),
        optional(record.rank),
        optional(record.neurons),
        optional(cell.scalars()),
        record.keep_ratio.to_string(),
        cell.kept.to_string(),
        record.error.to_string(),
        optional(record.predicted_loss),
        optional(record.condition),
        optional(record.growth),
        quoted(record.fallback.as_deref().unwrap_or("")),
        optional(cell.site.seconds),
        quoted(&all.file.display().to_string()),
    ];
    cells.join(",")
}

/// A text cell as RFC 4180 wants it.
pub(crate) fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn cells_with_separators_are_quoted() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("cpu (2, fast) \"x\""), "\"cpu (2, fast) \"\"x\"\"\"");
    }
}
