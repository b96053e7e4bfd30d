r"""Writes the reference outputs under tests/goldens/ that the Rust tests compare against.

Run by hand (never by the test suite), from the repository root:

    python tests/python/gguf_to_hf.py SmolLM2-135M-Instruct.Q4_1.gguf SMOLLM2_DIR
    python tests/python/make_goldens.py \
        --smollm2-gguf SmolLM2-135M-Instruct.Q4_1.gguf --smollm2-hf SMOLLM2_DIR

Last run with Python 3.11.7, torch 2.15.0, transformers 5.23.0, tokenizers 0.23.3,
sentencepiece 0.2.3, gguf 0.19.0, safetensors 0.8.0, numpy 2.4.6. All randomness is seeded,
so a rerun with the same versions must leave `git status` clean.

Without --smollm2-gguf the "smollm2" part of tokenizer/cases.json is carried over unchanged;
without both options so is smollm2-135m-q4_1.json.
"""

import argparse
import hashlib
import io
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import sentencepiece as spm
import torch
import transformers
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, trainers)

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
QT = gguf.GGMLQuantizationType

# --------------------------------------------------------------------------------------
# Vocabularies

# Lower-case and without digits on purpose: the SentencePiece vocabulary has room for about
# sixty pieces beyond the bytes, and everything missing here exercises byte fallback.
CORPUS = """
the small model warms the room while the ember in the grate burns low
a pruned layer keeps the shape of the signal and drops the rest of the noise
we measure the error of every block before we decide what the block is worth
when the budget is tight, the narrow heads are the first to leave the stage
it is the quiet weights that carry the meaning, not the loud ones
the reader asks for a number and the tool answers with a table
no training, no gradients, only the statistics of a few thousand tokens
they would rather quantise the keys than lose another row of values
an average over the batch hides the one example that breaks the kernel
just as coal turns to cinder, a model turns to a smaller model when it is heated
zero is a fine value for a weight, provided that somebody else takes its job
the extra query waits in the queue until the matrix is ready to be read
we kept the vowels, we lost the vowels, and the sentence could still be read
lines of code are cheap, lines of evidence are not
""".strip().split("\n")

# Only for the byte-level vocabulary: multi-byte characters, digits and code.
CORPUS_BYTES = CORPUS + [
    "naïve café déjà vu, naïve café",
    "in 2026 there were 2026 runs and 2025 repeats of 1063",
    "it's what we'll say, it's what they'll say",
]

# Merges that only fire if the pre-tokenizer cuts in the right places. Several of them span
# a boundary that one regex keeps and another one breaks (digits in groups or alone, a space
# before a digit, upper-case contractions), some span one that every regex keeps.
PROBE_MERGES = [
    ("2", "0"), ("20", "2"), ("202", "6"), ("1", "0"), ("Ġ", "2"), ("Ġ", "1"), (",", "1"),
    ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("Ġ", "Ċ"), ("!", "Ċ"), ("'", "s"), ("'", "L"),
    ("L", "L"), ("'L", "L"), ("(", "x"), ("(", ")"), ("e", "Ġ"), (".", "a"),
]

# In the vocabulary, but not reachable by any merge: found only by tokenizers that look the
# whole word up first (`ignore_merges`, which the Llama 3 tokenizer sets and Qwen2's does not).
UNMERGED_TOKEN = "Ġcinder"

QWEN2_REGEX = transformers.models.qwen2.tokenization_qwen2.PRETOKENIZE_REGEX
# Llama 3 differs from Qwen2 only in taking digits in groups of up to three.
LLAMA3_REGEX = QWEN2_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
assert LLAMA3_REGEX != QWEN2_REGEX

QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB = 320  # of every family that also becomes a GGUF

NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = (
    gguf.TokenType.NORMAL, gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL,
    gguf.TokenType.UNUSED, gguf.TokenType.BYTE)


