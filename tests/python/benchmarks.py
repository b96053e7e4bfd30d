"""Cinder beside PyTorch + transformers and llama.cpp, in one run on one machine: writes BENCHMARKS.md.

    cargo build --release
    pip install torch transformers numpy gguf
    pip install --no-binary llama-cpp-python llama-cpp-python
    python tests/python/benchmarks.py target/release/cinder --rounds 3 > BENCHMARKS.md

All load the same model: the fetched SmolLM2, exported by Cinder for PyTorch and converted by llama.cpp for itself. Rounds
alternate between the programs, so that whatever else the machine does falls on all of them; figures are medians over
rounds. Conversions are kept in the work folder. Per program and round there is one run that does not count.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
# llama.cpp's name for the precision of Cinder's that has the same bits and blocks.
LLAMA = {"f32": "f32", "f16": "f16", "bf16": "bf16", "q8": "q8_0", "q4": "q4_0"}
TORCH = ["f32", "bf16"]
COLUMNS = [("prefill", "512"), ("prefill", "2048"), ("decode", "128"), ("decode", "1024")]


def result(command):
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def cinder(args, precision):
    found = result([args.program, "bench", args.model, "--weights", precision, "--prefill", "512,2048", "--decode", "128,1024",
                    "--runs", "1", "--threads", str(args.threads), "--json", "--quiet"])
    rates = {(kind, str(m["tokens"])): m["tokens_per_second"] for kind in ("prefill", "decode") for m in found[kind]}
    return rates, found


def torch(args, precision):
    found = result([sys.executable, os.path.join(HERE, "bench_pytorch.py"), f"{args.work}/dense", "--dtype", precision,
                    "--threads", str(args.threads), "--runs", "1", "--warmup", "1"])
    return {(kind, n): found[kind][n]["tokens_per_s"] for kind, n in COLUMNS}, found


def llama_cpp(args, precision):
    found = result([sys.executable, os.path.join(HERE, "bench_llama_cpp.py"), f"{args.work}/{LLAMA[precision]}.gguf",
                    "--threads", str(args.threads), "--runs", "1"] + (["--f32-cache"] if precision == "f32" else []))
    return {(kind, n): found[kind][n] for kind, n in COLUMNS}, found


def prepare(args):
    os.makedirs(args.work, exist_ok=True)
    if not os.path.isdir(f"{args.work}/dense"):
        subprocess.run([args.program, "export", args.model, "--dense", "--out", f"{args.work}/dense", "--quiet"], check=True,
                       stdout=subprocess.DEVNULL)
    source = subprocess.run([args.program, "fetch", args.model, "--quiet"], check=True, stdout=subprocess.PIPE, text=True)
    for kind in LLAMA.values():
        target = f"{args.work}/{kind}.gguf"
        if not os.path.exists(target):
            subprocess.run([sys.executable, os.path.join(HERE, "bench_llama_cpp.py"), target, "--quantize",
                            source.stdout.strip(), kind], check=True)


def cpu():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def middle(values):
    return statistics.median(values)


def row(cells):
    return "| " + " | ".join(cells) + " |"


def table(header, rows):
    return "\n".join([row(header), row(["---"] + ["---:"] * (len(header) - 1))] + [row(r) for r in rows])


def speeds(rates):
    """Tokens per second of every program and precision."""
    rows = []
    for (program, precision), rounds in rates.items():
        cells = [f"{program} {precision}"]
        for column in COLUMNS:
            values = [r[column] for r in rounds]
            cells.append(f"{middle(values):.0f} ({min(values):.0f}–{max(values):.0f})")
        rows.append(cells)
    return table(["tokens/s"] + [f"{kind} {n}" for kind, n in COLUMNS], rows)


def ratios(rates):
    """Cinder over its peers at equal precision: the median of the rounds' ratios."""
    rows = []
    for precision, theirs in LLAMA.items():
        ours = rates["Cinder", precision]
        for name in (("llama.cpp", theirs), ("PyTorch", precision)):
            if name not in rates:
                continue
            cells = [f"{precision} over {name[0]} {name[1]}"]
            cells += [f"{middle([a[c] / b[c] for a, b in zip(ours, rates[name])]):.2f}" for c in COLUMNS]
            rows.append(cells)
    return table(["ratio"] + [f"{kind} {n}" for kind, n in COLUMNS], rows)


