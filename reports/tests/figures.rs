//! Every figure as its readers see it: no text outside, none over another, nothing blank; in a browser where there is one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cinder_reports::{Options, Report, Results, write};
use resvg::tiny_skia::Pixmap;
use resvg::usvg;

mod common;

fn written(results: &Results, out: &Path) -> Report {
    write(results, out, &Options::default()).expect("the sample is sound")
}

fn options() -> usvg::Options<'static> {
    let mut options = usvg::Options::default();
    let fonts = options.fontdb_mut();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    fonts.load_font_data(dejavu::sans::bold().to_vec());
    fonts.set_sans_serif_family("DejaVu Sans");
    options.font_family = "DejaVu Sans".to_owned();
    options
}

/// What each text says and where it is, in the drawing's units.
fn texts(group: &usvg::Group, into: &mut Vec<(String, usvg::Rect)>) {
    for node in group.children() {
        match node {
            usvg::Node::Group(group) => texts(group, into),
            usvg::Node::Text(text) => {
                let said: String = text.chunks().iter().map(|chunk| chunk.text()).collect();
                into.push((said, text.abs_bounding_box()));
            }
            _ => {}
        }
    }
}

/// Holds one drawing to: texts inside, and none over another.
fn check_texts(name: &str, drawing: &str) {
    const AIR: f32 = 2.0;
    let tree = usvg::Tree::from_str(drawing, &options()).expect("an SVG");
    // usvg has applied the view box: boxes are in pixels.
    let (width, height) = (tree.size().width(), tree.size().height());
    let mut all = Vec::new();
    texts(tree.root(), &mut all);
    assert!(all.len() > 3, "{name}: {} texts", all.len());
    for (index, (said, area)) in all.iter().enumerate() {
        let inside = area.left() >= 0.0
            && area.top() >= 0.0
            && area.right() <= width + 0.5
            && area.bottom() <= height + 0.5;
        assert!(
            inside,
            "{name}: `{said}` at {area:?} leaves {width} × {height}"
        );
        for (other, place) in &all[index + 1..] {
            // Boxes of lines touch; ink that overlaps goes deeper than that.
            let across = area.right().min(place.right()) - area.left().max(place.left());
            let down = area.bottom().min(place.bottom()) - area.top().max(place.top());
            assert!(
                across < AIR || down < 4.0,
                "{name}: `{said}` at {area:?} is over `{other}` at {place:?}"
            );
        }
    }
}

/// The drawings within a page, without its colours: wide and narrow ones.
fn drawings(page: &str) -> Vec<&str> {
    let starts = page.match_indices("<svg").map(|(start, _)| start);
    let part = |start: usize| {
        page[start..]
            .find("</svg>")
            .map(|end| &page[start..start + end + 6])
    };
    starts.filter_map(part).collect()
}

#[test]
fn no_text_leaves_its_figure_or_covers_another() {
    for results in [
        common::everything(),
        common::crowded().into(),
        common::cached().into(),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let report = written(&results, folder.path());
        for figure in report
            .figures
            .iter()
            .filter(|f| f.extension().is_some_and(|e| e == "svg"))
        {
            check_texts(
                &figure.display().to_string(),
                &fs::read_to_string(figure).expect("written"),
            );
        }
        let page = fs::read_to_string(&report.html).expect("written");
        let drawn = drawings(&page);
        assert_eq!(drawn.len(), report.figures.len(), "wide and narrow of each");
        for (index, drawing) in drawn.iter().enumerate() {
            check_texts(&format!("drawing {index} of the page"), drawing);
        }
    }
}

