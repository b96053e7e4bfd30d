"""Speed of PyTorch + transformers on a Llama-architecture model: the number Cinder is held to.

    python tests/python/bench_pytorch.py MODEL_DIR --dtype f32 --threads 2 --runs 5

MODEL_DIR holds config.json and model.safetensors, as `cinder export --dense` writes them.
Prints one JSON object: medians in tokens per second, with every run's seconds beside them.
Prefill computes logits for the last position only; decode is greedy with a KV cache.
"""

import argparse
import json
import platform
import resource
import statistics
import time

import torch
import transformers

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def timed(runs, warmup, once):
    seconds = [once() for _ in range(warmup + runs)]
    return seconds[warmup:]


def summary(tokens, seconds):
    return {"tokens": tokens, "tokens_per_s": round(tokens / statistics.median(seconds), 3),
            "seconds": [round(s, 4) for s in seconds]}


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("model")
    args.add_argument("--dtype", choices=DTYPES, default="f32")
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--runs", type=int, default=5)
    args.add_argument("--warmup", type=int, default=1)
    args.add_argument("--prefill", type=int, nargs="*", default=[512, 2048])
    args.add_argument("--context", type=int, nargs="*", default=[128, 1024], help="tokens cached before decoding")
    args.add_argument("--steps", type=int, default=64)
    args = args.parse_args()

    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.LlamaForCausalLM.from_pretrained(
        args.model, dtype=DTYPES[args.dtype], attn_implementation="sdpa").eval()
    gen = torch.Generator().manual_seed(0)

    def prompt(n):
        return torch.randint(0, model.config.vocab_size, (1, n), generator=gen)

    def prefill(ids):
        start = time.perf_counter()
        # Cinder fills its cache during prefill too, so the cache is part of the work.
        out = model(ids, use_cache=True, logits_to_keep=1)
        seconds = time.perf_counter() - start
        assert out.logits.shape[1] == 1
        return seconds

    def decode(ids):
        context = ids.shape[1]
        out = model(ids, use_cache=True, logits_to_keep=1)
        token, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
        start = time.perf_counter()
        for _ in range(args.steps):
            out = model(token, past_key_values=cache, use_cache=True)
            token, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
        seconds = time.perf_counter() - start
        assert cache.get_seq_length() == context + args.steps
        return seconds

    result = {
        "model_type": model.config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": args.dtype, "threads": args.threads, "runs": args.runs,
        "torch": torch.__version__, "transformers": transformers.__version__,
        "machine": platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability(),
        "prefill": {}, "decode": {},
    }
    with torch.inference_mode():
        for n in args.prefill:
            ids = prompt(n)
            seconds = timed(args.runs, args.warmup, lambda: prefill(ids))
            result["prefill"][str(n)] = summary(n, seconds)
        for n in args.context:
            ids = prompt(n)
            seconds = timed(args.runs, args.warmup, lambda: decode(ids))
            result["decode"][str(n)] = summary(args.steps, seconds)
    result["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
