"""Turns a llama-architecture GGUF into an ordinary f32 Hugging Face directory.

    python tests/python/gguf_to_hf.py MODEL.gguf OUT_DIR

A second opinion on `cinder export --dense`: it shares no code with the Rust reader
(gguf-py dequantises). bench_pytorch.py and check_export.py read what it writes.
No tokenizer files are written.
"""

import argparse

import gguf
import numpy as np
import torch
import transformers
from gguf.quants import dequantize

from make_goldens import gguf_name, unpermute


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("gguf")
    args.add_argument("out")
    args = args.parse_args()

    reader = gguf.GGUFReader(args.gguf)

    def field(key):
        return reader.fields[key].contents() if key in reader.fields else None

    if field("general.architecture") != "llama" or field("llama.rope.scaling.type"):
        raise SystemExit("only the llama architecture without rope scaling is handled")
    tensors = {t.name: t for t in reader.tensors}
    heads, kv = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    config = transformers.LlamaConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=field("llama.attention.key_length"),
        max_position_embeddings=field("llama.context_length"),
        # The file has it as f32; without rounding, 1e-5 would turn into 9.99999974e-06.
        rms_norm_eps=float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        rope_parameters=dict(rope_type="default", rope_theta=field("llama.rope.freq_base")),
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for key, p in model.named_parameters():
            t = tensors.pop(gguf_name(key))
            data = np.array(dequantize(t.data, t.tensor_type), dtype=np.float32)
            if key.endswith(("q_proj.weight", "k_proj.weight")):
                data = unpermute(data, heads if "q_proj" in key else kv)
            p.copy_(torch.from_numpy(data))
    if tensors:
        raise SystemExit(f"tensors not understood: {sorted(tensors)}")
    model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