#[test]
fn every_kind_of_result_has_its_figures_and_data() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = written(&common::everything(), folder.path());
    for stem in [
        "perplexity-vs-keep-ratio",
        "perplexity-vs-weight-bytes",
        "perplexity-vs-scoring-speed",
        "perplexity-vs-decoding-speed",
        "task-accuracy",
        "task-accuracy-by-length",
        "kl-divergence",
        "kl-divergence-by-position",
        "loss-by-position",
        "speculation-speed",
        "speculation-acceptance",
        "speculation-time",
        "speculation-model",
        "singular-values",
        "singular-values-2",
        "compression-time",
        "kept-share-by-layer",
        "sensitivity-by-layer",
    ] {
        for extension in ["svg", "png"] {
            let name = folder.path().join(format!("{stem}.{extension}"));
            assert!(
                report.figures.contains(&name) && name.is_file(),
                "{}",
                name.display()
            );
        }
        if stem != "kept-share-by-layer" {
            let data =
                fs::read_to_string(folder.path().join(format!("{stem}.csv"))).expect("written");
            let columns = data.lines().next().map(|line| line.split(',').count());
            assert!(data.lines().count() > 1 && columns > Some(2), "{stem}");
        }
    }
    let text = fs::read_to_string(&report.markdown).expect("written");
    let page = fs::read_to_string(&report.html).expect("written");
    for words in [
        "Accuracy on tasks",
        "Distance from the reference model",
        "Paired comparisons",
        "Loss by position",
        "Speculative decoding",
        "Singular values",
        "What the compression took",
        "Sensitivity of smollm2",
        "cinder sensitivity smollm2 --text wiki.test.raw",
        "20 more are in the data",
        "Pareto front",
        "cinder eval tasks model-3 --tasks piqa,arc_easy",
        "cinder bench smollm2 --draft substitute:q4 --json",
    ] {
        assert!(
            text.contains(words) || text.contains(&words.replace('_', "\\_")),
            "{words} in Markdown"
        );
        assert!(page.contains(words), "{words} in the page");
    }
}

#[test]
fn the_front_is_what_nothing_beats() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut results = common::sweep();
    // A budget met a little more closely is no merit.
    for evaluation in &mut results.evaluations {
        let model = &mut evaluation.result.model;
        if model.recipe.as_deref() == Some("low-rank") {
            model.keep_ratio *= 0.9995;
        }
    }
    written(&results, folder.path());
    let data =
        fs::read_to_string(folder.path().join("perplexity-vs-keep-ratio.csv")).expect("written");
    let on: Vec<&str> = data
        .lines()
        .filter(|line| line.ends_with(",yes"))
        .filter_map(|line| line.split(',').next())
        .collect();
    // At every keep ratio this recipe has the lowest perplexity.
    assert_eq!(
        on,
        [
            "smollm2",
            "skipcat-sensitivity 0.9",
            "skipcat-sensitivity 0.8",
            "skipcat-sensitivity 0.7",
            "skipcat-sensitivity 0.6"
        ]
    );
    // With one recipe all are on it, and nothing is marked.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = written(&common::sample().into(), folder.path());
    let page = fs::read_to_string(report.html).expect("written");
    assert!(!page.contains("Pareto"));
}

#[test]
fn a_model_card_says_what_it_is_and_how_to_make_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = written(&common::everything(), folder.path());
    assert_eq!(report.model_cards.len(), 12);
    let card = folder.path().join("model-card-skipcat-0.8.md");
    let text = fs::read_to_string(card).expect("written");
    let parts: Vec<&str> = text.splitn(3, "---\n").collect();
    assert_eq!(parts[0], "");
    assert!(parts[1].contains("base_model: \"smollm2\"\n"));
    assert!(
        parts[1].contains("type: perplexity\n            value: 27.9\n"),
        "{}",
        parts[1]
    );
    for words in [
        "keep ratio 0.800",
        "boolq:calibration",
        "27.90",
        "## Limits",
        "    cinder compress smollm2 --recipe skipcat.toml --out ",
        "`skipcat.toml` is the recipe below",
        "    [[passes]]\n    keep = 0.8\n    pass = \"skipcat\"\n",
        "wiki.test.raw",
        "538.0 MB before",
    ] {
        assert!(parts[2].contains(words), "{words} in {text}");
    }
}

