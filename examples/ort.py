#!/usr/bin/env python3
"""Makes ort/: training graphs of onnxruntime-training, and its answers for them.

    python examples/ort.py [--out DIR]

Python 3.11, from PyPI: pip install 'numpy<2' onnx==1.16.2 onnxruntime-training-cpu==1.19.2 transformers==4.44.2 safetensors
                        pip install --no-deps peft==0.12.0 accelerate==0.33.0 torch==2.4.1   (+ what torch 2.4.1 needs)
These are the last versions that work together: onnxruntime-training 1.19.2 is the last there is.

For each family, with LoRA's A trained (`<family>-lora`) and frozen from the start (`<family>-lora-fa`), what
`generate_artifacts` writes, the checkpoint of Llama alone; and from both, in <family>-lora.expected.safetensors:
  input::*                 a batch
  param::*, updated::*     every weight, and those that train after one update
  loss, grad::*            of the batch; LoRA-FA's are the same bits
  losses, losses-lora-fa   of five updates on the batch, learning rate 1e-3
"""
import argparse
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
import numpy as np
import onnx
import torch
import transformers as hf
from onnxruntime.training import artifacts
from onnxruntime.training.api import CheckpointState, Module, Optimizer
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file

BATCH, SEQ, VOCAB, RANK, ALPHA, LR, UPDATES = 2, 12, 100, 8, 16, 1e-3, 5
# Up to opset 16 the exporter takes LayerNorm apart, and onnxruntime puts it together with the three results that its gradient
# reads. From 17 on there is one result, and onnxruntime fails.
OPSET = {"llama": 17, "roberta": 16, "gpt2": 16, "t5": 17}
FORMS = ("lora", "lora-fa")
FILES = ("training_model.onnx", "optimizer_model.onnx")


def build(family):
    if family == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, use_cache=False, attn_implementation="eager",
            tie_word_embeddings=False, attention_dropout=0.0)), "CAUSAL_LM"
    if family == "roberta":
        return hf.RobertaForSequenceClassification(hf.RobertaConfig(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, type_vocab_size=1, num_labels=3, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, attn_implementation="eager", pad_token_id=1)), "SEQ_CLS"
    if family == "t5":      # small: its graph is large
        return hf.T5ForConditionalGeneration(hf.T5Config(
            vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, dropout_rate=0.0, use_cache=False,
            decoder_start_token_id=0)), "SEQ_2_SEQ_LM"
    return hf.GPT2LMHeadModel(hf.GPT2Config(
        vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=64, use_cache=False, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="eager")), "CAUSAL_LM"


def batch(family):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (BATCH, SEQ), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, SEQ - 4:] = 0
    ids[1, SEQ - 4:] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if family == "t5":
        labels = torch.randint(3, VOCAB, (BATCH, SEQ - 2), generator=generator)
        labels[0, -2:] = -100
        first = torch.zeros(BATCH, 1, dtype=torch.long)
        inputs["decoder_input_ids"] = torch.cat([first, labels[:, :-1].clamp(min=0)], 1)
    else:
        labels = torch.tensor([0, 2]) if family == "roberta" else ids.masked_fill(mask == 0, -100)
    return inputs | {"labels": labels}


class Wrapper(torch.nn.Module):
    """The adapted model as a function of tensors: the loss and the logits, or for a classifier the logits alone."""

    def __init__(self, family, frozen):
        super().__init__()
        torch.manual_seed(0)
        model, task = build(family)
        self.m = get_peft_model(model, LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules="all-linear", lora_dropout=0.0, task_type=task,
            fan_in_fan_out=family == "gpt2"))
        torch.manual_seed(7)
        for name, parameter in self.m.named_parameters():
            if "lora_B" in name:        # not zero: A's gradient would be
                torch.nn.init.normal_(parameter, 0, 0.05)
            if frozen and "lora_A" in name:
                parameter.requires_grad_(False)

    def forward(self, input_ids, attention_mask, *rest):
        names = {0: (), 1: ("labels",), 2: ("decoder_input_ids", "labels")}[len(rest)]
        given = dict(zip(names, rest))
        result = self.m(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **given)
        return (result.loss, result.logits) if rest else result.logits


