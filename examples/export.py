#!/usr/bin/env python3
"""Makes the models of this folder and PyTorch's answers for them.

    python examples/export.py [--out DIR] [REGEX]

Needs torch 2.11.0, transformers 5.17.0, peft 0.21.2, onnx 1.23.2, onnxscript 0.7.2, safetensors, onnxruntime.
Architectures come from Hugging Face, weights are random (fixed seeds), nothing is downloaded.

Writes NAME.onnx for each row of CASES, into joint/ those that hold forward and backward pass, and, for each family,
  <family>-{lora,plain}[-zeroB][-nomask].expected.safetensors   input::*, loss, logits, grad::<every parameter>
  <family>-inject.expected.safetensors   PEFT adapters put on the plain model, A at PEFT's default init, B zero:
                                         param::<lora_A>, input::*, loss, logits, grad::<every trained parameter>
in fp32, without dropout, by autograd. They hold for every eval fp32 graph of the family (and of that suffix).

What PEFT 0.21.2 adapts with `all-linear`: every Linear and Conv1D except the output embedding (`lm_head`, also T5's).
T5: q k v o of encoder, decoder and cross attention, wi and wo; `relative_attention_bias` is an Embedding. RoBERTa with
SEQ_CLS: everything under `roberta.`; the task type adds `classifier` and `score` to modules_to_save, and nothing at or
below one of those is ever adapted, so `classifier.dense` and `classifier.out_proj` train in full, without adapters.
"""
import argparse
import io
import json
import logging
import os
import re
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")
import onnx
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

hf.logging.set_verbosity_error()
logging.getLogger("torch.onnx").setLevel(logging.ERROR)

RANK, ALPHA, VOCAB, BATCH, SEQ, TGT, POSITIONS = 4, 8, 64, 2, 8, 6, 32
DECODER = dict(hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB,
               max_position_embeddings=POSITIONS, use_cache=False, bos_token_id=1, eos_token_id=2)
FAMILIES = {
    "llama": (hf.LlamaForCausalLM, lambda: hf.LlamaConfig(num_key_value_heads=4, **DECODER)),
    "llamagqa": (hf.LlamaForCausalLM, lambda: hf.LlamaConfig(num_key_value_heads=2, **DECODER)),
    "qwen2": (hf.Qwen2ForCausalLM, lambda: hf.Qwen2Config(num_key_value_heads=2, **DECODER)),
    "gpt2": (hf.GPT2LMHeadModel, lambda: hf.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_inner=88, vocab_size=VOCAB, n_positions=POSITIONS, use_cache=False,
        bos_token_id=0, eos_token_id=0)),
    "roberta": (hf.RobertaForSequenceClassification, lambda: hf.RobertaConfig(
        hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB,
        max_position_embeddings=POSITIONS + 2, num_labels=3, type_vocab_size=1)),
    "t5": (hf.T5ForConditionalGeneration, lambda: hf.T5Config(
        d_model=32, d_kv=8, d_ff=88, num_layers=2, num_heads=4, vocab_size=VOCAB, use_cache=False,
        decoder_start_token_id=0, pad_token_id=0, feed_forward_proj="relu", tie_word_embeddings=True)),
}
STACK_TRACE = "pkg.torch.onnx.stack_trace"
DEBUG = ("namespace", "pkg.torch.onnx.fx_node")     # namespace is name_scopes and class_hierarchy, joined
JOINT_DEBUG = ("pkg.torch.onnx.class_hierarchy",)     # names the function above, and no module
TASK = {"roberta": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}


@dataclass(frozen=True)
class Case:
    family: str
    lora: bool = True
    attention: str = "sdpa"
    legacy: bool = False        # the exporter before dynamo
    opt: bool = True            # dynamo: optimize=; legacy: do_constant_folding=
    opset: int | None = None
    bf16: bool = False          # bf16 base, adapters as PEFT leaves them: fp32
    dropout: float = 0.0
    train: bool = False
    loss: bool = False
    dyn: bool = True
    zero_b: bool = False        # as PEFT initialises: B and biases zero, norms one
    mask: bool = True
    keep_debug: bool = False    # strip stack traces only
    layers: int = 2
    joint: bool = False         # loss and gradients of A and B, traced through autograd

    @property
    def file(self):
        return f"{'joint/' * self.joint}{self.name}.onnx"

    @property
    def name(self):
        flags = ("fold" if self.opt else "nofold") if self.legacy else ("opt" if self.opt else "noopt")
        parts = [f"{self.family}-tiny", f"lora-r{RANK}" if self.lora else "plain",
                 f"drop{self.dropout}" if self.dropout else "",
                 "ts" if self.legacy else "joint" if self.joint else "dynamo",
                 f"opset{self.opset}" if self.opset else "", flags, self.attention, "bf16base" if self.bf16 else "fp32",
                 "train" if self.train else "eval", "loss" if self.loss else "logits", "dyn" if self.dyn else "static",
                 "zeroB" if self.zero_b else "", "" if self.mask else "nomask",
                 "" if self.layers == 2 else f"L{self.layers}"]
        return "-".join(p for p in parts if p)