/// Without a manifest the recipe's text is not known: the card says where it is.
#[test]
fn a_card_without_a_recipe_says_where_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    written(&common::everything(), folder.path());
    let card = fs::read_to_string(folder.path().join("model-card-low-rank-0.8.md"));
    let card = card.expect("written");
    let command = "    cinder compress smollm2 --recipe RECIPE.toml --keep 0.8000 --out ";
    assert!(card.contains(command), "{card}");
    assert!(
        card.contains("`RECIPE.toml` stands for the recipe `low-rank`"),
        "{card}"
    );
    assert!(card.contains("under `recipe` in `cinder.json`"), "{card}");
}

#[test]
fn the_markdown_ranks_what_was_measured_of_each_site() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let results = Results {
        sensitivities: vec![common::sensitivity()],
        ..Results::default()
    };
    let report = written(&results, folder.path());
    let text = fs::read_to_string(report.markdown).expect("written");
    insta::assert_snapshot!("sensitivity", text);
}

#[test]
fn kinds_are_told_apart_when_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let everything = common::everything();
    let save = |name: &str, value: serde_json::Value| {
        fs::write(folder.path().join(name), value.to_string()).expect("writable");
    };
    save("a.json", serde_json::json!(everything.tasks[0].result));
    save(
        "b.json",
        serde_json::json!(everything.speculations[0].result),
    );
    save("c.json", serde_json::json!(everything.spectra[0].result));
    let mut evaluation = serde_json::json!(everything.evaluations[0].result);
    evaluation["by_position"] = serde_json::json!([{"from": 1, "to": 15, "mean_nll": 4.0, "stderr": 0.1},
        {"from": 16, "to": 31, "mean_nll": 3.0, "stderr": 0.1}]);
    save("d.json", evaluation);
    save(
        "e.json",
        serde_json::json!({"model": "smollm2", "weights": "f32", "prefill": [], "decode": [],
        "decode_tokens_per_second": 20.0}),
    );
    // A tokenizer or a configuration is none.
    save(
        "f.json",
        serde_json::json!({"model": {"vocab": {}}, "kind": "other"}),
    );
    let found = cinder_reports::read(&[folder.path().to_path_buf()]).expect("all are sound");
    assert_eq!(
        found.tasks[0].result.tasks,
        everything.tasks[0].result.tasks
    );
    assert_eq!(
        found.speculations[0].result,
        everything.speculations[0].result
    );
    let known = &everything.spectra[0].result.spectra;
    assert_eq!(found.spectra[0].result.spectra.len(), known.len());
    assert_eq!(found.spectra[0].result.spectra[3].ranks, known[3].ranks);
    assert_eq!(found.evaluations[0].by_position.len(), 2);
    assert_eq!(found.benches[0].result.decode_tokens_per_second, Some(20.0));
    // Each alone is enough for a report.
    for alone in [
        Results {
            tasks: found.tasks.clone(),
            ..Results::default()
        },
        Results {
            speculations: found.speculations.clone(),
            ..Results::default()
        },
        Results {
            spectra: found.spectra.clone(),
            ..Results::default()
        },
    ] {
        let out = tempfile::tempdir().expect("a temporary folder");
        assert!(!written(&alone, out.path()).figures.is_empty());
    }
    save(
        "g.json",
        serde_json::json!({"kind": "speculation", "baselines": [], "runs": [{"label": 3}]}),
    );
    let error = cinder_reports::read(&[folder.path().to_path_buf()]).expect_err("a label is text");
    assert!(error.to_string().contains("g.json:1:"), "{error}");
}

/// The browser's program; none where it is not installed.
fn chromium() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&paths)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|program| program.is_file())
}

