"""What `backward_speed.rs` does, in PyTorch: forward and back in f32, gradients of projections' outputs only.

    python backward_speed.py HF_DIRECTORY [WINDOWS] [TOKENS] [THREADS]
"""
import sys
import time

import torch
from transformers import AutoModelForCausalLM

path = sys.argv[1]
windows, tokens, threads = (int(a) for a in (sys.argv[2:] + ["8", "512", "2"][len(sys.argv) - 2 :]))
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
model.requires_grad_(False)
seen = 0


def keep(module, inputs, output):
    def gradient(g):
        global seen
        seen += 1

    output.register_hook(gradient)


for layer in model.model.layers:
    attention, mlp = layer.self_attn, layer.mlp
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        projection.register_forward_hook(keep)
    for projection in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        projection.register_forward_hook(keep)

vocab = model.config.vocab_size
text = [[(w * 7919 + i * 104_729 + i * i * 31) % vocab for i in range(tokens)] for w in range(windows)]
loss, norm, start = 0.0, None, time.time()
forward = 0.0
for ids in text:
    ids = torch.tensor([ids])
    before = time.time()
    embedded = model.model.embed_tokens(ids).requires_grad_(True)
    logits = model(inputs_embeds=embedded, use_cache=False).logits[0]
    of_window = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum")
    forward += time.time() - before
    loss += of_window.item()
    of_window.backward()
    if norm is None:
        norm = embedded.grad.norm().item()
all = time.time() - start
assert seen == 7 * windows * len(model.model.layers)
print(
    f"torch  {windows * tokens / all:.1f} tokens/s: {all:.2f} s = forward and loss {forward:.2f} + back {all - forward:.2f}; "
    f"loss {loss / windows / (tokens - 1):.6f}, gradient of the first window {norm:.6e}"
)