def fractions(details):
    """What share of the machine Cinder uses, and where its time goes."""
    rows = []
    for precision, rounds in details.items():
        for kind, n in COLUMNS:
            found = [next(m for m in r[kind] if str(m["tokens"]) == n) for r in rounds]
            share = middle([m["fraction_of_machine"] for m in found])
            total = middle([1e3 / m["tokens_per_second"] * (int(n) if kind == "prefill" else 1) for m in found])
            parts = {op: middle([m["milliseconds"].get(op, 0) for m in found]) for op in found[0]["milliseconds"]}
            rows.append([f"{precision} {kind} {n}", f"{100 * share:.0f} %", f"{total:.1f}",
                         ", ".join(f"{op} {ms:.2f}" for op, ms in parts.items())])
    return table(["Cinder", "of the machine", "ms", "of these, by operation"], rows)


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("program")
    args.add_argument("--model", default="smollm2")
    args.add_argument("--work", default=os.path.join(tempfile.gettempdir(), "cinder-bench"))
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--threads", type=int, default=2)
    args = args.parse_args()
    prepare(args)
    rates, details, versions = {}, {}, {}
    for number in range(args.rounds):
        for precision, theirs in LLAMA.items():
            print(f"round {number + 1} of {args.rounds}: {precision}", file=sys.stderr)
            found, detail = cinder(args, precision)
            rates.setdefault(("Cinder", precision), []).append(found)
            details.setdefault(precision, []).append(detail)
            found, detail = llama_cpp(args, precision)
            rates.setdefault(("llama.cpp", theirs), []).append(found)
            versions["llama.cpp"] = f"llama-cpp-python {detail['llama_cpp_python']} (built from source)"
            if precision in TORCH:
                found, detail = torch(args, precision)
                rates.setdefault(("PyTorch", precision), []).append(found)
                versions["PyTorch"] = f"PyTorch {detail['torch']}, transformers {detail['transformers']}"
    version = subprocess.run([args.program, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    machines = [d["machine"] for rounds in details.values() for d in rounds]
    peak = lambda key, unit: f"{middle([m[key] for m in machines]) / unit:.0f}"
    memory = [[p, f"{d[0]['weight_bytes'] / 1e6:.0f}", f"{middle([r['peak_rss_bytes'] for r in d]) / 1e6:.0f}"]
              for p, d in details.items()]
    print(f"""# Benchmarks

Written by `tests/python/benchmarks.py`, which says how to repeat it. SmolLM2-135M-Instruct, batch 1, {args.threads} threads, {cpu()}.
{version}; {versions["PyTorch"]}; {versions["llama.cpp"]}. Medians of {args.rounds} rounds that alternate between the
programs (slowest–fastest behind them): the machine is shared, so ratios within a run say more than figures.

Prefill computes the logits of the last position only. Decoding draws the most likely token, 64 times, after a prompt of the
length given. KV caches are f32 in Cinder; f32 in llama.cpp's f32 row and f16 in its others; the weights' type in PyTorch.
q8 is llama.cpp's q8_0 and q4 its q4_0, with embedding and head at 8 bits in Cinder and at 6 in llama.cpp.

{speeds(rates)}

## Cinder over its peers at equal precision

{ratios(rates)}

## Share of the machine

Prefill: products of the projections and of attention, over the peak of f32 (bf16) products from registers, {peak("flops", 1e9)} ({peak("bf16_flops", 1e9)}) GFLOP/s;
the block formats multiply whole numbers and can pass that. Decoding: bytes of weights and KV cache over the bandwidth of reading
memory, {peak("read_bytes_per_second", 1e9)} GB/s. Both peaks are measured in each run of `cinder bench`. Milliseconds are of the whole prompt, or of one token.

{fractions(details)}

## Memory in MB

{table(["Cinder", "weights", "peak resident at 2048 tokens"], memory)}""")


if __name__ == "__main__":
    main()
