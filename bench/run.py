#!/usr/bin/env python3
"""Runs lorafa-opt and Hugging Face + PEFT on the same shapes, alternately, and prints tables of memory and step time.

    python bench/run.py --preset cpu-small --bin target/release/lorafa-opt --out small.json --table small.md

Each run is a process of its own; a round runs every configuration of a shape once, and then comes the next round.
Exit status: 0 if every run gave a result by the schema and every planned peak was met, 1 otherwise, 2 for wrong usage.
Running out of memory is a result.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import Result, Row, markdown, problems

HERE = Path(__file__).resolve().parent
TOOLS = ("lorafa-opt", "hf-peft")


@dataclass(frozen=True)
class Config:
    """One row of the tables, at one shape."""

    tool: str
    method: str
    adapter_dtype: str
    attention: str | None = None    # Hugging Face's; lorafa-opt takes the graph's
    flags: tuple[str, ...] = ()     # of lorafa-opt

    @property
    def label(self) -> str:
        name = "PEFT" if self.tool == "hf-peft" else self.tool
        return " ".join(p for p in (name, self.method, f"{self.adapter_dtype} adapters", self.attention, *self.flags) if p)


@dataclass(frozen=True)
class Preset:
    """What is compared: one model, several shapes, several configurations of each."""

    model: str
    dtype: str
    rank: int
    device: str
    shapes: tuple[tuple[int, int], ...]
    configs: tuple[Config, ...]


PACKED = ("--pack-frozen",)
CPU = (Config("lorafa-opt", "lora-fa", "f32"), Config("lorafa-opt", "lora-fa", "f32", flags=PACKED),
       Config("hf-peft", "lora-fa", "f32", "sdpa"), Config("hf-peft", "lora-fa", "f32", "eager"),
       Config("hf-peft", "lora", "f32", "sdpa"))
PRESETS = {
    "cpu-tiny": Preset("llama-tiny", "f32", 4, "cpu", ((4, 32),), CPU),
    "cpu-small": Preset("llama-small", "f32", 8, "cpu", ((4, 128),), CPU),
    "gpu-7b": Preset("llama-2-7b", "bf16", 64, "cuda:0", ((4, 1024), (8, 1024), (16, 1024)), (
        Config("lorafa-opt", "lora-fa", "f32"), Config("lorafa-opt", "lora-fa", "bf16"),
        Config("lorafa-opt", "lora-fa", "bf16", flags=PACKED), Config("hf-peft", "lora", "f32", "sdpa"),
        Config("hf-peft", "lora", "bf16", "sdpa"), Config("hf-peft", "lora-fa", "bf16", "sdpa"))),
}


def command(config: Config, preset: Preset, shape: tuple[int, int], args: argparse.Namespace, graph: Path) -> list[str]:
    if config.tool == "lorafa-opt":
        head = [str(args.bin), "bench", str(graph), "--random-weights", "--json", "-", *config.flags]
    else:
        head = [sys.executable, str(HERE / "hf.py"), "--model", preset.model, "--attention", str(config.attention)]
        head += [] if args.mask else ["--no-mask"]
    return [*head, "--method", config.method, "--rank", str(preset.rank), "--batch", str(shape[0]),
            "--seq", str(shape[1]), "--dtype", preset.dtype, "--adapter-dtype", config.adapter_dtype,
            "--device", preset.device, "--steps", str(args.steps), "--warmup", str(args.warmup)]


def run(config: Config, preset: Preset, shape: tuple[int, int], args: argparse.Namespace, graph: Path) -> Result | str:
    """The result, or why there is none."""
    done = subprocess.run(command(config, preset, shape, args, graph), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, check=False, env={**os.environ, **args.standin})
    if done.returncode:
        return f"exit status {done.returncode}: {done.stderr.strip()[-2000:]}"
    try:
        result = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        return f"standard output is not one JSON object: {error}"
    asked: dict[str, Any] = {
        "tool": config.tool, "method": config.method, "dtype": preset.dtype, "adapter_dtype": config.adapter_dtype,
        "batch": shape[0], "seq": shape[1], "rank": preset.rank, "device": preset.device, "steps": args.steps,
        "warmup": args.warmup, "optimizer": "adamw"}
    wrong = "; ".join(problems(result, asked))
    if args.standin and not wrong:      # where nothing is computed, time and loss mean nothing
        result |= dict.fromkeys(("step_seconds", "tokens_per_second", "flops_per_second", "loss"))
    return wrong or result


def standin() -> dict[str, str]:
    """Variables that have both sides find a GPU where there is none."""
    preload = subprocess.run([HERE.parent / "tests/cuda/standin.sh"], stdout=subprocess.PIPE, text=True, check=True).stdout
    # cuDNN's attention asks cuDNN for plans, which the stand-in does not make; flash attention is PyTorch's own.
    return {"LD_PRELOAD": preload.strip(), "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}


def environment(device: str) -> dict[str, Any]:
    """What the figures depend on beside the two programs."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF",
                 "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE")
    found: dict[str, Any] = {
        "cpu": names[0] if names else platform.machine(), "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(), "commit": output("git", "-C", str(HERE), "rev-parse", "HEAD"),
        "variables": {name: os.environ[name] for name in variables if name in os.environ}}
    if device != "cpu":
        query = output("nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader")
        found["gpus"] = query.splitlines() if query else None
    return found


