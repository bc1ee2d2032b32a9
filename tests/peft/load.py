#!/usr/bin/env python3
"""Loads what the example `save` of lorafa-weights writes with PEFT and Hugging Face, and compares logits.

    python tests/peft/load.py SAVE

SAVE is that example's binary. It is run on each of MODELS, LEGACY and HALF, for folders `adapter`, `merged` and `sharded`.
Reference logits are those that PyTorch gave when the examples were made (examples/*.expected.safetensors). Any warning is an
error. Nothing is downloaded. tests/peft/load.sh builds SAVE and makes an environment for this.
"""
import json
import os
import subprocess
import sys
import tempfile

sys.setdlopenflags(os.RTLD_LAZY)    # load.sh puts stubs in place of NVIDIA's libraries, which nothing here calls
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import torch
import transformers as hf
from export import FAMILIES, TASK, build, inputs
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

MODELS = {
    "llama": "llama-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-logits-dyn",
    "llamagqa": "llamagqa-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn",
    "qwen2": "qwen2-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn",
    "gpt2": "gpt2-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn",
    "roberta": "roberta-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn",
    "t5": "t5-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn",
}
LEGACY = "llama-tiny-lora-r4-ts-fold-sdpa-fp32-eval-logits-dyn"
HALF = "llama-tiny-lora-r4-dynamo-noopt-sdpa-bf16base-eval-loss-dyn"
LOSSES = {"SEQ_CLS": "seq-cls", "SEQ_2_SEQ_LM": "seq2seq", "CAUSAL_LM": "causal-lm"}
TOLERANCE = 1e-6    # of the largest logit


def fresh(family):
    """The architecture with other weights."""
    torch.manual_seed(99)
    cls, config = FAMILIES[family]
    return cls._from_config(config(), attn_implementation="sdpa").eval()


def compare(what, family, model):
    expected = load_file(ROOT / f"examples/{family}-lora.expected.safetensors")["logits"]
    with torch.no_grad():
        difference = model(**inputs(family, False)).logits - expected
    difference = (difference.abs().max() / expected.abs().max()).item()
    print(f"{what}: {difference:.1e}", flush=True)
    assert difference <= TOLERANCE, what


def original(family, **kw):
    """The model that was exported, with its adapters."""
    with warnings.catch_warnings(action="ignore"):
        return build(family, True, **kw)


def adapter(folder, family):
    model = original(family).unload()
    for name, p in model.named_parameters():    # what was trained in full comes from the folder
        if "classifier" in name:
            p.data.zero_()
    model = PeftModel.from_pretrained(model, folder / "adapter").eval()
    own = json.loads((folder / "adapter/adapter_config.json").read_text())
    config = model.peft_config["default"]
    assert config.task_type == TASK.get(family, "CAUSAL_LM"), config.task_type
    assert config.fan_in_fan_out == (family == "gpt2") and own["inference_mode"]
    assert not any(p.requires_grad for p in model.parameters())
    compare(f"{folder.name} adapter", family, model)
    written = load_file(folder / "adapter/adapter_model.safetensors")
    peft = get_peft_model_state_dict(model)
    assert written.keys() == peft.keys(), written.keys() ^ peft.keys()
    assert all(torch.equal(written[k], peft[k]) for k in peft)


def merged(folder, family):
    for kind in ("merged", "sharded"):
        model = fresh(family)
        files = sorted((folder / kind).glob("*.safetensors"))
        assert (len(files) > 1) == (kind == "sharded")
        tensors = {}
        for file in files:
            tensors |= load_file(file)
        if kind == "sharded":
            index = json.loads((folder / kind / "model.safetensors.index.json").read_text())
            assert index["weight_map"].keys() == tensors.keys()
            assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        assert not unexpected and set(missing) <= set(model.all_tied_weights_keys), (missing, unexpected)
        compare(f"{folder.name} {kind}", family, model)
        # As users load it: the configuration beside the weights.
        model.config.save_pretrained(folder / kind)
        loaded, info = type(model).from_pretrained(folder / kind, dtype=torch.float32, attn_implementation="sdpa",
                                                   output_loading_info=True)
        assert not any(info.values()), info
        compare(f"{folder.name} {kind}, from_pretrained", family, loaded.eval())


def halves(folder):
    """Against W + scale·B·A in f32, rounded once: PyTorch's own arithmetic."""
    model = original("llama", bf16=True)
    tensors = load_file(folder / "merged/model.safetensors")
    same = total = 0
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            w = module.base_layer.weight.float() + module.scaling["default"] * (b.float() @ a.float())
            found = tensors[name.removeprefix("base_model.model.") + ".weight"]
            assert found.dtype == torch.bfloat16
            torch.testing.assert_close(found, w.bfloat16(), rtol=2 ** -7, atol=0)
            same, total = same + (found == w.bfloat16()).sum().item(), total + found.numel()
    print(f"{folder.name} merged: {same} of {total} bf16 equal", flush=True)
    assert same > 0.999 * total


def main():
    warnings.simplefilter("error")
    hf.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as out:
        def saved(family, name):
            folder = Path(out) / name
            loss = LOSSES[TASK.get(family, "CAUSAL_LM")]
            subprocess.run([sys.argv[1], ROOT / f"examples/{name}.onnx", folder, loss], check=True)
            return folder

        for family, name in [*MODELS.items(), ("llama", LEGACY)]:
            folder = saved(family, name)
            adapter(folder, family)
            merged(folder, family)
        halves(saved("llama", HALF))


if __name__ == "__main__":
    main()
