"""What the driver accepts and what it makes of it. Needs the standard library only."""
from __future__ import annotations

import copy
import json
import unittest
from typing import Any

from results import Row, markdown, problems

GOOD: dict[str, Any] = {
    "tool": "lorafa-opt", "version": "0.1.0", "model": "m", "method": "lora-fa", "optimizer": "adamw", "dtype": "bf16",
    "adapter_dtype": "bf16", "batch": 4, "seq": 1024, "rank": 64, "device": "cuda:0", "device_name": "GPU", "steps": 3,
    "warmup": 1, "attention": "graph",
    "memory": {"planned_peak": 1000000, "device_before": 500000, "allocated_peak": 1000900, "reserved_peak": 1010100,
               "device_peak": 1485000},
    "step_seconds": {"median": 0.5, "min": 0.4, "max": 0.9, "p10": 0.4, "p90": 0.8},
    "tokens_per_second": 8192.0, "flops_per_second": 1e12, "loss": {"first": 10.4, "last": 10}, "trained_parameters": 7}
MEASURED = ("step_seconds", "tokens_per_second", "flops_per_second", "loss", "trained_parameters")


def changed(**paths: Any) -> dict[str, Any]:
    result = copy.deepcopy(GOOD)
    for path, value in paths.items():
        *parents, key = path.split("__")
        place = result
        for parent in parents:
            place = place[parent]
        place[key] = value
    return result


def out_of_memory() -> dict[str, Any]:
    memory = {"planned_peak": 1000000, "device_before": 500000, "allocated_peak": None, "reserved_peak": None,
              "device_peak": None}
    return changed(error="out of memory", memory=memory, **dict.fromkeys(MEASURED))


class Schema(unittest.TestCase):
    def test_accepts_what_the_schema_says(self) -> None:
        for result in (GOOD, out_of_memory(), changed(method="full", adapter_dtype=None, rank=None)):
            self.assertEqual(problems(json.loads(json.dumps(result)), {"batch": 4}), [])

    def test_names_every_departure(self) -> None:
        cases = {
            "memory.device_peak: expected int, found None": changed(memory__device_peak=None),
            "loss.last: nan": changed(loss__last=float("nan")),
            "steps: expected int, found True": changed(steps=True),
            "step_seconds: expected an object, found 0.5": changed(step_seconds=0.5),
            "step_seconds.mean: not in the schema": changed(step_seconds__mean=0.5),
            "rank: missing": {k: v for k, v in GOOD.items() if k != "rank"},
            "method lora-fa without adapter_dtype or rank": changed(rank=None),
            "memory.planned_peak is null": changed(memory__planned_peak=None),
            "error: broken": out_of_memory() | {"error": "broken"},
            "memory.device_peak: expected null, found 1": out_of_memory() | {"memory": GOOD["memory"] | {
                "allocated_peak": None, "reserved_peak": None, "device_peak": 1}},
            "expected a JSON object, found list": [GOOD],
        }
        for problem, result in cases.items():
            self.assertEqual(problems(result, {}), [problem])
        self.assertEqual(problems(GOOD, {"batch": 8}), ["batch: asked for 8, found 4"])


class Tables(unittest.TestCase):
    def met(self, *results: dict[str, Any]) -> list[bool | None]:
        return [check and check.met for check in Row("lorafa-opt", "run", "4 × 1024", list(results)).plan_checks()]

    def test_plan_is_held_to_the_tolerances(self) -> None:
        self.assertEqual(self.met(GOOD), [True, False, True])
        self.assertEqual(self.met(changed(memory__allocated_peak=1001001), changed(memory__device_peak=1469999)),
                         [False, False, True])
        self.assertEqual(self.met(changed(memory__device_peak=1469999)), [True, False, False])
        self.assertEqual(self.met(out_of_memory()), [None, None, None])

    def test_on_the_cpu_the_plan_holds_to_the_byte(self) -> None:
        cpu = changed(device="cpu", memory__reserved_peak=None, memory__allocated_peak=1000000)
        self.assertEqual(self.met(cpu), [True, None, None])
        cpu["memory"]["allocated_peak"] += 1
        self.assertEqual(self.met(cpu), [False, None, None])

    def test_ratios_are_ours_by_theirs_at_the_same_shape(self) -> None:
        other = changed(tool="hf-peft", memory__planned_peak=None, memory__allocated_peak=2001800,
                        step_seconds__median=0.25)
        rows = [Row("lorafa-opt", "a", "4 × 1024", [GOOD]), Row("hf-peft", "b", "4 × 1024", [other]),
                Row("hf-peft", "c", "8 × 1024", [other]), Row("hf-peft", "d", "4 × 1024", failures=["exit status 1"])]
        text = markdown(rows, "title", [])
        self.assertIn("| a / b | 4 × 1024 | 0.500 | 1.000 | 2.000 |", text)
        self.assertNotIn("a / c", text)
        self.assertIn("| a / d | 4 × 1024 | — | — | — |", text)


if __name__ == "__main__":
    unittest.main()