def byte_level_vocab():
    """Tokens, types and merges of the vocabulary shared by tiny-qwen2 and tiny-qwen3."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    budget = VOCAB - 4 - len(QWEN_SPECIALS) - 1  # four padding rows, as Qwen pads its table
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizer("llama-bpe")
    trained.train_from_iterator(CORPUS_BYTES, trainers.BpeTrainer(
        vocab_size=budget, initial_alphabet=alphabet, show_progress=False))
    merges = [tuple(m) for m in json.loads(trained.to_str())["model"]["merges"]]
    # Probes replace the rarest trained merges.
    room = budget - len(alphabet)
    probes = [m for m in PROBE_MERGES if m not in merges[: room - len(PROBE_MERGES)]]
    merges = merges[: room - len(probes)] + probes
    tokens = alphabet + [a + b for a, b in merges] + [UNMERGED_TOKEN]
    assert all(a in tokens and b in tokens for a, b in merges)
    types = [NORMAL] * len(tokens) + [CONTROL] * len(QWEN_SPECIALS)
    tokens += QWEN_SPECIALS
    while len(tokens) < VOCAB:
        types.append(UNUSED)
        tokens.append(f"[PAD{len(tokens)}]")
    assert len(tokens) == VOCAB and len(set(tokens)) == VOCAB
    return {"tokens": tokens, "types": [int(t) for t in types],
            "merges": [f"{a} {b}" for a, b in merges]}


def pre_tokenizer(pre):
    if pre == "smollm":
        return pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    regex = {"qwen2": QWEN2_REGEX, "llama-bpe": LLAMA3_REGEX}[pre]
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(regex), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level_tokenizer(vocab, pre):
    ids = {t: i for i, t in enumerate(vocab["tokens"])}
    merges = [tuple(m.split(" ")) for m in vocab["merges"]]
    tok = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizer(pre)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([
        AddedToken(t, special=True, normalized=False)
        for t, kind in zip(vocab["tokens"], vocab["types"]) if kind == CONTROL])
    assert tok.get_vocab_size() == len(vocab["tokens"])
    return tok


def sentencepiece_vocab():
    """A real SentencePiece BPE model with Llama 2's settings."""
    blob = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=blob, model_type="bpe", vocab_size=VOCAB,
        byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=True,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True,
        character_coverage=1.0, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1,
        minloglevel=2)
    sp = spm.SentencePieceProcessor(model_proto=blob.getvalue())
    assert sp.get_piece_size() == VOCAB
    types = [UNKNOWN if sp.is_unknown(i) else CONTROL if sp.is_control(i)
             else BYTE if sp.is_byte(i) else NORMAL for i in range(VOCAB)]
    return sp, {"tokens": [sp.id_to_piece(i) for i in range(VOCAB)],
                "types": [int(t) for t in types],
                "scores": [sp.get_score(i) for i in range(VOCAB)]}


TEXTS = [
    "",
    " ",
    "     ",
    "  two leading, two trailing  ",
    "several   spaces    inside",
    "\n",
    "a\n\nb\n \n  c\r\n\r\nd",
    "tabs\t\tand \t mixed",
    "the ember burns low, we'll say.",
    "2026 1,063 x20261063 3.14159 -7 ½ Ⅻ ٣٤",
    "It's we'LL THEY'VE i'd 'tis o''clock",
    "fn main() {\n    let (x, y) = (1 << 20, !0u8);\n\tprintln!(\"{x:?}\\n\");\n}\n",
    "emoji 🙂🔥 👍🏽 and 👩‍👩‍👧",
    "中文字符，测试。日本語テキスト 한국어",
    "naïve café Ångström Žižek",
    "Привет, мир! שלום עולם مرحبا",
    "zero\u200dwidth\u200bjoin \u00a0nbsp \u3000wide\ufeff",
    "nul \u0000 and bell \u0007",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "not special: <|im_start <|im_end |> [PAD317]",
    "<|endoftext|><|endoftext|> x",
    " cinder cinder Cinder",
    "https://example.org/a_b?c=d&e=%20#f",
    "!!!\n... --- ;;;)\n\n(()) ()",
    "ſtrange caſe: '\u017f",
]
# Only for tokenizers that normalise to NFC: the same word spelt with a combining accent.
TEXT_DECOMPOSED = "cafe\u0301 e\u0301te\u0301"
# SentencePiece writes a space as U+2581, so a literal one decodes to a space.
TEXT_META = "a\u2581b \u2581 c"


