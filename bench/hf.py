#!/usr/bin/env python3
"""Trains one configuration with Hugging Face transformers and PEFT, and prints one JSON object about it.

    python bench/hf.py --model llama-small --method lora-fa --rank 8 --batch 4 --seq 128

Random weights, made on the device in the model's type; nothing is downloaded. A step is zero_grad, forward, backward and
optimizer step on one fixed batch without padding, labels = input_ids, without autocast and without gradient clipping.
README.md says what each figure means. Out of memory is a result: the object has `error`, and the exit status is 0.
"""
from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import peft
import torch
import transformers
from models import MODELS, Shape
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from transformers import AutoModelForCausalLM

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
LEARNING_RATE = 1e-4


class Training:
    """A model, its optimizer and a batch on the device."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        torch.manual_seed(args.seed)
        with device:
            self.model = AutoModelForCausalLM.from_config(
                MODELS[args.model].config(), dtype=DTYPES[args.dtype], attn_implementation=args.attention)
        if args.method != "full":
            targets = args.targets if args.targets == "all-linear" else args.targets.split(",")
            lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0.0, target_modules=targets,
                              task_type="CAUSAL_LM")
            # PEFT turns 16-bit adapters into f32 unless told not to.
            self.model = get_peft_model(self.model, lora, autocast_adapter_dtype=args.adapter_dtype == "f32")
        if args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model.train()
        self.optimizer = self._optimizer(args)
        generator = torch.Generator().manual_seed(args.seed)
        ids = torch.randint(MODELS[args.model].vocab, (args.batch, args.seq), generator=generator).to(device)
        self.batch = {"input_ids": ids, "labels": ids}
        if args.mask:
            self.batch["attention_mask"] = torch.ones_like(ids)

    def _optimizer(self, args: argparse.Namespace) -> torch.optim.Optimizer:
        if args.optimizer == "lorafa":
            return create_lorafa_optimizer(self.model, r=args.rank, lora_alpha=2 * args.rank, lr=LEARNING_RATE)
        if args.method == "lora-fa":
            for name, parameter in self.model.named_parameters():
                if "lora_A" in name:
                    parameter.requires_grad_(False)
        return torch.optim.AdamW(self.trained(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def step(self) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(**self.batch).loss
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What a run measured: `memory`, `step_seconds`, `loss` and what follows from them."""
    cuda = device.type == "cuda"
    training = Training(args, device)
    gc.collect()
    if cuda:    # the peaks are those of training, with all that is alive at its start, not of building the model
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds: list[float] = []
    losses: list[torch.Tensor] = []
    used = 0
    for _ in range(args.warmup + args.steps):
        synchronize(device)
        start = time.perf_counter()
        losses.append(training.step())
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        if cuda:    # the caching allocator gives nothing back in between
            free, total = torch.cuda.mem_get_info(device)
            used = max(used, total - free)
    timed = sorted(seconds[args.warmup:])
    median = quantile(timed, 0.5)
    trained = sum(p.numel() for p in training.trained())
    first, last = losses[0].item(), losses[-1].item()
    if cuda:
        memory = {"planned_peak": None, "device_before": None,
                  "allocated_peak": torch.cuda.max_memory_allocated(device),
                  "reserved_peak": torch.cuda.max_memory_reserved(device), "device_peak": used}
    else:
        used = resident_peak()
        del training, losses
        gc.collect()
        memory = {"planned_peak": None, "device_before": None, "allocated_peak": cpu_allocated_peak(args, device),
                  "reserved_peak": None, "device_peak": used}
    return {"memory": memory,
            "step_seconds": {"median": median, "min": timed[0], "max": timed[-1], "p10": quantile(timed, 0.1),
                             "p90": quantile(timed, 0.9)},
            "tokens_per_second": args.batch * args.seq / median, "flops_per_second": flops(args) / median,
            "loss": {"first": first, "last": last}, "trained_parameters": trained}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quantile(ordered: list[float], q: float) -> float:
    """Linear interpolation between the two nearest values."""
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def resident_peak() -> int:
    """The most memory that this process ever had resident, in bytes: Python and its libraries included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM: the CPU side of the benchmark needs Linux")


def cpu_allocated_peak(args: argparse.Namespace, device: torch.device) -> int:
    """The most bytes alive at once in c10's CPU allocator, as it reports them to the profiler: a model built anew and
    two steps, so that the second one meets the optimizer's state."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True,
                                acc_events=True) as profile:
        training = Training(args, device)
        for _ in range(2):
            training.step()
        del training        # c10 does not count what is freed later, and would count it as alive in the next profile
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return max(e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]")