/// The page as the browser shows it.
fn screenshot(browser: &Path, page: &Path, (width, height): (u32, u32), dark: bool) -> Pixmap {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = folder.path().join("page.png");
    let mut command = Command::new(browser);
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--hide-scrollbars",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .arg(format!(
            "--user-data-dir={}",
            folder.path().join("profile").display()
        ))
        .arg(format!("--screenshot={}", image.display()))
        .arg(format!("--window-size={width},{height}"));
    if dark {
        command.arg("--blink-settings=preferredColorScheme=0");
    }
    command.arg(format!("file://{}", page.display()));
    let run = command.output().expect("the browser starts");
    let bytes =
        fs::read(&image).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&run.stderr)));
    Pixmap::decode_png(&bytes).expect("a PNG")
}

/// Pixels of the page that are unlike its corner.
fn ink(image: &Pixmap, x: std::ops::Range<u32>, y: std::ops::Range<u32>) -> usize {
    let paper = image.pixel(0, 0);
    y.flat_map(|y| x.clone().map(move |x| (x, y)))
        .filter(|(x, y)| image.pixel(*x, *y) != paper)
        .count()
}

#[test]
fn a_browser_shows_every_figure_at_two_widths_and_in_the_dark() {
    let Some(browser) = chromium() else {
        eprintln!("skipped: no chromium on this machine (apt-get install chromium)");
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = written(&common::everything(), folder.path());
    // A script asks the browser where everything came to stand, and writes it where `--dump-dom` shows it.
    let page = fs::read_to_string(&report.html).expect("written");
    let script = "<script>addEventListener('load', () => { const wide = document.documentElement.clientWidth; const out = [`page ${document.documentElement.scrollWidth} ${wide}`]; \
        for (const svg of document.querySelectorAll('figure svg')) { const r = svg.getBoundingClientRect(); if (r.width === 0) continue; \
        out.push(`figure ${Math.round(r.left)} ${Math.round(r.right)} ${Math.round(r.top + scrollY)} ${Math.round(r.bottom + scrollY)}`); } \
        document.title = 'PLACES ' + out.join(';') + ' END'; });</script></body>";
    let asked = folder.path().join("asked.html");
    fs::write(&asked, page.replace("</body>", script)).expect("writable");
    let figures = report.figures.len() / 2;
    for (width, dark) in [(1280, false), (500, true)] {
        let image = screenshot(&browser, &asked, (width, 24_000), dark);
        assert_eq!(image.width(), width);
        let corner = image.pixel(0, 0).expect("a corner");
        assert_eq!(corner.red() < 128, dark, "the page's paper at {width}");
        let profile = tempfile::tempdir().expect("a temporary folder");
        let run = Command::new(&browser)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--hide-scrollbars",
                "--dump-dom",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--window-size={width},24000"))
            .arg(format!("file://{}", asked.display()))
            .output()
            .expect("the browser starts");
        let dom = String::from_utf8_lossy(&run.stdout);
        let places = dom
            .split_once("PLACES ")
            .and_then(|(_, rest)| rest.split_once(" END"));
        let (places, _) = places.expect("the script ran");
        let mut seen = 0;
        for place in places.split(';') {
            let mut words = place.split(' ');
            let kind = words.next();
            let numbers: Vec<u32> = words.filter_map(|n| n.parse().ok()).collect();
            if kind == Some("page") {
                assert!(
                    numbers[0] <= numbers[1],
                    "the page is wider than its window: {place}"
                );
                continue;
            }
            let [left, right, top, bottom] = numbers[..] else {
                panic!("{place}")
            };
            assert!(
                right <= width && right - left > 200,
                "{place} is clipped at {width}"
            );
            seen += 1;
            if bottom < image.height() {
                let drawn = ink(&image, left..right, top..bottom);
                let all = ((right - left) * (bottom - top)) as usize;
                assert!(
                    drawn > all / 200 && drawn < all,
                    "{place}: {drawn} of {all} pixels at {width}"
                );
            }
        }
        assert_eq!(seen, figures, "figures in the page at {width}");
    }
}