def bpe_cases(tok, extra=()):
    out = []
    for text in TEXTS + list(extra):
        ids = tok.encode(text, add_special_tokens=False).ids
        out.append({"text": text, "ids": ids,
                    "decoded": tok.decode(ids, skip_special_tokens=False)})
    return out


def smollm2_vocab(path):
    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    assert get("pre") == "smollm"
    return {"tokens": get("tokens"), "types": get("token_type"), "merges": get("merges")}


def write_tokenizer_cases(smollm2_gguf, bpe, sp):
    path = GOLDENS / "tokenizer" / "cases.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    out = {}
    if smollm2_gguf:
        tok = byte_level_tokenizer(smollm2_vocab(smollm2_gguf), "smollm")
        out["smollm2"] = {"gguf": None, "model": "gpt2", "pre": "smollm", "bos": None,
                          "cases": bpe_cases(tok)}
    elif path.exists():
        out["smollm2"] = json.loads(path.read_text())["smollm2"]
    out["qwen2"] = {"gguf": "gguf/tiny-qwen2.gguf", "model": "gpt2", "pre": "qwen2", "bos": None,
                    "normalizer": "NFC",
                    "cases": bpe_cases(byte_level_tokenizer(bpe, "qwen2"), [TEXT_DECOMPOSED])}
    # No BOS id: the shared vocabulary has none, though real Llama 3 files do.
    out["llama-bpe"] = {"gguf": "gguf/tiny-qwen2.gguf", "model": "gpt2", "pre": "llama-bpe",
                        "bos": None, "ignore_merges": True,
                        "cases": bpe_cases(byte_level_tokenizer(bpe, "llama-bpe"))}
    out["llama-spm"] = {
        "gguf": "gguf/tiny-llama.gguf", "model": "llama", "pre": "default", "bos": sp.bos_id(),
        "cases": [{"text": t, "ids": sp.encode(t), "decoded": sp.decode(sp.encode(t))}
                  for t in TEXTS + [TEXT_META]]}
    # One case a line: diffs of a rerun stay readable.
    parts = []
    for name, vocab in out.items():
        head = json.dumps({k: v for k, v in vocab.items() if k != "cases"}, separators=(",", ":"))
        cases = ",\n".join(json.dumps(c, separators=(",", ":")) for c in vocab["cases"])
        parts.append(f'"{name}":{head[:-1]},"cases":[\n{cases}\n]}}')
    path.write_text("{" + ",\n".join(parts) + "}\n")
    return out


# --------------------------------------------------------------------------------------
# Model families

BASE = dict(num_hidden_layers=2, attention_dropout=0.0, bos_token_id=1, eos_token_id=2,
            max_position_embeddings=256)
SMALL = dict(vocab_size=48, hidden_size=32, num_attention_heads=4, num_key_value_heads=2)

