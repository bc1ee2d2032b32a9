#!/usr/bin/env python3
"""Holds what lorafa-opt writes against PyTorch's answers, by running it in onnxruntime.

    tests/conformance/run.sh --bin target/release/lorafa-opt [--models DIR] [--expected DIR] [--filter RE] [--jobs N]

Every .onnx of DIR (default: examples/) goes through the methods full, lora and lora-fa. Each written graph must pass
onnx.checker, come out byte for byte the same a second time, and give the loss and exactly the gradients of the method
as in <family>-*.expected.safetensors (in DIR, or in --expected DIR). Plain models get adapters injected for lora and
lora-fa; A is then replaced by the reference's, so that our random numbers do not matter. Where PyTorch has no answer for
the adapters, it follows from the one for the plain model: B is zero, so dB = scale·dW·Aᵀ. joint/*.onnx have LoRA's
gradients from autograd, and go through lora and lora-fa; ort/*/training_model.onnx have them from onnxruntime-training, whose
answers are in ort/. One model a family also runs
with --with-optimizer, with PEFT's LoRA-FA optimizer and clipping, with --pack-frozen, and with --dtype f16, held against
PyTorch's answers in fp32. Each optional pass also runs alone, with all others left out, on another model each. File names
say what a model is; models that cannot be compared are listed with the reason.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import onnx
from safetensors.numpy import load_file

import checks

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("full", "lora", "lora-fa")
ALPHA_PER_RANK = 2              # examples/export.py and the larger models of the same making
DEFAULT_RANK, DEFAULT_BATCH, DEFAULT_SEQ = 4, 2, 8
TRAINING_MODEL = "training_model.onnx"
TIMEOUT_S = 300
ANEW = ("--differentiate",)
PACKED = ("--pack-frozen",)
LORAFA = ("--with-optimizer", "--optimizer", "lorafa", "--weight-decay", "0.1", "--clip", "0.01")
MAX_PROBLEMS = 12               # shown of one graph


@dataclass(frozen=True)
class Model:
    """What a file's name says: FAMILY-...-(lora|plain)-...-(fp32|bf16...)-(eval|train)-(loss|logits)-..."""
    path: Path
    family: str
    lora: bool
    variant: str                # answers of its own: "", "-zeroB", "-nomask"
    incomparable: str           # why onnxruntime's numbers would mean nothing, or ""
    joint: bool                 # its gradients are those of LoRA, from autograd or onnxruntime-training
    ort: bool                   # from the latter

    @staticmethod
    def parse(path):
        if path.name == TRAINING_MODEL:
            family = path.parent.name.split("-")[0]
            return Model(path, family, lora=True, variant="", incomparable="", joint=True, ort=True)
        parts = path.stem.split("-")
        kinds = [p for p in parts if p in ("lora", "plain")]
        if len(kinds) != 1 or not {"eval", "train"} & set(parts):
            return None
        why = "train mode: dropout is random" if "train" in parts else "" if "fp32" in parts else "not fp32"
        variant = "".join(f"-{p}" for p in ("zeroB", "nomask") if p in parts)
        return Model(path, parts[0], kinds[0] == "lora", variant, why, "joint" in parts, False)

    @property
    def wrapper(self):
        return "model." if "-ts-" in self.path.stem else ""

    @property
    def name(self):
        return self.path.parent.name if self.ort else self.path.stem

    @property
    def methods(self):
        if self.name.endswith("-lora-fa"):
            return METHODS[2:]
        return METHODS[1:] if self.joint else METHODS

    def rename(self, name):
        if self.ort:
            return name
        if self.joint:          # a wrapper, in names of parameters alone
            name = name.removeprefix("m.")
        return checks.canonical(name, self.family, self.wrapper)

    def loss_name(self, outputs):
        """`loss`, unless the exporter gave the model's own loss output another name."""
        if "loss" in outputs or not (self.ort or "-loss-" in self.path.stem):
            return "loss"
        return onnx.load(self.path).graph.output[0].name


