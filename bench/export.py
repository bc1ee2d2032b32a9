#!/usr/bin/env python3
"""Writes the ONNX graph of one of the benchmark's models: the forward pass without adapters, and without its weights.

    python bench/export.py --model llama-2-7b --dtype bf16 llama-2-7b-bf16.onnx

The model is built on the meta device, so that a graph of 13 GB of weights takes a few hundred MB to write. Its
initializers refer to an external data file that does not exist; `lorafa-opt` plans without it, and
`lorafa-opt bench --random-weights` makes weights of its own. Batch and sequence length are symbolic.
"""
from __future__ import annotations

import argparse
import logging
import os
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")
import onnx
import onnx_ir as ir
import torch
from models import MODELS, Shape
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

logging.getLogger("torch.onnx").setLevel(logging.ERROR)
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
SCOPES = "pkg.torch.onnx.name_scopes"      # the module of each node; everything else in the metadata is left out
ALIGNMENT = 64


def export(shape: Shape, dtype: torch.dtype, loss: bool, mask: bool, opset: int | None) -> onnx.ModelProto:
    config = shape.config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
        ids = torch.zeros((2, 8), dtype=torch.int64)
        inputs = {"input_ids": ids}
        if mask:
            inputs["attention_mask"] = torch.ones_like(ids)
        if loss:
            inputs["labels"] = ids
        batch = torch.export.Dim("batch", min=1, max=1024)
        seq = torch.export.Dim("seq", min=2, max=shape.positions)
        program = torch.onnx.export(
            model, (), kwargs=inputs, dynamo=True, optimize=False, verbose=False, opset_version=opset,
            dynamic_shapes={name: {0: batch, 1: seq} for name in inputs},
            output_names=["loss", "logits"] if loss else ["logits"])
    values = dict(LlamaRotaryEmbedding(config).named_buffers(prefix="model.rotary_emb"))
    leave_weights_out(program.model.graph, values)
    proto = ir.to_proto(program.model)
    strip(proto.graph)
    return proto


def leave_weights_out(graph: ir.Graph, values: dict[str, torch.Tensor]) -> None:
    """Gives every initializer that is on the meta device its value, or a place in a file that does not exist."""
    offset = 0
    for value in graph.initializers.values():
        tensor = value.const_value
        if value.name in values:
            value.const_value = ir.tensor(values[value.name].numpy(), name=value.name)
        elif getattr(tensor.raw, "is_meta", False):
            value.const_value = ir.ExternalTensor(
                "weights-left-out.data", offset, tensor.nbytes, tensor.dtype, name=value.name, shape=tensor.shape)
            offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def strip(graph: onnx.GraphProto) -> None:
    """Drops stack traces, which hold paths of this machine, and metadata that repeats the module paths."""
    for holder in [graph, *graph.node, *graph.value_info, *graph.initializer]:
        kept = [p for p in holder.metadata_props if p.key == SCOPES]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
    for node in graph.node:
        node.ClearField("doc_string")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), required=True)
    parser.add_argument("--dtype", choices=list(DTYPES), default="f32")
    parser.add_argument("--loss", action="store_true", help="labels in and the loss out, beside the logits")
    parser.add_argument("--no-mask", dest="mask", action="store_false", help="no input attention_mask")
    parser.add_argument("--opset", type=int, help="the exporter's default otherwise")
    parser.add_argument("path", type=Path)
    args = parser.parse_args()
    proto = export(MODELS[args.model], DTYPES[args.dtype], args.loss, args.mask, args.opset)
    args.path.parent.mkdir(parents=True, exist_ok=True)
    args.path.write_bytes(proto.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
