#!/usr/bin/env python3
"""Holds plans against what libtorch allocates on a GPU, on a stand-in for one (see standin.sh).

    tests/cuda/run.py --bin target/debug/lorafa-opt

Every step runs with --check-memory, which stops at an op that allocates beside the arena. What libtorch's allocator gave out
in all must be what was planned; it rounds a large piece up by less than 1 MiB where that leaves too little for another.
Needs LIBTORCH (see crates/lorafa-exec/setup.sh), gcc and the standard library.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent.parent / "examples"
UNSPLIT = 1 << 20

# Shapes long enough for every kernel to go about them in the way of real ones: several blocks of rows, many more tokens than
# a GPU sums at once. The second is for models of 32 positions.
LONG, WIDE = "--batch 48 --seq 512", "--batch 1024 --seq 30"
METHODS = ("--method lora-fa", "--method lora --dtype bf16 --no-fuse", "--method full", "--method full --dtype bf16")
PLAIN = ("--rank 4 --method lora-fa --dtype f16 --optimizer lorafa", "--method full --no-fuse",
         "--rank 4 --dtype bf16 --adapter-dtype f32 --pack-frozen --accumulate 2 --clip 1")
CASES: list[tuple[str, str, tuple[str, ...]]] = [
    ("llama-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn.onnx", LONG, METHODS),
    ("llama-tiny-lora-r4-drop0.05-dynamo-noopt-sdpa-fp32-train-loss-dyn.onnx", LONG, METHODS[:2]),
    ("llama-tiny-plain-dynamo-noopt-sdpa-fp32-eval-logits-dyn.onnx", LONG, PLAIN),
    ("llamagqa-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn.onnx", LONG, METHODS),
    ("qwen2-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn.onnx", LONG, METHODS),
    ("t5-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn.onnx", LONG, METHODS),
    ("gpt2-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn.onnx", WIDE, METHODS),
    ("roberta-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn.onnx", WIDE, METHODS),
    ("roberta-tiny-plain-dynamo-opt-sdpa-fp32-eval-logits-dyn.onnx", WIDE, PLAIN),
    ("joint/llama-tiny-lora-r4-joint-opt-eager-fp32-eval-loss-static.onnx", "", ("", "--differentiate --dtype bf16")),
    ("joint/gpt2-tiny-lora-r4-joint-noopt-eager-fp32-eval-loss-static.onnx", "", ("",)),
    ("ort/roberta-lora", "", ("",)),
    ("ort/t5-lora", LONG, ("",)),
]


class Standin:
    """The program on the stand-in."""

    def __init__(self, program: Path) -> None:
        libraries = subprocess.run([HERE / "standin.sh"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        self.program, self.environment = program, {**os.environ, "LD_PRELOAD": libraries}

    def run(self, line: list[str], memory: int | None = None) -> subprocess.CompletedProcess[str]:
        environment = self.environment if memory is None else {**self.environment, "STANDIN_MEMORY": str(memory)}
        return subprocess.run([self.program, *line], env=environment, capture_output=True, text=True, check=False, timeout=600)


def planned_is_allocated(standin: Standin, model: str, shape: str, flags: str) -> str | None:
    """Why not; None if it is."""
    line = ["bench", str(EXAMPLES / model), *shape.split(), *flags.split(), *"--random-weights --steps 1 --warmup 1 --device cuda:0 "
            "--check-memory --json -".split()]
    done = standin.run(line)
    if done.returncode:
        return f"exit status {done.returncode}: {done.stderr.strip()}"
    memory = json.loads(done.stdout)["memory"]
    planned, allocated = memory["planned_peak"], memory["allocated_peak"]
    return None if planned <= allocated < planned + UNSPLIT else f"planned {planned} B, allocated {allocated} B"


def a_smaller_batch_is_named_and_fits(standin: Standin) -> str | None:
    """What does not fit the device ends with exit status 3, names the largest batch that does, and that one runs."""
    line = ["bench", str(EXAMPLES / CASES[0][0]), *"--seq 512 --random-weights --steps 1 --device cuda:0".split()]
    memory = 1 << 30
    done = standin.run([*line, "--batch", "4096"], memory)
    words = done.stderr.split("--batch ")
    if done.returncode != 3 or len(words) != 2:
        return f"exit status {done.returncode}: {done.stderr.strip()}"
    largest = int(words[1].split()[0])
    for batch, expected in ((largest, 0), (largest + 1, 3)):
        done = standin.run([*line, "--batch", str(batch)], memory)
        if done.returncode != expected:
            return f"--batch {batch}: exit status {done.returncode}: {done.stderr.strip()}"
    return None


def a_run_trains_evaluates_and_goes_on(standin: Standin) -> str | None:
    """Every update and evaluation in planned memory; what is saved is taken up again."""
    data = HERE.parent / "fixtures/data"
    with tempfile.TemporaryDirectory() as folder:
        line = ["train", str(EXAMPLES / CASES[0][0]), "--data", str(data / "text.jsonl"), "--tokenizer", str(data / "tokenizer.json"),
                "--save", f"{folder}/run", *"--batch 2 --seq 16 --accumulate 2 --clip 1 --eval-split 0.2 --save-every 2 --device cuda:0 "
                "--check-memory".split()]
        for more in (["--max-steps", "2"], ["--max-steps", "4", "--resume"]):
            done = standin.run([*line, *more])
            if done.returncode:
                return f"{' '.join(more)}: exit status {done.returncode}: {done.stderr.strip()}"
        if not Path(folder, "run/adapter/adapter_model.safetensors").is_file():
            return "no adapter was saved"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="lorafa-opt, built with the cargo feature `torch`")
    standin = Standin(parser.parse_args().bin.resolve())
    found = {f"{model} {shape} {flags}": planned_is_allocated(standin, model, shape, flags)
             for model, shape, several in CASES for flags in several}
    for check in (a_smaller_batch_is_named_and_fits, a_run_trains_evaluates_and_goes_on):
        found[check.__name__] = check(standin)
    for name, problem in found.items():
        if problem:
            print(f"{name}\n  {problem}")
    wrong = sum(problem is not None for problem in found.values())
    print(f"{len(found) - wrong} of {len(found)} checks on a stand-in for a GPU hold")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