CASES = [
    Case("llama", opt=False, loss=True),
    Case("llama", keep_debug=True),
    Case("llama", opset=23, mask=False),
    Case("llama", lora=False, dyn=False),
    Case("llama", lora=False, opt=False),
    Case("llama", bf16=True, opt=False, loss=True),
    Case("llama", zero_b=True),
    Case("llama", legacy=True),
    Case("llama", legacy=True, opt=False),
    Case("llama", dropout=0.05, train=True, opt=False, loss=True),
    Case("llamagqa", opt=False, loss=True),
    Case("qwen2", loss=True),
    Case("gpt2", loss=True),
    Case("gpt2", lora=False, opt=False, dyn=False),
    Case("gpt2", lora=False, attention="eager", train=True, dyn=False, layers=1),
    Case("roberta", loss=True),
    Case("roberta", lora=False),
    Case("t5", opt=False, loss=True),
    Case("t5", lora=False, attention="eager"),      # with sdpa the exporter fails on dynamic dimensions
    Case("llama", joint=True, attention="eager", loss=True, dyn=False),
    Case("llama", joint=True, attention="eager", loss=True, dyn=False, zero_b=True),
    Case("gpt2", joint=True, attention="eager", opt=False, loss=True, dyn=False),
]


def build(family, lora, *, attention="sdpa", dropout=0.0, bf16=False, train=False, zero_b=False, layers=2):
    torch.manual_seed(0)
    cls, config = FAMILIES[family]
    config = config()
    config.num_hidden_layers = layers
    model = cls._from_config(config, attn_implementation=attention)
    if bf16:
        model = model.to(torch.bfloat16)
    if lora:
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear",
                                                 lora_dropout=dropout, task_type=TASK.get(family, "CAUSAL_LM")))
    for name, p in model.named_parameters():    # as after some training
        if not zero_b and ("lora_B" in name or p.dim() == 1):
            p.data.add_(torch.randn_like(p) * 0.02)
    return model.train(train)


def inputs(family, loss, mask=True):
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (BATCH, SEQ), generator=g)
    attention_mask = torch.ones_like(ids)
    attention_mask[-1, -3:] = 0
    kw = {"input_ids": ids} | ({"attention_mask": attention_mask} if mask else {})
    if family == "t5":
        target = torch.randint(3, VOCAB, (BATCH, TGT), generator=g)
        shifted = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], dim=1)
        return kw | ({"labels": target} if loss else {"decoder_input_ids": shifted})
    if loss:
        kw["labels"] = torch.tensor([0, 2]) if family == "roberta" else ids.clone()
    return kw


def axes(family, kw):
    target = ("labels", "decoder_input_ids") if family == "t5" else ()
    return {k: dict(enumerate(["batch", "tgt_seq" if k in target else "seq"][:v.dim()])) for k, v in kw.items()}


def export(case, path):
    model = build(case.family, case.lora, attention=case.attention, dropout=case.dropout, bf16=case.bf16,
                  train=case.train, zero_b=case.zero_b, layers=case.layers)
    kw = inputs(case.family, case.loss, case.mask)
    names = ["loss", "logits"] if case.loss else ["logits"]
    opset = {"opset_version": case.opset} if case.opset else {}
    if case.joint:
        export_joint(case, model, kw, path)
    elif case.legacy:     # the wrapper puts `model.` before every parameter name and module path
        class Wrapper(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, *args):
                out = self.model(**dict(zip(kw, args)))
                return (out.loss, out.logits) if case.loss else out.logits

        torch.onnx.export(Wrapper().train(case.train), tuple(kw.values()), str(path), dynamo=False,
                          input_names=list(kw), output_names=names, do_constant_folding=case.opt,
                          dynamic_axes=axes(case.family, kw) if case.dyn else None, **opset)
    else:
        dim = {"batch": torch.export.Dim("batch", min=1, max=64)}
        dim |= {n: torch.export.Dim(n, min=2, max=POSITIONS) for n in ("seq", "tgt_seq")}
        shapes = {k: {i: dim[n] for i, n in v.items()} for k, v in axes(case.family, kw).items()}
        torch.onnx.export(model, (), kwargs=kw, dynamo=True, optimize=case.opt, verbose=False,
                          dynamic_shapes=shapes if case.dyn else None,
                          output_names=None if case.family == "t5" else names, **opset).save(str(path))
    strip(path, {STACK_TRACE} if case.keep_debug else {STACK_TRACE, *DEBUG, *(JOINT_DEBUG if case.joint else ())})