# Head dimensions are at least 8: with 4, the rotary row permutation of GGUF is its own
# inverse and a reader that applies it in the wrong direction would pass.
FAMILIES = {
    "llama2": dict(
        cls="Llama", dtype="float32", positions=[0, 7, 23],
        config=dict(vocab_size=VOCAB, hidden_size=16, num_attention_heads=2,
                    num_key_value_heads=2, intermediate_size=24, rms_norm_eps=1e-5,
                    tie_word_embeddings=False)),
    "llama3": dict(
        cls="Llama", dtype="bfloat16",
        # theta 200 puts one frequency above, one inside and two below the smoothed band.
        config=dict(**SMALL, intermediate_size=48, rms_norm_eps=1e-5, tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="llama3", rope_theta=200.0, factor=8.0,
                                         low_freq_factor=1.0, high_freq_factor=4.0,
                                         original_max_position_embeddings=32))),
    "smollm2": dict(
        cls="Llama", dtype="float32", max_shard_size="24KB",
        # Odd head counts, as the real 135M model has (9 over 3).
        config=dict(vocab_size=48, hidden_size=24, num_attention_heads=3, num_key_value_heads=1,
                    intermediate_size=40, rms_norm_eps=1e-5, tie_word_embeddings=True,
                    rope_parameters=dict(rope_type="default", rope_theta=100000.0))),
    "mistral": dict(
        cls="Mistral", dtype="float16",
        config=dict(**SMALL, head_dim=12, intermediate_size=40, rms_norm_eps=1e-5,
                    tie_word_embeddings=False, sliding_window=None,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "qwen2": dict(
        cls="Qwen2", dtype="bfloat16", positions=[0, 7, 23],
        config=dict(**(SMALL | dict(vocab_size=VOCAB)), intermediate_size=32, rms_norm_eps=1e-6,
                    tie_word_embeddings=True, use_sliding_window=False,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "qwen3": dict(
        cls="Qwen3", dtype="float16", positions=[0, 7, 23],
        config=dict(vocab_size=VOCAB, hidden_size=16, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=8, intermediate_size=24, rms_norm_eps=1e-6,
                    tie_word_embeddings=False, attention_bias=False, use_sliding_window=False,
                    rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "llama_linear": dict(
        cls="Llama", dtype="float32",
        config=dict(vocab_size=48, hidden_size=16, num_attention_heads=2, num_key_value_heads=1,
                    intermediate_size=32, rms_norm_eps=1e-5, tie_word_embeddings=False,
                    rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0))),
}

# Matrices that tiny-llama.gguf stores in F16; the family's own values are rounded to match,
# so the same golden holds for the f32 safetensors and for the GGUF.
LLAMA2_F16 = ("embed_tokens.weight", "v_proj.weight", "o_proj.weight", "down_proj.weight")

N_IDS, N_PROMPT, N_GREEDY = 24, 8, 16
# Where logits are written down: the committed files have a size budget.
POSITIONS = [0, 1, 2, 3, 5, 7, 9, 11, 14, 17, 20, 23]


def randomise(model, gen, name):
    with torch.no_grad():
        for key, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=gen)
            if key.endswith("norm.weight"):
                value = 1.0 + 0.2 * noise
            elif key.endswith(".bias"):
                value = 0.3 * noise
            else:
                value = 0.2 * noise
            if name == "llama2" and key.endswith(LLAMA2_F16):
                value = value.half().float()
            p.copy_(value)


def load(path, **kwargs):
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", **kwargs).eval()


def logits_of(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def greedy_of(model, ids):
    """Greedy continuation (no stop at EOS), and the smallest lead of a winner."""
    ids, lead = list(ids), float("inf")
    for _ in range(N_GREEDY):
        top = logits_of(model, ids)[-1].topk(2)
        lead = min(lead, float(top.values[0] - top.values[1]))
        ids.append(int(top.indices[0]))
    return ids[-N_GREEDY:], lead


def prompt_ids(gen, vocab):
    ids = torch.randint(0, vocab, (N_IDS,), generator=gen).tolist()
    ids[0] = 1
    ids[5] = ids[4]  # a repeat next to itself
    ids[12:16] = ids[2:6]  # and a phrase that comes back
    ids[23] = ids[7]
    return ids


def write_family(name, spec):
    path = GOLDENS / "families" / name
    cls = getattr(transformers, spec["cls"] + "ForCausalLM")
    config = getattr(transformers, spec["cls"] + "Config")(**BASE, **spec["config"])
    # Take the first seed whose greedy path is neither a tie waiting to flip between two
    # implementations' rounding nor a loop over one or two tokens.
    for seed in range(1000):
        gen = torch.Generator().manual_seed(seed)
        model = cls(config)
        randomise(model, gen, name)
        ids = prompt_ids(gen, config.vocab_size)
        # Cast weight by weight: `model.to(bf16)` would also round the rotary tables.
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.to(getattr(torch, spec["dtype"])).float())
        model.eval()
        model.set_attn_implementation("eager")
        greedy, lead = greedy_of(model, ids[:N_PROMPT])
        if lead > 0.02 and len(set(greedy)) >= 7:
            break
    else:
        raise SystemExit(f"{name}: no seed gives a stable greedy path")

    shutil.rmtree(path, ignore_errors=True)
    model.to(getattr(torch, spec["dtype"])).save_pretrained(
        path, max_shard_size=spec.get("max_shard_size", "1GB"))
    # Only the loader's view of the files counts, so everything below comes from them.
    model = load(path)
    logits = logits_of(model, ids)
    assert greedy_of(model, ids[:N_PROMPT])[0] == greedy
    positions = spec.get("positions", POSITIONS)
    golden = {
        "ids": ids,
        "positions": positions,
        "logits": [[round(x, 6) for x in logits[p].tolist()] for p in positions],
        "greedy": greedy,
    }
    (path / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")

    scaling = spec["config"].get("rope_parameters", {})
    if scaling.get("rope_type", "default") != "default":
        write_v4_config(path, scaling, logits, ids)
        check_scaling_matters(path, logits, ids, scaling)
    print(f"{name:13} seed {seed:3} greedy lead {lead:.3f} logit std {logits.std():.2f}")
    return model, logits, ids


def write_v4_config(path, scaling, logits, ids):
    """The same config spelt as transformers 4 spelt it, which most published models still use."""
    config = json.loads((path / "config.json").read_text())
    del config["rope_parameters"]
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.47.0"
    config["rope_theta"] = scaling["rope_theta"]
    config["rope_scaling"] = {k: v for k, v in scaling.items() if k != "rope_theta"}
    (path / "config_v4.json").write_text(json.dumps(config, indent=2) + "\n")
    old = transformers.LlamaConfig.from_dict(config)
    assert torch.equal(logits_of(load(path, config=old), ids), logits)


def check_scaling_matters(path, logits, ids, scaling):
    plain = transformers.AutoConfig.from_pretrained(path)
    plain.rope_parameters = dict(rope_type="default", rope_theta=scaling["rope_theta"])
    worst = (logits_of(load(path, config=plain), ids) - logits).abs().max()
    assert worst > 0.1, f"{path.name}: rope scaling moves the logits by {worst} only"


# --------------------------------------------------------------------------------------
# GGUF models

TENSOR_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(hf):
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight":
           "output_norm.weight", "lm_head.weight": "output.weight"}
    if hf in top:
        return top[hf]
    _, _, layer, rest = hf.split(".", 3)
    stem, suffix = rest.rsplit(".", 1)
    return f"blk.{layer}.{TENSOR_NAMES[stem]}.{suffix}"


def permute(rows, heads):
    """Rotary halves of each head interleaved: GGUF's llama architecture rotates (2i, 2i+1)."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows, heads):
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, arch, family, matrix_type, file_type, tokenizer):
    source = GOLDENS / "families" / family
    config = transformers.AutoConfig.from_pretrained(source)
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    w = gguf.GGUFWriter(path, arch)
    w.add_type("model")
    w.add_name(path.stem)
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_rope_freq_base(config.rope_parameters["rope_theta"])
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    if head_dim * heads != config.hidden_size:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    w.add_file_type(file_type)
    if arch == "llama":  # the converter writes these two for llama only
        w.add_vocab_size(config.vocab_size)
        w.add_rope_dimension_count(head_dim)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    tokenizer(w)
    for key, value in load_file(source / "model.safetensors").items():
        data = value.float().numpy()
        if arch == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            data = permute(data, heads if "q_proj" in key else kv)
        kind = QT.F32 if data.ndim == 1 else matrix_type(key)
        raw = quantize(np.ascontiguousarray(data), kind)
        assert np.array_equal(dequantize(raw, kind), data), f"{key} is not exact as {kind.name}"
        w.add_tensor(gguf_name(key), raw, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def check_gguf(path, arch, family, logits, ids):
    """Reads the file back, undoes the permutation and demands the family's exact logits."""
    reader = gguf.GGUFReader(path)
    source = GOLDENS / "families" / family
    wanted = load_file(source / "model.safetensors")
    hf_of = {gguf_name(k): k for k in wanted}
    state, moved = {}, 0
    for t in reader.tensors:
        key = hf_of.pop(t.name)
        data = np.array(dequantize(t.data, t.tensor_type), dtype=np.float32)
        assert list(reversed(t.shape.tolist())) == list(wanted[key].shape) == list(data.shape)
        if arch == "llama" and ("attn_q." in t.name or "attn_k." in t.name):
            kind = "head_count" if "attn_q" in t.name else "head_count_kv"
            heads = reader.fields[f"{arch}.attention.{kind}"].contents()
            back = unpermute(data, heads)
            # The wrong direction must not pass for the right one.
            moved += not np.array_equal(back, data)
            assert not np.array_equal(permute(data, heads), back)
            data = back
        assert np.array_equal(data, wanted[key].float().numpy()), t.name
        state[key] = torch.from_numpy(data.copy())
    assert not hf_of and (arch != "llama" or moved == 4)
    model = load(source)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    assert torch.equal(logits_of(model, ids), logits), path.name


def write_ggufs(families, bpe, spm_vocab):
    folder = GOLDENS / "gguf"
    folder.mkdir(parents=True, exist_ok=True)

    def spm_tokenizer(w):
        w.add_tokenizer_model("llama")
        w.add_tokenizer_pre("default")
        w.add_token_list([t.encode() for t in spm_vocab["tokens"]])
        w.add_token_scores(spm_vocab["scores"])
        w.add_token_types(spm_vocab["types"])
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_unk_token_id(0)
        w.add_add_bos_token(True)
        w.add_add_eos_token(False)

    def qwen_tokenizer(w):
        ids = {t: i for i, t in enumerate(bpe["tokens"])}
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("qwen2")
        w.add_token_list(bpe["tokens"])
        w.add_token_types(bpe["types"])
        w.add_token_merges(bpe["merges"])
        w.add_eos_token_id(ids["<|im_end|>"])
        w.add_pad_token_id(ids["<|endoftext|>"])
        w.add_bos_token_id(ids["<|endoftext|>"])
        w.add_add_bos_token(False)

    ftype = gguf.LlamaFileType
    plans = [
        ("tiny-llama", "llama", "llama2", ftype.MOSTLY_F16, spm_tokenizer,
         lambda key: QT.F16 if key.endswith(LLAMA2_F16) else QT.F32),
        ("tiny-qwen2", "qwen2", "qwen2", ftype.MOSTLY_BF16, qwen_tokenizer, lambda key: QT.BF16),
        ("tiny-qwen3", "qwen3", "qwen3", ftype.MOSTLY_F16, qwen_tokenizer, lambda key: QT.F16),
    ]
    for stem, arch, family, file_type, tokenizer, matrix_type in plans:
        path = folder / f"{stem}.gguf"
        write_gguf(path, arch, family, matrix_type, file_type, tokenizer)
        _, logits, ids = families[family]
        check_gguf(path, arch, family, logits, ids)


# --------------------------------------------------------------------------------------
# Dequantisation

# Byte offsets of the f16 fields inside one block; random bytes there could be infinities.
F16_FIELDS = {
    QT.Q4_0: [0], QT.Q4_1: [0, 2], QT.Q5_0: [0], QT.Q5_1: [0, 2], QT.Q8_0: [0],
    QT.Q2_K: [80, 82], QT.Q3_K: [108], QT.Q4_K: [0, 2], QT.Q5_K: [0, 2], QT.Q6_K: [208],
}


def dequant_bytes(kind, rng):
    """Two rows of 256 values: random blocks, so that every bit field takes every value."""
    if kind == QT.F32:
        data = (rng.standard_normal((2, 256)) * 0.1).astype(np.float32)
        data[0, :6] = [0.0, -0.0, 1e-45, -1.1754942e-38, 3.4028235e38, 16777217.0]
        return data.view(np.uint8)
    if kind == QT.F16:
        data = (rng.standard_normal((2, 256)) * 0.1).astype(np.float16)
        data[0, :6] = [0.0, -0.0, 6e-8, -6.09e-5, 65504.0, -2.0]
        return data.view(np.uint8)
    if kind == QT.BF16:
        data = quantize((rng.standard_normal((2, 256)) * 0.1).astype(np.float32), kind)
        data.view(np.uint16)[0, :6] = [0x0000, 0x8000, 0x0001, 0x807F, 0x7F7F, 0xC000]
        return data
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (2 * 256 // block, size), dtype=np.uint8)
    for offset in F16_FIELDS[kind]:
        scale = rng.uniform(0.002, 0.05, len(blocks)) * rng.choice([-1, 1], len(blocks))
        scale[0] = 3e-6  # subnormal in f16
        field = scale.astype("<f2").view(np.uint8).reshape(-1, 2)
        blocks[:, offset:offset + 2] = field
    return blocks.reshape(2, -1)


def write_dequant():
    rng = np.random.default_rng(7)
    cases = []
    for kind in [QT.F32, QT.F16, QT.BF16, QT.Q4_0, QT.Q4_1, QT.Q5_0, QT.Q5_1, QT.Q8_0,
                 QT.Q2_K, QT.Q3_K, QT.Q4_K, QT.Q5_K, QT.Q6_K]:
        raw = np.ascontiguousarray(dequant_bytes(kind, rng))
        values = dequantize(raw, kind)
        assert values.shape == (2, 256) and np.isfinite(values).all()
        # Shortest text that reads back as the same f32, also by way of f64 as JSON readers go.
        text = [str(v) for v in values.reshape(-1)]
        back = np.array([float(t) for t in text]).astype(np.float32)
        assert back.tobytes() == values.tobytes()
        cases.append('{"type":"%s","type_id":%d,"shape":[2,256],"raw":"%s",\n"values":[%s]}' % (
            kind.name, int(kind), raw.tobytes().hex(), ",".join(text)))
    path = GOLDENS / "gguf" / "dequant.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[" + ",\n".join(cases) + "]\n")
    json.loads(path.read_text())


# --------------------------------------------------------------------------------------
# The real SmolLM2

REAL_PROMPT = "<|im_start|>user\nName the capital of France.<|im_end|>\n<|im_start|>assistant\n"
REAL_TEXT = (
    "A stove does not care which log it burns first, but the person who feeds it does. "
    "In the same way, a network of 30 layers has no opinion on which of them it could spare; "
    "we have to measure. Take one layer away, read 1,000 sentences, and write down how much "
    "worse the guesses became. Then put it back, and take the next one away.")


def write_real(gguf_path, hf_dir):
    """The published quantised file: no tiny random model shows errors that need depth."""
    tok = byte_level_tokenizer(smollm2_vocab(gguf_path), "smollm")
    model = load(hf_dir)
    prompt, text = tok.encode(REAL_PROMPT).ids, tok.encode(REAL_TEXT).ids
    greedy, lead = greedy_of(model, prompt)
    logits = logits_of(model, prompt)[-1]
    top = logits.topk(10)
    losses = torch.nn.functional.cross_entropy(
        logits_of(model, text)[:-1].double(), torch.tensor(text[1:]), reduction="none")
    golden = {
        "gguf": Path(gguf_path).name,
        "gguf_sha256": hashlib.sha256(Path(gguf_path).read_bytes()).hexdigest(),
        "prompt": REAL_PROMPT, "prompt_ids": prompt, "greedy": greedy,
        "greedy_text": tok.decode(greedy, skip_special_tokens=False),
        "greedy_lead": round(lead, 3),
        "last_top": [[int(i), round(float(v), 5)] for v, i in zip(top.values, top.indices)],
        "text": REAL_TEXT, "text_ids": text, "text_nll": round(float(losses.mean()), 6),
        "text_perplexity": round(float(losses.mean().exp()), 5),
    }
    path = GOLDENS / "smollm2-135m-q4_1.json"
    path.write_text(json.dumps(golden, indent=1) + "\n")


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--smollm2-gguf", help="a SmolLM2 GGUF, for its vocabulary")
    args.add_argument("--smollm2-hf", help="what gguf_to_hf.py made of the same file")
    args = args.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    bpe = byte_level_vocab()
    sp, spm_vocab = sentencepiece_vocab()
    families = {name: write_family(name, spec) for name, spec in FAMILIES.items()}
    write_ggufs(families, bpe, spm_vocab)
    write_dequant()
    write_tokenizer_cases(args.smollm2_gguf, bpe, sp)
    if args.smollm2_gguf and args.smollm2_hf:
        write_real(args.smollm2_gguf, args.smollm2_hf)

    files = sorted(p for p in GOLDENS.rglob("*") if p.is_file())
    for p in files:
        print(f"{p.stat().st_size:8} {p.relative_to(GOLDENS)}")
    print(f"{sum(p.stat().st_size for p in files):8} total")


if __name__ == "__main__":
    main()
