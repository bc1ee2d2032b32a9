"""The Hugging Face side on llama-tiny: its memory against a count of live tensors, and what each method trains."""
from __future__ import annotations

import argparse
import gc
import sys
import unittest
import weakref
from typing import Any
from unittest.mock import patch

import hf
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
ADAPTED = 2 * sum(i + o for i, o in hf.MODELS["llama-tiny"].linears())      # two layers, a unit of rank
ADAPTED_B = 2 * sum(o for _, o in hf.MODELS["llama-tiny"].linears())


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that ops return until they die; what an op uses inside itself is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.live:
            self.live[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self.live.pop, storage._cdata)
            self.peak = max(self.peak, sum(self.live.values()))

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return out


def arguments(*flags: str) -> argparse.Namespace:
    words = ["hf.py", "--model", "llama-tiny", "--rank", "4", "--batch", "4", "--seq", "32", *flags]
    with patch.object(sys, "argv", words):
        return hf.arguments()


def counted_peak(args: argparse.Namespace) -> int:
    """The peak of a second step, by LiveTensors."""
    training = hf.Training(args, CPU)
    training.step()
    training.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    count = LiveTensors()
    state = [t for s in training.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    for tensor in [*training.model.parameters(), *training.model.buffers(), *training.batch.values(), *state]:
        count.add(tensor)
    del state
    with count:
        training.step()
    return count.peak


class HuggingFace(unittest.TestCase):
    def test_memory_is_that_of_the_live_tensors(self) -> None:
        for method in ("full", "lora", "lora-fa"):
            for attention in ("sdpa", "eager"):
                with self.subTest(method=method, attention=attention):
                    args = arguments("--method", method, "--attention", attention)
                    counted, reported = counted_peak(args), hf.cpu_allocated_peak(args, CPU)
                    self.assertLessEqual(counted, reported)
                    self.assertLess(reported, counted + 1024)       # scalars inside the optimizer and the loss

    def test_lora_fa_allocates_less_than_lora(self) -> None:
        for types in (["f32", "f32"], ["bf16", "f32"], ["bf16", "bf16"]):
            peaks = {method: hf.cpu_allocated_peak(
                arguments("--method", method, "--dtype", types[0], "--adapter-dtype", types[1]), CPU)
                for method in ("lora", "lora-fa")}
            self.assertLess(peaks["lora-fa"], peaks["lora"], types)

    def test_each_method_trains_what_it_should(self) -> None:
        for flags, trained in ((["lora"], 4 * ADAPTED), (["lora-fa"], 4 * ADAPTED_B),
                               (["lora-fa", "--optimizer", "lorafa"], 4 * ADAPTED_B)):
            training = hf.Training(arguments("--method", *flags), CPU)
            frozen = {n: p.detach().clone() for n, p in training.model.named_parameters() if not p.requires_grad}
            losses = [training.step().item() for _ in range(20)]
            self.assertLess(losses[-1], losses[0])
            self.assertEqual(sum(p.numel() for p in training.trained()), trained)
            for name, parameter in training.model.named_parameters():
                if name in frozen:
                    self.assertTrue(torch.equal(parameter, frozen[name]), name)

    def test_adapters_have_the_type_asked_for(self) -> None:
        for adapter, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            training = hf.Training(arguments("--method", "lora", "--dtype", "bf16", "--adapter-dtype", adapter), CPU)
            self.assertEqual({p.dtype for p in training.trained()}, {dtype})
            self.assertEqual({p.dtype for p in training.model.parameters() if not p.requires_grad}, {torch.bfloat16})

    def test_out_of_memory_is_told_from_other_errors(self) -> None:
        with self.assertRaises(RuntimeError) as caught:
            torch.empty(1 << 60, dtype=torch.uint8)
        self.assertTrue(hf.out_of_memory(caught.exception))
        self.assertTrue(hf.out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")))
        with self.assertRaises(RuntimeError) as caught:
            torch.ones(2) @ torch.ones(3)
        self.assertFalse(hf.out_of_memory(caught.exception))


if __name__ == "__main__":
    unittest.main()
