#!/usr/bin/env python3
"""Trains the example models with adapters in PyTorch, to hold our training against.

    python examples/runs.py [--out DIR] [FAMILY...]

Needs what export.py needs. Three runs of 20 updates from the same start on the same batches, without dropout:
  lora-adamw     A and B, torch.optim.AdamW
  lorafa-adamw   B alone, torch.optim.AdamW
  lorafa-peft    B and modules_to_save, PEFT's create_lorafa_optimizer, whose products bf16 autocast rounds

Writes for each family
  <family>-train.json          the learning rate and, for each run, the loss of every update
  <family>-train.safetensors   batch.<i>::<input>, and <run>::<adapter parameter> as it was in the end, where it was trained
"""
import argparse
import json
from pathlib import Path

import export
import torch
from peft.optimizers import create_lorafa_optimizer
from safetensors.torch import save_file

STEPS, LR = 20, 1e-3
FAMILIES = ("llama", "llamagqa", "qwen2", "gpt2", "roberta", "t5")


def batches(family):
    g = torch.Generator().manual_seed(7)
    base = export.inputs(family, True)
    for _ in range(STEPS):
        ids = torch.randint(3, export.VOCAB, base["input_ids"].shape, generator=g)
        labels = ids
        if family == "t5":
            labels = torch.randint(3, export.VOCAB, base["labels"].shape, generator=g)
        elif family == "roberta":
            labels = torch.randint(0, 3, base["labels"].shape, generator=g)
        yield {k: v.clone() for k, v in (base | {"input_ids": ids, "labels": labels}).items()}


def train(family, run):
    model = export.build(family, True)
    if run == "lorafa-peft":
        optimizer = create_lorafa_optimizer(model, r=export.RANK, lora_alpha=export.ALPHA, lr=LR, weight_decay=0.0)
    else:
        for name, p in model.named_parameters():
            p.requires_grad_("lora_B" in name or ("lora_A" in name and run == "lora-adamw"))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LR, eps=1e-6, weight_decay=0.0)
    losses = []
    for batch in batches(family):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    trained = {n: p.detach() for n, p in model.named_parameters() if "lora_" in n and p.requires_grad}
    return losses, {f"{run}::{n}": p.contiguous() for n, p in trained.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=FAMILIES)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = parser.parse_args()
    for family in args.families:
        methods = {}
        tensors = {f"batch.{i}::{k}": v for i, batch in enumerate(batches(family)) for k, v in batch.items()}
        for run in ("lora-adamw", "lorafa-adamw", "lorafa-peft"):
            methods[run], trained = train(family, run)
            tensors |= trained
        stem = args.out / f"{family}-train"
        stem.with_suffix(".json").write_text(json.dumps({"lr": LR, "methods": methods}, indent=1) + "\n")
        save_file(tensors, stem.with_suffix(".safetensors"))
        print(family, {run: (losses[0], losses[-1]) for run, losses in methods.items()})


if __name__ == "__main__":
    main()