def output(*words: str) -> str | None:
    """What a command prints; None where it does not work."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def export(preset: Preset, args: argparse.Namespace, path: Path) -> None:
    flags = [] if args.mask else ["--no-mask"]
    done = subprocess.run([sys.executable, str(HERE / "export.py"), "--model", preset.model, "--dtype", preset.dtype,
                           *flags, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"export.py failed, exit status {done.returncode}: {done.stderr.strip()[-2000:]}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(PRESETS), required=True)
    parser.add_argument("--bin", type=Path, help="lorafa-opt, built with --features torch")
    parser.add_argument("--graph", type=Path, help="the model as ONNX, instead of a fresh export")
    parser.add_argument("--only", choices=TOOLS, help="one side only")
    parser.add_argument("--batch", type=int, action="append", help="these batch sizes of the preset only; may be repeated")
    parser.add_argument("--steps", type=int, help="timed steps a run [default: 10; 2 with --quick]")
    parser.add_argument("--warmup", type=int, help="untimed steps before them [default: 2; 1 with --quick]")
    parser.add_argument("--rounds", type=int, help="runs of each configuration [default: 3; 1 with --quick]")
    parser.add_argument("--quick", action="store_true", help="the first shape only, one round of two steps")
    parser.add_argument("--standin", action="store_true",
                        help="on a stand-in for a GPU: memory alone, see tests/cuda/standin.sh; takes LIBTORCH")
    parser.add_argument("--no-mask", dest="mask", action="store_false", help="no attention_mask on either side")
    parser.add_argument("--date", help="noted in the measurement file")
    parser.add_argument("--out", type=Path, help="every result and the environment, as JSON")
    parser.add_argument("--table", type=Path, help="the tables, as Markdown")
    args = parser.parse_args()
    for name, usual, quick in (("steps", 10, 2), ("warmup", 2, 1), ("rounds", 3, 1)):
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else usual)
    if args.steps < 1 or args.rounds < 1 or args.warmup < 0:
        parser.error("--steps and --rounds are 1 or more, --warmup 0 or more")
    if args.only != "hf-peft" and not (args.bin and args.bin.is_file()):
        parser.error("--bin PATH of lorafa-opt is needed: cargo build --release -p lorafa-cli --features torch")
    batches = [shape[0] for shape in PRESETS[args.preset].shapes]
    if unknown := set(args.batch or ()) - set(batches):
        parser.error(f"--batch {min(unknown)}: the preset {args.preset} has {', '.join(map(str, batches))}")
    if args.graph and not args.graph.is_file():
        parser.error(f"--graph {args.graph}: there is no such file")
    if args.standin and PRESETS[args.preset].device == "cpu":
        parser.error("--standin is for presets of a GPU")
    args.standin = standin() if args.standin else {}
    return args


def main() -> None:
    args = arguments()
    preset = PRESETS[args.preset]
    configs = [c for c in preset.configs if args.only in (None, c.tool)]
    shapes = [s for s in preset.shapes if not args.batch or s[0] in args.batch][:1 if args.quick else None]
    record: dict[str, Any] = {"preset": args.preset, "date": args.date, "rounds": args.rounds,
                              "environment": environment(preset.device), "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        graph = args.graph or Path(folder) / f"{preset.model}-{preset.dtype}.onnx"
        if not args.graph and args.only != "hf-peft":
            print(f"exporting {graph.name}", file=sys.stderr, flush=True)
            export(preset, args, graph)
        rows: list[Row] = []
        for shape in shapes:
            found = [Row(config.tool, config.label, f"{shape[0]} × {shape[1]}") for config in configs]
            rows += found
            for number in range(1, args.rounds + 1):
                for config, row in zip(configs, found, strict=True):
                    result = run(config, preset, shape, args, graph)
                    entry: dict[str, Any] = {"round": number, "run": row.label, "batch": shape[0], "seq": shape[1]}
                    if isinstance(result, str):
                        row.failures.append(result)
                        entry["failed"] = result
                    else:
                        row.results.append(result)
                        entry["result"] = result
                    record["runs"].append(entry)
                    if args.out:    # after every run: a long session that is cut short keeps what it has
                        args.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
                    print(f"{row.shape} round {number} {row.label}: {outcome(result)}", file=sys.stderr, flush=True)
    notes = [f"{key}: {value}" for key, value in record["environment"].items() if value]
    versions = sorted({f"{r['tool']}: {r['version']}, on {r['device_name']}" for row in rows for r in row.results})
    title = f"{preset.model}, {preset.dtype}, rank {preset.rank}, {preset.device}" + (f", {args.date}" if args.date else "")
    text = markdown(rows, title, [*versions, *notes, f"rounds: {args.rounds}, steps: {args.steps} after {args.warmup}"])
    if args.table:
        args.table.write_text(text)
    print(text, end="")
    good = all(not row.failures and all(check is None or check.met for check in row.plan_checks()) for row in rows)
    sys.exit(0 if good else 1)


def outcome(result: Result | str) -> str:
    if isinstance(result, str):
        return f"FAILED: {result}"
    seconds = result["step_seconds"]
    return result.get("error") or ("done" if seconds is None else f"{seconds['median'] * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