def export_joint(case, model, kw, path):
    """The exporter's graph of what autograd does: outputs `loss` and `grad::<parameter>`. The wrapper puts `m.` before
    every parameter's name, and no node says to which module it belongs."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}

    def step(trained, frozen, buffers, kw):
        with torch.enable_grad():
            trained = {n: p.detach().requires_grad_() for n, p in trained.items()}
            loss = torch.func.functional_call(model, {**trained, **frozen, **buffers}, (), kw).loss
            gradients = torch.autograd.grad(loss, list(trained.values()))
        return (loss.detach(), *gradients)

    buffers = dict(model.named_buffers())
    with sdpa_kernel(SDPBackend.MATH):
        traced = make_fx(step, tracing_mode="fake", decomposition_table=core_aten_decompositions(),
                         _allow_non_fake_inputs=True)(trained, frozen, buffers, kw)

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.traced, self.m = traced, model

        def forward(self, **kw):
            own = dict(self.m.named_parameters())
            return self.traced({n: own[n] for n in trained}, {n: own[n] for n in frozen}, dict(self.m.named_buffers()), kw)

    program = torch.onnx.export(Wrapper().requires_grad_(False), (), kwargs=kw, dynamo=True, optimize=case.opt, verbose=False)
    for output, name in zip(program.model.graph.outputs, ["loss", *(f"grad::{n}" for n in trained)]):
        output.name = name
    path.parent.mkdir(exist_ok=True)
    program.save(str(path))


def strip(path, keys):
    """Drops metadata that is large and carries no information of its own, and with it paths of this machine."""
    model = onnx.load(path)
    for holder in [model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer]:
        kept = [p for p in holder.metadata_props if p.key not in keys]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
    for node in model.graph.node:
        node.ClearField("doc_string")
    onnx.save(model, path)


def check(case, path):
    """Largest difference between onnxruntime's logits and PyTorch's, or why it was not compared."""
    if case.train or case.bf16 or case.joint:
        return "not compared (train mode, bf16 or no logits)"
    import onnxruntime as ort
    ort.set_default_logger_severity(4)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    kw = inputs(case.family, case.loss, case.mask)
    try:
        out = session.run(None, {i.name: kw[i.name].numpy() for i in session.get_inputs()})[int(case.loss)]
    except Exception as error:
        return f"onnxruntime: {error}"
    with torch.no_grad():
        logits = build(case.family, case.lora, zero_b=case.zero_b)(**kw).logits
    return f"max difference {abs(torch.from_numpy(out) - logits).max():.1e}"


def answers(model, family, mask=True, trains=lambda name: True):
    for name, p in model.named_parameters():
        p.requires_grad_(trains(name))
    kw = inputs(family, True, mask)
    out = model(**kw)
    out.loss.backward()
    kw |= inputs(family, False, mask)
    tensors = {f"input::{k}": v for k, v in kw.items()} | {"loss": out.loss.detach(), "logits": out.logits.detach()}
    tensors |= {f"grad::{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {k: v.contiguous() for k, v in tensors.items()}


def inject(model, family, rank, alpha):
    """PEFT's adapters on `model`, from a fixed seed: what they are, and the gradients of what trains."""
    torch.manual_seed(2)
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear",
                                             task_type=TASK.get(family, "CAUSAL_LM"))).eval()
    tensors = answers(model, family, trains=lambda n: "lora_" in n or "modules_to_save" in n)
    tensors |= {f"param::{n}": p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n}
    modules = [n.removeprefix("base_model.model.") for n, m in model.named_modules() if hasattr(m, "lora_A")]
    return tensors, {"lora": json.dumps({"r": rank, "lora_alpha": alpha, "modules": modules})}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("regex", nargs="?", default="")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = parser.parse_args()
    wanted = [c for c in CASES if re.search(args.regex, c.name)]
    for case in wanted:
        path, log = args.out / case.file, io.StringIO()
        with redirect_stdout(log), redirect_stderr(log):
            export(case, path)
        print(f"{path.name}  {path.stat().st_size >> 10} KiB  {check(case, path)}", flush=True)
    for family, lora, zero_b, mask in sorted({(c.family, c.lora, c.zero_b, c.mask) for c in wanted}):
        stem = f"{family}-{'lora' if lora else 'plain'}{'-zeroB' * zero_b}{'-nomask' * (not mask)}"
        save_file(answers(build(family, lora, zero_b=zero_b), family, mask), args.out / f"{stem}.expected.safetensors")
        if not lora:
            tensors, metadata = inject(build(family, False), family, RANK, ALPHA)
            save_file(tensors, args.out / f"{family}-inject.expected.safetensors", metadata)


if __name__ == "__main__":
    main()
