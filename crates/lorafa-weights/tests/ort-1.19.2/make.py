"""Writes the checkpoint files of this folder: onnxruntime-training 1.19.2's own writer.

pip install 'numpy<2' onnx==1.16.2 onnxruntime-training-cpu==1.19.2
"""
import os, sys
import numpy as np
from onnx import numpy_helper
from onnxruntime.capi import _pybind_state as ort

NAMES = "m.base_model.model.model.layers.0.self_attn.q_proj"

def save(path, trained, frozen):
    protos = lambda tensors: [numpy_helper.from_array(x, n).SerializeToString() for n, x in tensors.items()]
    ort.save_checkpoint(protos(trained), protos(frozen), path, False)

numbers = lambda *shape: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
trained = {f"{NAMES}.lora_A.default.weight": numbers(2, 8), f"{NAMES}.lora_B.default.weight": -numbers(8, 2)}
frozen = {
    f"{NAMES}.base_layer.weight": numbers(8, 8) / 2,
    "m.base_model.model.model.layers.0.input_layernorm.weight": np.float16([1, 2, 3, 4, 5, 6, 7, 8]),
    "m.scalar": np.float32(0.5),
    "m.ids": np.int64([3, -1]),
    "m.mask": np.array([[True, False]]),
}
save("checkpoint", trained, frozen)
# Above 2 GB the values are in a file of their own, `external.data`, of which nothing but these numbers is kept.
if len(sys.argv) > 1:
    big = np.zeros((1 << 14, 1 << 14), dtype=np.float32)
    save("external", {"m.a": numbers(8, 8), "m.b": numbers(2, 2)}, {"m.v": big, "m.w": big})
