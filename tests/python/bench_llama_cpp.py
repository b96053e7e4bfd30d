"""Speed of llama.cpp on one GGUF file, through llama-cpp-python's low-level API; prints one JSON object.

    python tests/python/bench_llama_cpp.py MODEL.gguf --threads 2 --prefill 512,2048 --decode 128,1024

The same work as `cinder bench`: prefill computes the logits of the last position only; decoding continues a prompt of the
given length by 64 tokens, each the most likely one. The KV cache is f32 for an f32 model and llama.cpp's usual f16 otherwise.
`--quantize FROM TYPE` makes MODEL.gguf first.
"""

import argparse
import ctypes
import json
import statistics
import time

import llama_cpp
from llama_cpp import llama_cpp as lib

TYPES = {"f32": lib.LLAMA_FTYPE_ALL_F32, "f16": lib.LLAMA_FTYPE_MOSTLY_F16, "bf16": lib.LLAMA_FTYPE_MOSTLY_BF16,
         "q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0, "q4_1": lib.LLAMA_FTYPE_MOSTLY_Q4_1}


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silent(level, text, data):
    pass


def quantize(source, target, kind, threads):
    params = lib.llama_model_quantize_default_params()
    params.ftype = TYPES[kind]
    params.nthread = threads
    params.allow_requantize = True
    if lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"could not make {target}")


class Runner:
    def __init__(self, path, threads, context, batch, f32_cache):
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(path.encode(), model_params)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, context, batch
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        if f32_cache:
            params.type_k = params.type_v = 0
        self.context = lib.llama_init_from_model(self.model, params)
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def clear(self):
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def decode(self, tokens, start):
        """Runs tokens from position start; logits of the last. Returns the most likely next token."""
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
            batch.logits[i] = i == len(tokens) - 1
        if lib.llama_decode(self.context, batch):
            raise SystemExit("llama_decode failed")
        logits = lib.llama_get_logits_ith(self.context, -1)
        lib.llama_batch_free(batch)
        values = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self.vocabulary)).contents
        return int(numpy.frombuffer(values, dtype=numpy.float32).argmax())

    def prefill(self, count):
        self.clear()
        start = time.perf_counter()
        self.decode([253] * count, 0)
        return count / (time.perf_counter() - start)

    def generate(self, prompt, count):
        self.clear()
        token = self.decode([253] * prompt, 0)
        start = time.perf_counter()
        for i in range(count):
            token = self.decode([token], prompt + i)
        return count / (time.perf_counter() - start)


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("model")
    args.add_argument("--quantize", nargs=2, metavar=("FROM", "TYPE"))
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--batch", type=int, default=512, help="llama.cpp's micro-batch")
    args.add_argument("--prefill", default="512,2048")
    args.add_argument("--decode", default="128,1024")
    args.add_argument("--tokens", type=int, default=64)
    args.add_argument("--runs", type=int, default=3)
    args.add_argument("--f32-cache", action="store_true")
    args = args.parse_args()
    lib.llama_log_set(silent, None)
    if args.quantize:
        quantize(args.quantize[0], args.model, args.quantize[1], args.threads)
        return
    lengths = lambda text: [int(n) for n in text.split(",") if n]
    runner = Runner(args.model, args.threads, 2304, args.batch, args.f32_cache)
    runner.prefill(64)
    runner.generate(16, 4)
    median = lambda f: statistics.median(f() for _ in range(args.runs))
    print(json.dumps({
        "llama_cpp_python": llama_cpp.__version__,
        "prefill": {n: median(lambda: runner.prefill(n)) for n in lengths(args.prefill)},
        "decode": {n: median(lambda: runner.generate(n, args.tokens)) for n in lengths(args.decode)},
    }))


if __name__ == "__main__":
    import numpy
    main()