def flops(args: argparse.Namespace) -> float:
    """Floating-point operations of a step by formula: two for each weight and token forward, and as many backward for
    each of the input's and, where it trains, the weight's gradient; attention is two full seq x seq products forward and
    four backward. Element-wise work and recomputation do not count."""
    shape: Shape = MODELS[args.model]
    tokens = args.batch * args.seq
    base = 2.0 * tokens * (shape.layers * sum(i * o for i, o in shape.linears()) + shape.hidden * shape.vocab)
    attention = 3 * 4.0 * tokens * args.seq * shape.hidden * shape.layers
    if args.method == "full":
        return 3 * base + attention
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    wanted = names if args.targets == "all-linear" else args.targets.split(",")
    adapted = [d for name, d in zip(names, shape.linears()) if name in wanted]
    a, b = (2.0 * tokens * shape.layers * args.rank * sum(d[side] for d in adapted) for side in (0, 1))
    return 2 * base + attention + (2 if args.method == "lora-fa" else 3) * a + 3 * b


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it is one of torch's ways to say so: its allocators, the driver, cuBLAS without room for a handle."""
    said = ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(s in str(error) for s in said)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), required=True)
    parser.add_argument("--method", choices=["full", "lora", "lora-fa"], required=True)
    parser.add_argument("--optimizer", choices=["adamw", "lorafa"], default="adamw", help="lorafa: PEFT's, for lora-fa")
    parser.add_argument("--dtype", choices=list(DTYPES), default="f32")
    parser.add_argument("--adapter-dtype", choices=list(DTYPES), default="f32", help="f32 is what PEFT does")
    parser.add_argument("--rank", type=positive, default=8, help="alpha is twice the rank")
    parser.add_argument("--targets", default="all-linear", help="all-linear, or names: q_proj,v_proj")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--seq", type=positive, default=128)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--no-mask", dest="mask", action="store_false", help="pass no attention_mask of ones")
    parser.add_argument("--steps", type=positive, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.optimizer == "lorafa" and args.method != "lora-fa":
        parser.error("--optimizer lorafa trains with --method lora-fa only")
    if args.dtype == "f32" and args.adapter_dtype != "f32":
        parser.error("--adapter-dtype bf16 needs --dtype bf16: PEFT makes adapters in the type of their layer, or in f32")
    if args.seq > MODELS[args.model].positions:
        parser.error(f"--seq {args.seq}: {args.model} has {MODELS[args.model].positions} positions")
    if args.device != "cpu" and not args.device.startswith("cuda:"):
        parser.error(f"--device {args.device}: expected cpu or cuda:N")
    return args


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    if device.type == "cuda" and not (torch.cuda.is_available() and device.index < torch.cuda.device_count()):
        sys.exit(f"--device {args.device}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    transformers.logging.set_verbosity_error()
    adapters = args.method != "full"
    result: dict[str, Any] = {
        "tool": "hf-peft",
        "version": f"transformers {transformers.__version__}, peft {peft.__version__}, "
                   f"torch {torch.__version__.partition('+')[0]}",
        "model": args.model, "method": args.method, "optimizer": args.optimizer, "dtype": args.dtype,
        "adapter_dtype": args.adapter_dtype if adapters else None, "batch": args.batch, "seq": args.seq,
        "rank": args.rank if adapters else None, "device": args.device, "device_name": device_name(device),
        "steps": args.steps, "warmup": args.warmup, "attention": args.attention,
        "memory": dict.fromkeys(("planned_peak", "device_before", "allocated_peak", "reserved_peak", "device_peak")),
        "step_seconds": None, "tokens_per_second": None, "flops_per_second": None, "loss": None,
        "trained_parameters": None}
    try:
        result |= measure(args, device)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        result["error"] = "out of memory"
    print(json.dumps(result))


if __name__ == "__main__":
    main()