def make(family, frozen, folder):
    """Writes artifacts into a folder; the weights, gradients and updated weights by name, and the losses."""
    model = Wrapper(family, frozen).train()
    inputs = batch(family)
    classifies = family == "roberta"        # whose loss onnxruntime attaches
    names = [n for n in inputs if not (classifies and n == "labels")]
    outputs = ["logits"] if classifies else ["loss", "logits"]
    dynamic = None
    if family in ("gpt2", "t5"):
        target = ("decoder_input_ids", "labels", "logits") if family == "t5" else ()
        dynamic = {n: {0: "batch", 1: "tgt_seq" if n in target else "seq"} for n in [*names, "logits"]}
    forward = folder / "forward.onnx"
    torch.onnx.export(model, tuple(inputs[n] for n in names), str(forward), input_names=names, output_names=outputs,
                      opset_version=OPSET[family], training=torch.onnx.TrainingMode.TRAINING,
                      do_constant_folding=False, dynamic_axes=dynamic)
    graph = onnx.load(forward)
    trains = {n: p.requires_grad for n, p in model.named_parameters()}
    weights = [t.name for t in graph.graph.initializer if t.name in trains]
    artifacts.generate_artifacts(
        graph, requires_grad=[n for n in weights if trains[n]], frozen_params=[n for n in weights if not trains[n]],
        loss=artifacts.LossType.CrossEntropyLoss if classifies else None, optimizer=artifacts.OptimType.AdamW,
        artifact_directory=str(folder), additional_output_names=["logits"] if classifies else None)

    state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
    module = Module(str(folder / FILES[0]), state, str(folder / "eval_model.onnx"), device="cpu")
    optimizer = Optimizer(str(folder / FILES[1]), module)
    optimizer.set_learning_rate(LR)
    feeds = [inputs[i.name].numpy() for i in onnx.load(folder / FILES[0]).graph.input if i.name in inputs]
    values = {f"param::{n}": p.data.copy() for n, p in state.parameters}
    losses = []
    module.train()
    for update in range(UPDATES):
        result = module(*feeds)
        losses.append(np.asarray(result[0] if isinstance(result, tuple) else result).reshape(-1)[0])
        if update == 0:
            values |= {f"grad::{n}": p.grad.copy() for n, p in state.parameters if p.requires_grad}
        optimizer.step()
        module.lazy_reset_grad()
        if update == 0:
            values |= {f"updated::{n}": p.data.copy() for n, p in state.parameters if p.requires_grad}
    return values, np.array(losses, np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "ort")
    out = parser.parse_args().out
    for family in OPSET:
        made = {}
        for form in FORMS:
            with tempfile.TemporaryDirectory() as folder:
                made[form] = make(family, form == "lora-fa", Path(folder))
                if (family, form) == ("t5", "lora-fa"):
                    continue        # its numbers will do
                to = out / f"{family}-{form}"
                to.mkdir(parents=True, exist_ok=True)
                checkpoint = ["checkpoint"] if (family, form) == ("llama", "lora") else []
                for file in [*FILES, *checkpoint]:
                    shutil.copyfile(Path(folder, file), to / file)
        (values, losses), (frozen, frozen_losses) = made["lora"], made["lora-fa"]
        for name, value in frozen.items():
            assert np.array_equal(value, values[name]), name
        values |= {f"input::{n}": t.numpy() for n, t in batch(family).items()}
        values |= {"loss": losses[0].reshape(()), "losses": losses, "losses-lora-fa": frozen_losses}
        save_file({n: np.ascontiguousarray(values[n]) for n in sorted(values)},
                  str(out / f"{family}-lora.expected.safetensors"))
        print(family, losses, frozen_losses)


if __name__ == "__main__":
    main()