class Answers:
    """Finds <family>-<kind>[-r<rank>]<variant>.expected.safetensors in the given folders, of onnxruntime in `ort`."""

    def __init__(self, folders, ort):
        self.files = {False: self.within(folders), True: self.within([ort])}

    @staticmethod
    def within(folders):
        return [f for d in folders for f in sorted(d.glob("*.expected.safetensors"))]

    def load(self, model, kind, variant=""):
        pattern = re.compile(rf"{model.family}-{kind}(-r\d+)?{variant}\.expected\.safetensors")
        found = next((f for f in self.files[model.ort] if pattern.fullmatch(f.name)), None)
        return load_file(found) if found else None

    def of(self, model, method):
        if not model.lora and method != "full":
            return self.load(model, "inject", model.variant) or self.load(model, "plain", model.variant)
        return self.load(model, "lora" if model.lora else "plain", model.variant)

    def sizes(self, model):
        """Batch and rank of the model's family, also for the models that are not compared."""
        kinds = ("lora", "inject", "plain") if model.lora else ("inject", "plain", "lora")
        known = [a for k in kinds if (a := self.load(model, k))]
        ranks = [v.shape[1] for a in known for k, v in a.items() if k.startswith("grad::") and "lora_B" in k]
        return checks.inputs(known[0]) if known else {}, (ranks or [DEFAULT_RANK])[0]


def arguments(model, answers, method):
    """The command line after the binary, without `-o`."""
    batch, rank = answers.sizes(model)
    b, s = batch["input_ids"].shape if batch else (DEFAULT_BATCH, DEFAULT_SEQ)
    dims = {}
    for value in onnx.load(model.path).graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param and dim.dim_param not in ("batch", "seq"):
                if value.name not in batch:
                    raise ValueError(f"no size known for dimension {dim.dim_param} of input {value.name}")
                size = batch[value.name].shape[axis]
                if dims.setdefault(dim.dim_param, size) != size:
                    raise ValueError(f"dimension {dim.dim_param} has two sizes: {dims[dim.dim_param]}, {size}")
    out = [str(model.path), "--rank", str(rank), "--method", method]
    if not model.lora:
        out += ["--alpha", str(ALPHA_PER_RANK * rank)]
    out += ["--batch", str(b), "--seq", str(s)]
    return out + [a for name, size in dims.items() for a in ("--dim", f"{name}={size}")]


def compile_twice(binary, args, report):
    """The written graph, or None."""
    with tempfile.TemporaryDirectory() as tmp:
        written = []
        for name in ("first", "second"):
            out = Path(tmp, name, "out.onnx")
            out.parent.mkdir()
            done = subprocess.run([binary, *args, "-o", str(out)], capture_output=True, text=True, timeout=TIMEOUT_S)
            if done.returncode:
                text = (done.stderr or done.stdout).strip().splitlines()
                report.fail(f"exit status {done.returncode}: " + "\n         ".join(text[-8:]))
                return None
            if not out.exists():
                report.fail("exit status 0, but nothing written")
                return None
            written.append(out.read_bytes())
        if written[0] != written[1]:
            report.fail("the same command wrote two different files")
        onnx.checker.check_model(str(out), full_check=True)
        return onnx.load(out)


def check(binary, model, answers, method, extra=()):
    report = checks.Report()
    try:
        expected = answers.of(model, method)
        graph = compile_twice(binary, [*arguments(model, answers, method), *extra], report)
        if graph is None or expected is None or model.incomparable:
            return report
        if not model.lora and method != "full":
            if any("lora_A" in k for k in expected):
                checks.use_reference_adapters(report, graph, expected)
            else:
                expected = checks.with_injected_adapters(graph, expected, ALPHA_PER_RANK, model.family == "gpt2")
        if "--dtype" in extra:
            outputs = checks.run(graph, checks.inputs(expected))
            checks.compare_half(report, outputs, expected, method, model.rename)
        elif "--with-optimizer" in extra:
            decay, clip = (float(extra[extra.index(f) + 1]) if f in extra else 0.0 for f in ("--weight-decay", "--clip"))
            scale = ALPHA_PER_RANK if "lorafa" in extra else None
            source = checks.initializers(model.path, model.rename)
            checks.compare_optimizer(report, graph, expected, method, model.rename, source, decay, clip, scale)
        else:
            outputs = checks.run(graph, checks.inputs(expected))
            checks.compare(report, outputs, model.loss_name(outputs), expected, method, model.rename)
    except Exception as error:      # of onnx, onnxruntime, the file system: a failure of this one graph
        report.fail(f"{type(error).__name__}: {str(error).strip()[:600]}")
    return report


