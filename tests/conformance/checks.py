"""What a written graph is held against: PyTorch's answers, PEFT's adapters, torch.optim.AdamW's formula."""
import re
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
SMALL_NORM, SMALL_NORM_TOLERANCE = 1e-6, 1e-3
ZERO_TOLERANCE = 1e-6
# Some gradients are zero in exact arithmetic (a bias on the keys: softmax does not see it) and rounding noise of about
# 1e-12 in PyTorch's answer. Real gradients of these models are above 1e-7.
NOISE = 1e-10
# Of f16 against fp32: the type holds 1e-3, and errors of small gradients are of the size of large ones.
HALF_LOSS_TOLERANCE, HALF_TOLERANCE, HALF_NOISE = 5e-3, 5e-2, 2e-3
UPDATE_TOLERANCE = 1e-3     # of the step, not of the parameter: the difference of two fp32 numbers

# One tensor with several names: PyTorch's gradient carries the first, exporters keep the last.
TIED = {"gpt2": ("transformer.wte.weight", "lm_head.weight"),
        "t5": ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")}


@dataclass
class Report:
    """Problems found, and the worst errors seen, of one written graph."""
    problems: list = field(default_factory=list)
    loss: float | None = None
    gradient: float | None = None
    worst: str = ""

    def fail(self, text):
        self.problems.append(text)


def relative(got, want):
    """||got - want|| / ||want||, or ||got - want|| if want is zero; infinite if it is not a number."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    error = np.linalg.norm(got - want) / (np.linalg.norm(want) or 1.0)
    return error if np.isfinite(error) else np.inf


def gradient_limit(want):
    norm = np.linalg.norm(np.asarray(want, np.float64))
    if norm == 0:
        return ZERO_TOLERANCE
    return GRADIENT_TOLERANCE if norm >= SMALL_NORM else max(SMALL_NORM_TOLERANCE, NOISE / norm)


def required(method, expected):
    """Names of the parameters that `method` trains."""
    def trained(name):
        if method == "full":
            return True
        if "lora_A" in name:    # a head that trains in full may have adapters of its own
            return method == "lora"
        return "lora_B" in name or "modules_to_save.default" in name
    return {k.removeprefix("grad::") for k in expected if k.startswith("grad::") and trained(k)}


def canonical(name, family, wrapper):
    """PyTorch's name of a parameter: without the legacy exporter's wrapper, and one name for tied weights."""
    if wrapper and not name.startswith(wrapper):
        return f"{name} (without the exporter's prefix {wrapper})"
    name = name.removeprefix(wrapper)
    first, *aliases = TIED.get(family, ("",))
    for prefix in ("", "base_model.model."):
        if name.removeprefix(prefix) in aliases:
            return prefix + first
    return name


def run(model, feeds):
    """Outputs by name. `feeds` may hold more than the model asks for, never less."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    missing = [i.name for i in session.get_inputs() if i.name not in feeds]
    if missing:
        raise ValueError(f"inputs nobody feeds: {', '.join(missing)}")
    names = [o.name for o in session.get_outputs()]

    def given(of):      # weights that are inputs come in fp32
        value = feeds[of.name]
        return value.astype(np.float16) if of.type == "tensor(float16)" else value

    return dict(zip(names, session.run(names, {i.name: given(i) for i in session.get_inputs()})))


def inputs(expected):
    """A batch, and the values of weights that are inputs of the model."""
    parts = (k.partition("::") for k in expected)
    return {name: expected[kind + sep + name] for kind, sep, name in parts if kind in ("input", "param")}


def same_names(report, what, got, want):
    for name in sorted(want - got):
        report.fail(f"{what} missing: {name}")
    for name in sorted(got - want):
        report.fail(f"{what} not asked for: {name}")
    return sorted(got & want)


def named(report, outputs, prefix, rename):
    """Outputs that start with `prefix`, by PyTorch's parameter name."""
    found = {}
    for key in (k for k in outputs if k.startswith(prefix)):
        name = rename(key.removeprefix(prefix))
        if name in found:
            report.fail(f"{prefix}{name} twice, the second time as {key}")
        found[name] = outputs[key]
    return found


def compare(report, outputs, loss_name, expected, method, rename):
    """Loss and gradients against PyTorch's, and exactly the gradients that the method asks for."""
    if loss_name not in outputs:
        report.fail(f"output missing: {loss_name}")
    else:
        report.loss = relative(outputs[loss_name], expected["loss"])
        if report.loss > LOSS_TOLERANCE:
            report.fail(f"loss {outputs[loss_name]} instead of {expected['loss']}: relative error {report.loss:.1e}")
    gradients = named(report, outputs, "grad::", rename)
    worst = -1.0
    for name in same_names(report, "gradient", set(gradients), required(method, expected)):
        got, want = gradients[name], expected[f"grad::{name}"]
        if got.shape != want.shape:
            report.fail(f"grad::{name} has shape {list(got.shape)} instead of {list(want.shape)}")
            continue
        error, limit = relative(got, want), gradient_limit(want)
        if error > limit:
            report.fail(f"grad::{name}: error {error:.1e} > {limit:.0e}, norm {np.linalg.norm(want):.1e}")
        if error / limit > worst:
            worst, report.gradient, report.worst = error / limit, error, name


def compare_half(report, outputs, expected, method, rename):
    """Loss and gradients of a 16-bit step against PyTorch's in fp32."""
    report.loss = relative(outputs["loss"], expected["loss"])
    if report.loss > HALF_LOSS_TOLERANCE:
        report.fail(f"loss {outputs['loss']} instead of {expected['loss']}: relative error {report.loss:.1e}")
    gradients = named(report, outputs, "grad::", rename)
    names = same_names(report, "gradient", set(gradients), required(method, expected))
    size = {n: np.linalg.norm(expected[f"grad::{n}"].astype(np.float64)) for n in names}
    noise = HALF_NOISE * max(size.values())
    report.gradient = 0.0
    for name in names:
        got, want = (np.asarray(a, np.float64) for a in (gradients[name], expected[f"grad::{name}"]))
        error = np.linalg.norm(got - want) if np.isfinite(got).all() else np.inf
        ratio = error / (HALF_TOLERANCE * size[name] + noise)
        if ratio > 1:
            report.fail(f"grad::{name}: {ratio:.1e} times the tolerance, norm {size[name]:.1e}")
        if ratio > report.gradient:
            report.gradient, report.worst = ratio, name


def use_reference_adapters(report, model, reference):
    """Checks injected adapters against PEFT's, and gives A the reference's values."""
    at = {t.name: i for i, t in enumerate(model.graph.initializer)}
    shapes = {k.removeprefix("param::"): v.shape for k, v in reference.items() if k.startswith("param::")}
    shapes |= {n: reference[f"grad::{n}"].shape for n in required("lora-fa", reference) if "lora_B" in n}
    found = {n for n in at if re.fullmatch(r"base_model\..*\.lora_[AB]\.default\.weight", n)}
    for name in same_names(report, "adapter initializer", found, set(shapes)):
        tensor = model.graph.initializer[at[name]]
        if tuple(tensor.dims) != shapes[name]:
            report.fail(f"initializer {name} has shape {list(tensor.dims)} instead of {list(shapes[name])}")
        elif "lora_A" in name:
            value = numpy_helper.to_array(tensor)
            if not (np.isfinite(value).all() and value.any()):
                report.fail(f"initializer {name} is zero or not finite")
            tensor.CopyFrom(numpy_helper.from_array(reference[f"param::{name}"], name))
        elif numpy_helper.to_array(tensor).any():
            report.fail(f"initializer {name} is not zero")


def with_injected_adapters(model, plain, scale, conv1d):
    """PyTorch's answer for a plain model with adapters whose B is zero, from its answer without them.

    The forward pass is the same, so y = x·Wᵀ + scale·x·Aᵀ·Bᵀ has dB = scale·dW·Aᵀ and dA = 0. A is the model's own.
    """
    answer = {k: v for k, v in plain.items() if not k.startswith("grad::")}
    for tensor in model.graph.initializer:
        found = re.fullmatch(r"base_model\.model\.(.*)\.lora_([AB])\.default\.weight", tensor.name)
        if not found:
            head = re.fullmatch(r"base_model\.model\.(.*)modules_to_save\.default\.(.*)", tensor.name)
            if head:
                answer[f"grad::{tensor.name}"] = plain["grad::" + head[1] + head[2]]
            continue
        value = numpy_helper.to_array(tensor)
        if found[2] == "A":
            dw = plain[f"grad::{found[1]}.weight"]
            dw = dw.T if conv1d else dw     # Conv1D keeps [in, out]
            answer[f"grad::{tensor.name}"] = np.zeros_like(value)
            answer[f"grad::{tensor.name}".replace("lora_A", "lora_B")] = scale * dw @ value.T
    return answer


def adamw(p, g, m, v, step, lr, decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """torch.optim.AdamW's update, in fp64."""
    p = p * (1 - lr * decay)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    return p - lr / (1 - beta1**step) * m / (np.sqrt(v) / np.sqrt(1 - beta2**step) + eps), m, v


def lorafa(p, g, m, v, step, lr, decay, beta1=0.9, beta2=0.999, eps=1e-6):
    """The update of PEFT's LoRA-FA optimizer from a projected gradient, in fp64."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    p = p - lr * np.sqrt(1 - beta2**step) / (1 - beta1**step) * m / (np.sqrt(v) + eps)
    return p * (1 - lr * decay), m, v


def inverses(model, feeds):
    """What PEFT's LoRA-FA optimizer multiplies gradients with, by the name of its input."""
    prefix = "optim::inverse::"
    tensors = {t.name: t for t in model.graph.initializer}
    found = {}
    for name in (i.name for i in model.graph.input if i.name.startswith(prefix)):
        of = name.removeprefix(prefix)
        a = (feeds[of] if of in feeds else numpy_helper.to_array(tensors[of])).astype(np.float64)
        found[name] = np.linalg.pinv(a @ a.T + 1e-8 * np.eye(len(a)), hermitian=True)
    return found


def compare_optimizer(report, model, expected, method, rename, source, decay, clip, scale, step=3, lr=1e-2):
    """The third step from random moments, against AdamW, or PEFT's LoRA-FA optimizer if there is the adapters' `scale`.

    The parameter before the step is what lr = 0 leaves.
    """
    names = [i.name for i in model.graph.input]
    trained, rng = required(method, expected), np.random.default_rng(0)
    feeds = inputs(expected) | {"optim::step": np.array(step, np.int64), "optim::lr": np.array(lr, np.float32)}
    moments = {}
    for prefix in ("optim::m::", "optim::v::"):
        own = {rename(n.removeprefix(prefix)): n for n in names if n.startswith(prefix)}
        for name in same_names(report, f"input {prefix}", set(own), trained):
            noise = rng.standard_normal(expected[f"grad::{name}"].shape)
            value = 1e-3 * noise if prefix == "optim::m::" else 1e-7 * np.abs(noise) + 1e-9
            feeds[own[name]] = moments[prefix, name] = value.astype(np.float32)
    inverse = inverses(model, feeds) if scale else {}
    feeds |= {name: value.astype(np.float32) for name, value in inverse.items()}
    inverse = {rename(name.removeprefix("optim::inverse::")): value for name, value in inverse.items()}
    if report.problems:
        return
    before = named(report, run(model, feeds | {"optim::lr": np.array(0, np.float32)}), "updated::", rename)
    outputs = run(model, feeds)
    after = {p: named(report, outputs, p, rename) for p in ("updated::", "optim::m_out::", "optim::v_out::")}
    gradients = {name: expected[f"grad::{name}"].astype(np.float64) for name in trained}
    if clip:
        norm = np.sqrt(sum((g * g).sum() for g in gradients.values()))
        if norm <= clip:
            report.fail(f"the norm {norm} is below {clip}: nothing to clip")
        if (error := relative(outputs["grad_norm"], norm)) > GRADIENT_TOLERANCE:
            report.fail(f"grad_norm {outputs['grad_norm']} instead of {norm}: relative error {error:.1e}")
        gradients = {name: g * clip / (norm + 1e-6) for name, g in gradients.items()}
    for name, g in gradients.items():
        if scale and "lora_B" in name:
            gradients[name] = g @ inverse[name.replace("lora_B", "lora_A")] / scale**2
    common = set(trained)
    for prefix, found in after.items():
        common &= set(same_names(report, f"output {prefix}", set(found), trained))
    report.gradient = 0.0
    for name in sorted(common):
        start = before[name].astype(np.float64)
        if name in source and not np.array_equal(source[name], before[name]):
            report.fail(f"updated::{name} differs from the parameter when lr is 0")
        m, v = (moments[p, name].astype(np.float64) for p in ("optim::m::", "optim::v::"))
        p, m, v = (lorafa if scale else adamw)(start, gradients[name], m, v, step, lr, decay)
        errors = {"updated::": relative(after["updated::"][name] - start, p - start) / UPDATE_TOLERANCE,
                  "optim::m_out::": relative(after["optim::m_out::"][name], m) / GRADIENT_TOLERANCE,
                  "optim::v_out::": relative(after["optim::v_out::"][name], v) / GRADIENT_TOLERANCE}
        for prefix, ratio in errors.items():
            if ratio > 1:
                report.fail(f"{prefix}{name}: {ratio:.1e} times the tolerance")
            if ratio > report.gradient:
                report.gradient, report.worst = ratio, prefix + name


def initializers(path, rename):
    return {rename(t.name): numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer
            if t.data_type == onnx.TensorProto.FLOAT}
