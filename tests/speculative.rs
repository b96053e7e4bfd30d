//! Speculative decoding on the command line: the real model's own text, and what is refused.

mod common;

use common::{Run, arg, cinder, goldens, shared, smollm2};
use serde_json::Value;

fn generate(model: &str, prompt: &str, tokens: &str, more: &[&str]) -> Run {
    let mut arguments = vec!["generate", model, "--prompt", prompt];
    arguments.extend(["--max-new-tokens", tokens, "--quiet"]);
    arguments.extend(more);
    cinder(&arguments)
}

/// Prompts of Spec-Bench (`specbench.jsonl`), of different kinds; cut short, so that there is something to continue.
fn prompts() -> Option<Vec<String>> {
    let text = std::fs::read_to_string(shared("data/prompts/specbench.jsonl")?).expect("reads");
    let lines: Vec<&str> = text.lines().collect();
    let prompt = |i: usize| {
        let value: Value = serde_json::from_str(lines[i]).expect("JSON");
        let text = value["turns"][0].as_str().expect("a turn").to_owned();
        text.chars().take(200).collect()
    };
    Some([2, 25, 400].map(prompt).to_vec())
}

#[test]
fn the_real_models_text_is_the_same_with_drafts() {
    let Some(prompts) = prompts() else {
        return;
    };
    let model = smollm2();
    let sampled = ["--temperature", "0.8", "--top-p", "0.95", "--seed", "5"];
    let chain = ["--draft", "q4", "--draft-depth", "6"];
    let tree = ["--draft", "q4", "--draft-depth", "4", "--draft-width", "3"];
    let cases: [(&[&str], &[&str]); 3] = [
        (&[], &chain),
        (&[], &tree),
        (&sampled, &["--draft", "ngram"]),
    ];
    for (prompt, (how, draft)) in prompts.iter().zip(cases) {
        let plain = generate(model, prompt, "48", &[how, &["--json"][..]].concat()).json();
        let ours = generate(model, prompt, "48", &[how, draft, &["--json"][..]].concat()).json();
        assert_eq!(ours["ids"], plain["ids"], "{draft:?}: {prompt}");
        assert_eq!(plain["speculation"], Value::Null);
        let found = &ours["speculation"];
        let rounds = found["rounds"].as_u64().expect("a count");
        let tokens = found["tokens"].as_u64().expect("a count");
        assert_eq!(
            tokens as usize + 1,
            ours["ids"].as_array().expect("ids").len()
        );
        let tau = found["tau_with_bonus"].as_f64().expect("a number");
        assert!((tau - tokens as f64 / rounds as f64).abs() < 1e-9);
        if draft.contains(&"q4") {
            assert!(tau > 2.0, "a copy of the model is often right: {found}");
        }
    }
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let gguf = goldens("gguf/tiny-llama.gguf");
    let other = goldens("families/llama3");
    let cases: [(&str, &[&str]); 9] = [
        ("no-draft", &["--draft-depth", "3"]),
        ("ngram-of-none", &["--draft", "ngram:0"]),
        ("depth", &["--draft", "q4", "--draft-depth", "0"]),
        ("width", &["--draft", "q4", "--draft-width", "0"]),
        (
            "temperature",
            &["--draft", "q4", "--draft-temperature", "0"],
        ),
        ("verification", &["--draft", "q4", "--verify", "hope"]),
        ("wide-ngram", &["--draft", "ngram", "--draft-width", "2"]),
        (
            "wide-rejection",
            &[
                "--draft",
                "q4",
                "--draft-width",
                "2",
                "--verify",
                "rejection",
            ],
        ),
        (
            "weights-of-copy",
            &["--draft", "q4", "--draft-weights", "q8"],
        ),
    ];
    for (name, options) in cases {
        let run = generate(arg(&gguf), "a", "4", options);
        assert_eq!(run.code, 2, "{}", run.stderr);
        insta::assert_snapshot!(name, run.snapshot());
    }
    let run = generate(smollm2(), "a", "4", &["--draft", arg(&gguf)]);
    assert_eq!(run.code, 2, "{}", run.stderr);
    let text = run.snapshot().replace(arg(&gguf), "[gguf]");
    insta::assert_snapshot!("another-tokenizer", text);
    let run = generate(
        arg(&gguf),
        "a",
        "4",
        &["--draft", arg(&other.join("nowhere"))],
    );
    assert_eq!(run.code, 1, "{}", run.stderr);
}

#[test]
fn a_draft_of_its_own_and_every_verification() {
    let gguf = goldens("gguf/tiny-llama.gguf");
    let model = arg(&gguf);
    let ids = |more: &[&str]| {
        let mut options = vec!["--json"];
        options.extend(more);
        generate(model, "The dog", "24", &options).json()["ids"].clone()
    };
    let plain = ids(&[]);
    for verify in ["match", "rejection", "traversal"] {
        for draft in [model, "q8", "ngram:2"] {
            assert_eq!(ids(&["--draft", draft, "--verify", verify]), plain);
        }
    }
    assert_eq!(
        ids(&[
            "--draft",
            model,
            "--draft-weights",
            "q4",
            "--draft-width",
            "4"
        ]),
        plain
    );
    // Drawn, with the law of the model but not its numbers.
    let drawn = [
        "--temperature",
        "1",
        "--draft",
        "q4",
        "--draft-depth",
        "3",
        "--verify",
        "traversal",
    ];
    assert_eq!(ids(&drawn), ids(&drawn));
}