def optional_passes(binary):
    """The passes that can be left out, as the binary names them."""
    refused = subprocess.run([binary, "x.onnx", "--disable", "?"], capture_output=True, text=True, timeout=TIMEOUT_S)
    names = re.search(r"one can leave out (.*)", refused.stderr)
    if not names:
        sys.exit(f"{binary} does not say which passes can be left out: {refused.stderr}")
    return names[1].split(", ")


def alone(passes, kept):
    """Flags that leave out all optional passes but one."""
    return (*PACKED, *(flag for name in passes if name != kept for flag in ("--disable", name)))


def plan(models, answers, passes):
    """(model, method, extra flags, why the numbers are not compared), in the order of the report."""
    with_optimizer = set()
    turn = 0
    for model in models:
        for method in model.methods:
            why = model.incomparable or ("" if answers.of(model, method) else "no expected file")
            yield model, method, (), why
        kind = (model.family, model.joint, model.ort)
        if kind not in with_optimizer and model.lora and not why:
            with_optimizer.add(kind)
            yield model, "lora-fa", ("--with-optimizer",), ""
            yield model, "lora", ("--with-optimizer", "--weight-decay", "0.1"), ""
            yield model, "lora-fa", LORAFA, ""
            yield model, "lora-fa", PACKED, ""
            anew = ANEW if model.joint else ()      # a backward pass that is given keeps its own type
            anew = ANEW if model.joint else ()      # a backward pass that is given keeps its own type
            yield model, "lora", ("--dtype", "f16", *anew), ""      # full adds rows, which onnxruntime lacks in f16
        if model.joint:
            for method in model.methods:
                yield model, method, ANEW, why
        if not why:
            yield model, model.methods[turn % len(model.methods)], alone(passes, passes[turn % len(passes)]), ""
            turn += 1


def line(model, method, extra, why, report):
    as_is = "--dtype" not in extra and "--with-optimizer" not in extra
    name = f"{'FAIL' if report.problems else 'ok  '} {model.name}  {' '.join([method, *extra])}"
    if report.loss is not None:
        name += f"  loss {report.loss:.1e}"
    if report.gradient is not None:
        of_tolerance = "gradient" if "--dtype" in extra else "update"
        what = f"{of_tolerance} {report.gradient:.1e} of tolerance" if not as_is else f"gradient {report.gradient:.1e}"
        name += f"  {what} {report.worst}"
    if why and not report.problems:
        name += f"  compiled and checked only: {why}"
    shown = report.problems[:MAX_PROBLEMS]
    if len(report.problems) > len(shown):
        shown.append(f"and {len(report.problems) - len(shown)} more")
    return "\n".join([name, *(f"       {p}" for p in shown)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, type=Path)
    parser.add_argument("--models", type=Path, default=ROOT / "examples")
    parser.add_argument("--expected", type=Path, action="append", default=[], help="more folders with expected files")
    parser.add_argument("--filter", default="", metavar="RE", help="only files whose name it matches")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if not args.bin.is_file():
        parser.error(f"no such binary: {args.bin}")

    patterns = ("*.onnx", "joint/*.onnx", f"ort/*/{TRAINING_MODEL}")
    files = sorted(f for pattern in patterns for f in args.models.glob(pattern))
    wanted = [f for f in files if re.search(args.filter, str(f.relative_to(args.models)))]
    models = [m for f in wanted if (m := Model.parse(f))]
    answers = Answers([args.models, *args.expected], args.models / "ort")
    binary = str(args.bin.resolve())
    work = list(plan(models, answers, optional_passes(binary)))
    failed = partial = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        reports = pool.map(lambda w: check(binary, w[0], answers, w[1], w[2]), work)
        for item, report in zip(work, reports):
            failed += bool(report.problems)
            partial += bool(item[3]) and not report.problems
            print(line(*item, report), flush=True)
    for f in wanted:
        if not Model.parse(f):
            print(f"not tested: {f.name}: its name does not say lora or plain, eval or train")
    if len(wanted) < len(files):
        print(f"not tested: {len(files) - len(wanted)} files that --filter leaves out")
    passed = len(work) - failed
    print(f"{len(models)} models, {len(work)} graphs: {passed} ok ({partial} not compared), {failed} failed")
    return 1 if failed or not work else 0


if __name__ == "__main__":
    sys.exit(main())
