#!/usr/bin/env python3
"""PyTorch's and PEFT's own training runs, which `optimizer.rs` holds ours against.

    python crates/lorafa-exec/tests/steps/optimizer/expected.py

Needs what examples/export.py needs, whose Llama with adapters this trains: STEPS updates from the same start.
Writes expected.safetensors next to itself:
  batch.<i>::<input>      micro-batches of 2 sequences, some of whose labels do not count; update n is of micro-batch
                          PARTS·n, or of PARTS·n to PARTS·n + PARTS - 1 as one batch where gradients are accumulated
  <run>::loss             the loss of each update, the mean over the labels of its batch
  <run>::grad_norm        what clip_grad_norm_ returned, where it was called
  <run>::param::<name>    what was trained, after the last update

PEFT projects gradients under bf16 autocast where accelerate says that there is bf16, and a CPU always has it: but for the
run lorafa-bf16 it is made to say no, so that the formula shows, not the rounding.
"""
import sys
from pathlib import Path

import peft.optimizers.lorafa as lorafa
import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[4] / "examples"))
import export

STEPS, PARTS, LR = 20, 3, 1e-3
# name: (what trains, PEFT's optimizer, weight decay, norm to clip to, whether parts are accumulated, PEFT's autocast)
RUNS = {
    "full": ("", False, 0.01, None, False, False),
    "clip": ("lora_", False, 0.0, 0.1, False, False),
    "accumulate": ("lora_", False, 0.0, None, True, False),
    "lorafa": ("lora_B", True, 0.1, None, False, False),
    "lorafa-bf16": ("lora_B", True, 0.0, None, False, True),
    "lorafa-clip-accumulate": ("lora_B", True, 0.1, 0.1, True, False),
}


def batches():
    g = torch.Generator().manual_seed(7)
    for i in range(STEPS * PARTS):
        ids = torch.randint(3, export.VOCAB, (export.BATCH, export.SEQ), generator=g)
        mask, labels = torch.ones_like(ids), ids.clone()
        mask[-1, export.SEQ - i % 3:] = 0
        labels[:, :1 + 2 * (i % PARTS)] = -100     # 14, 10 and 6 labels, less what is masked
        labels[mask == 0] = -100
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_of(model, parts):
    """The mean over the labels of all parts, by the logits alone."""
    total, count = 0.0, 0
    for part in parts:
        logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits[:, :-1]
        labels = part["labels"][:, 1:]
        total = total + torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        count += int((labels != -100).sum())
    return total / count


def train(trains, is_peft, decay, clip, accumulates, autocast, micro):
    lorafa.is_bf16_available = lambda: autocast
    model = export.build("llama", True)
    for name, p in model.named_parameters():
        p.requires_grad_(trains in name)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if is_peft:
        optimizer = lorafa.create_lorafa_optimizer(model, r=export.RANK, lora_alpha=export.ALPHA, lr=LR,
                                                   weight_decay=decay)
    else:
        optimizer = torch.optim.AdamW(trained.values(), lr=LR, weight_decay=decay)
    losses, norms = [], []
    for step in range(STEPS):
        parts = micro[step * PARTS:][:PARTS if accumulates else 1]
        optimizer.zero_grad()
        loss = loss_of(model, parts)
        loss.backward()
        if clip:
            norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), clip))
            assert norms[-1] > clip
        optimizer.step()
        losses.append(loss.detach())
    out = {"loss": torch.stack(losses)} | ({"grad_norm": torch.stack(norms)} if clip else {})
    return out | {f"param::{n}": p.detach().clone() for n, p in trained.items()}


def main():
    micro = list(batches())
    tensors = {f"batch.{i}::{k}": v for i, batch in enumerate(micro) for k, v in batch.items()}
    for run, (trains, *options) in RUNS.items():
        found = train(trains, *options, micro)
        print(run, float(found["loss"][0]), float(found["loss"][-1]), len(found))
        tensors |= {f"{run}::{k}": v for k, v in found.items()}
    save_file(tensors, HERE / "expected.safetensors")


if __name__ == "__main__":
    main()
