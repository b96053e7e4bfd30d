"""Cinder's zero-shot tasks beside lm-evaluation-harness with transformers: the same documents and model, in one run.

    cargo build --release
    pip install torch transformers gguf lm_eval==0.4.13 accelerate
    python tests/python/compare_harness.py target/release/cinder ../shared/data/zero-shot --limit 200

The harness's own task definitions are used; only where their documents come from is replaced, by the local files in the
schema of the hub's data sets. Both run in f32 on the given number of threads, alternating; wall times are those of scoring,
without loading the model. Prints one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
TASKS = ["piqa", "hellaswag", "arc_easy", "arc_challenge", "winogrande", "lambada_openai"]


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def arc(path):
    def convert(document):
        choices = document["question"]["choices"]
        return {"question": document["question"]["stem"], "answerKey": document["answerKey"],
                "choices": {"text": [c["text"] for c in choices], "label": [c["label"] for c in choices]}}

    return [convert(document) for document in lines(path)]


def piqa(folder):
    with open(f"{folder}/valid-labels.lst", encoding="utf-8") as file:
        labels = [int(line) for line in file.read().split()]
    return [{**document, "label": label} for document, label in zip(lines(f"{folder}/valid.jsonl"), labels)]


def hellaswag(path):
    wanted = ["activity_label", "ctx_a", "ctx_b", "endings", "label"]
    return [{**{key: d[key] for key in wanted}, "label": str(d["label"])} for d in lines(path)]


def documents(data):
    return {
        "piqa": piqa(f"{data}/piqa"),
        "hellaswag": hellaswag(f"{data}/hellaswag/hellaswag_val.jsonl"),
        "arc_easy": arc(f"{data}/arc/ARC-Easy-Test.jsonl"),
        "arc_challenge": arc(f"{data}/arc/ARC-Challenge-Test.jsonl"),
        "winogrande": lines(f"{data}/winogrande/dev.jsonl"),
        "lambada_openai": lines(f"{data}/lambada_openai/lambada_test.jsonl"),
    }


class Harness:
    def __init__(self, model, data, limit, threads, batch):
        import datasets
        import torch
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        torch.set_num_threads(threads)
        # The harness wants every split to be there; only the evaluated one is read.
        found = {}
        for name, rows in documents(data).items():
            rows = datasets.Dataset.from_list(rows[:limit])
            found[name] = {split: rows for split in ("train", "validation", "test")}
        load, self.task = datasets.load_dataset, None
        datasets.load_dataset = lambda *args, **kwargs: (
            datasets.DatasetDict(found[self.task]) if self.task else load(*args, **kwargs))
        self.model = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=batch)
        self.manager = TaskManager()

    def run(self, name, limit):
        import lm_eval

        self.task = name
        start = time.perf_counter()
        found = lm_eval.simple_evaluate(self.model, tasks=[name], task_manager=self.manager, limit=limit, bootstrap_iters=0)
        seconds = time.perf_counter() - start
        return {key.split(",")[0]: value for key, value in found["results"][name].items()}, seconds


def cinder(args, name):
    command = [args.program, "eval", "tasks", args.model, "--tasks", name, "--data", args.data, "--limit", str(args.limit),
               "--threads", str(args.threads), "--quiet", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])["tasks"][name]
    return found, found["seconds"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("data")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    report = {"limit": args.limit, "threads": args.threads, "batch": args.batch, "tasks": {}}
    with tempfile.TemporaryDirectory() as work:
        subprocess.run([args.program, "export", args.model, "--dense", "--out", f"{work}/dense", "--quiet"], check=True,
                       stdout=subprocess.DEVNULL)
        harness = Harness(f"{work}/dense", args.data, args.limit, args.threads, args.batch)
        for name in TASKS:
            theirs, their_seconds = harness.run(name, args.limit)
            ours, our_seconds = cinder(args, name)
            row = {"harness_seconds": their_seconds, "cinder_seconds": our_seconds, "ratio": their_seconds / our_seconds}
            for metric in ("acc", "acc_norm"):
                if metric in theirs:
                    row[metric] = {"harness": theirs[metric], "cinder": ours.get(metric)}
            report["tasks"][name] = row
            print(name, json.dumps(row), file=sys.stderr, flush=True)
    rows = report["tasks"].values()
    totals = [sum(row[key] for row in rows) for key in ("harness_seconds", "cinder_seconds")]
    report["total"] = {"harness_seconds": totals[0], "cinder_seconds": totals[1], "ratio": totals[0] / totals[1]}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
