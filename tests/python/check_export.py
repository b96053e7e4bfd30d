"""Reads an exported model with transformers: do others understand what Cinder writes?

    python tests/python/check_export.py EXPORT_DIR --ids ids.json [--logits N] [--greedy N]

ids.json is a list of token ids, a list of such lists, or an object with "ids" (a golden.json;
then its logits are compared as well). Prints one JSON object.
"""

import argparse
import json
import math

import torch
import transformers


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("model")
    args.add_argument("--ids", required=True, help="JSON file")
    args.add_argument("--logits", type=int, default=0, metavar="N",
                      help="print the N largest logits after the last id of each sequence")
    args.add_argument("--greedy", type=int, default=0, metavar="N",
                      help="print N greedily decoded ids after each sequence, not stopping at EOS")
    args.add_argument("--threads", type=int, default=1)
    args = args.parse_args()

    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with open(args.ids) as f:
        data = json.load(f)
    golden = data if isinstance(data, dict) else {"ids": data}
    sequences = golden["ids"]
    if sequences and isinstance(sequences[0], int):
        sequences = [sequences]

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    model.eval()
    result = {"model_type": model.config.model_type,
              # transformers fills a missing tensor with noise and only warns.
              "missing": sorted(map(str, info["missing_keys"])),
              "unexpected": sorted(map(str, info["unexpected_keys"])),
              "sequences": []}
    nll, predicted = 0.0, 0
    with torch.inference_mode():
        for ids in sequences:
            tokens = torch.tensor([ids])
            logits = model(tokens, use_cache=False).logits[0]
            entry = {"tokens": len(ids)}
            if len(ids) > 1:
                loss = torch.nn.functional.cross_entropy(
                    logits[:-1].double(), tokens[0, 1:], reduction="sum").item()
                nll, predicted = nll + loss, predicted + len(ids) - 1
                entry["nll"] = loss / (len(ids) - 1)
            if args.logits:
                top = logits[-1].topk(args.logits)
                entry["top"] = [[int(i), round(float(v), 6)]
                                for v, i in zip(top.values, top.indices)]
            if args.greedy:
                out = list(ids)
                for _ in range(args.greedy):
                    out.append(int(model(torch.tensor([out]), use_cache=False).logits[0, -1].argmax()))
                entry["greedy"] = out[len(ids):]
            result["sequences"].append(entry)
        if "logits" in golden:
            rows = golden.get("positions", range(len(golden["logits"])))
            worst = (logits[list(rows)] - torch.tensor(golden["logits"])).abs().max()
            result["golden_max_abs_diff"] = float(worst)
    if predicted:
        result["nll"] = nll / predicted
        result["perplexity"] = math.exp(nll / predicted)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
