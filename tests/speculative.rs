//! Speculative decoding on the command line: the real model's own text, and what is refused.

mod common;

use common::{Run, arg, cinder, goldens, schema, shared, smollm2};
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

#[test]
fn a_benchmark_compares_drafts_and_reports_read_it() {
    let folder = tempfile::tempdir().expect("temp");
    let (file, report) = (folder.path().join("s.json"), folder.path().join("report"));
    let gguf = goldens("gguf/tiny-llama.gguf");
    let bench = |more: &[&str]| {
        let mut arguments = vec!["bench", arg(&gguf), "--tokens", "9", "--quiet"];
        arguments.extend(more);
        cinder(&arguments)
    };
    let run = bench(&[
        "--draft",
        "q4",
        "--draft",
        "hqq:4:32",
        "--draft-depth",
        "3",
        "--offload",
        "memory",
        "--link-bandwidth",
        "0.1,0.4",
        "--prompt-count",
        "2",
        "--json",
        "--out",
        arg(&file),
    ]);
    let value = run.json();
    // The usual keys stay; what is asked for only with lengths is empty.
    assert_eq!(value["decode"], serde_json::json!([]));
    assert!(value["peak_rss_bytes"].as_u64() > Some(0));
    let found = &value["speculation"];
    let written = std::fs::read_to_string(&file).expect("reads");
    assert_eq!(
        &serde_json::from_str::<Value>(&written).expect("JSON"),
        found
    );
    schema::holds("SpeculationResult", found);
    let list = |key: &str| found[key].as_array().expect("a list").clone();
    let text = |run: &Value| {
        let link = run["bandwidth_bytes_per_second"].as_f64();
        let link = link.map_or(String::new(), |l| format!(" at {} MB/s", l / 1e6));
        format!("{}{link}", run["label"].as_str().expect("a label"))
    };
    let labels = |runs: &[Value]| runs.iter().map(text).collect::<Vec<_>>();
    let (baselines, runs) = (list("baselines"), list("runs"));
    let of = |name: &str, link: &str| format!("{name} at {link} MB/s");
    let mut wanted = vec!["plain, in memory".to_owned()];
    let mut drafts = Vec::new();
    for link in ["100", "400"] {
        for name in [
            "nothing resident",
            "memory of q4 too",
            "memory of hqq:4:32 too",
        ] {
            wanted.push(of(&format!("plain, {name}"), link));
        }
        for name in ["ngram:3", "q4", "hqq:4:32"] {
            drafts.push(of(&format!("{name}, chain 3"), link));
        }
    }
    wanted.extend(["q4", "hqq:4:32"].map(|name| format!("{name} alone (lossy)")));
    assert_eq!(labels(&baselines), wanted);
    assert_eq!(labels(&runs), drafts);
    let number = |run: &Value, key: &str| run[key].as_f64().expect(key);
    for run in baselines.iter().chain(&runs) {
        assert_eq!(run["prompts"], 2);
        let lossy = run["label"].as_str().is_some_and(|l| l.contains("lossy"));
        assert!(lossy || run["identical"] == 2, "{run}");
        assert!(number(run, "tokens_per_second") > 0.0);
        // What is in memory is read from nowhere.
        let streams = number(run, "resident_blocks") < 2.0;
        assert_eq!(number(run, "bytes_read_per_token") > 0.0, streams, "{run}");
        assert_eq!(number(&run["seconds"], "read") > 0.0, streams, "{run}");
    }
    // The draft's bytes are spent on blocks.
    let resident = |at: usize| number(&baselines[at], "resident_blocks");
    assert!(resident(1) == 0.0 && resident(2) > 0.0 && resident(3) > 0.0);
    let a_pass = number(&baselines[1], "bytes_read_per_token");
    for run in &runs {
        let (tau, accepted) = (
            number(run, "tokens_per_round_with_bonus"),
            number(run, "accepted_per_round"),
        );
        assert!((1.0..=4.0).contains(&tau) && (tau - 1.0..tau).contains(&accepted));
        // A pass reads what it read without a draft, and gives τ tokens.
        let read = number(run, "bytes_read_per_token");
        assert!((read * tau - a_pass).abs() < 1e-6 * a_pass, "{run}");
        assert!(number(run, "predicted_speedup") > 0.0);
        assert!(number(run, "speedup_over_plain") > 0.0);
        let shares = run["acceptance_by_depth"].as_array().expect("shares");
        let shares: Vec<f64> = shares.iter().filter_map(Value::as_f64).collect();
        assert!(
            shares.is_sorted_by(|a, b| a >= b) && shares.len() <= 3,
            "{run}"
        );
    }
    assert_eq!(
        cinder(&["report", arg(&file), "--out", arg(&report)]).code,
        0
    );
    let page = std::fs::read_to_string(report.join("report.html")).expect("reads");
    assert!(page.contains("Speculative decoding") && page.contains("hqq:4:32, chain 3"));

    // In memory the draft is compared with plain decoding there.
    let run = bench(&["--draft", "q8", "--draft-width", "2", "--json"]);
    let found = run.json()["speculation"].clone();
    assert_eq!(found["baselines"][0]["speedup_over_plain"], 1.0);
    assert_eq!(found["runs"][1]["label"], "q8, tree auto×2");
    assert_eq!(found["runs"][1]["identical"], 3);
    // Without either, nothing is different.
    let plain = bench(&["--prefill", "4", "--decode", "4", "--runs", "1", "--json"]).json();
    assert!(plain.get("speculation").is_none());
}

#[test]
fn benchmarks_of_drafts_refuse_what_can_not_be_meant() {
    let folder = tempfile::tempdir().expect("temp");
    let gguf = goldens("gguf/tiny-llama.gguf");
    let bad = folder.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"prompt\": \"a\"}\n{\"category\": \"math\"}\n").expect("writes");
    let out = folder.path().join("s.json");
    let cases: [(&str, i32, &[&str]); 4] = [
        ("bench-alone", 2, &["--prompt-count", "2"]),
        (
            "bench-no-prompts",
            2,
            &["--draft", "ngram", "--prompt-count", "0"],
        ),
        (
            "bench-bad-prompts",
            1,
            &["--draft", "ngram", "--prompts", arg(&bad)],
        ),
        ("bench-no-room", 1, &["--draft", "ngram", "--tokens", "254"]),
    ];
    for (name, code, more) in cases {
        let mut arguments = vec!["bench", arg(&gguf), "--quiet"];
        arguments.extend(more);
        if more.contains(&"--draft") {
            arguments.extend(["--out", arg(&out)]);
        }
        let run = cinder(&arguments);
        assert_eq!(run.code, code, "{}", run.stderr);
        let text = run.snapshot().replace(arg(folder.path()), "[folder]");
        insta::assert_snapshot!(name, text);
        assert!(!out.exists());
    }
    let several = generate(arg(&gguf), "a", "4", &["--draft", "q4", "--draft", "q8"]);
    assert_eq!(several.code, 2, "{}", several.stderr);
    let speeds = ["--offload", "memory", "--link-bandwidth", "1,2"];
    let several = generate(arg(&gguf), "a", "4", &speeds);
    assert_eq!(several.code, 2, "{}", several.stderr);
}
