"""What the two sides print, held against the schema, and the tables made of it."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Result = dict[str, Any]

# name: type, or the types of its parts. A type in a tuple with None may be null.
NUMBER = (int, float)
SCHEMA: dict[str, Any] = {
    "tool": str, "version": str, "model": str, "method": str, "optimizer": str, "dtype": str,
    "adapter_dtype": (str, None), "batch": int, "seq": int, "rank": (int, None), "device": str, "device_name": str,
    "steps": int, "warmup": int, "attention": str,
    "memory": {"planned_peak": (int, None), "device_before": (int, None), "allocated_peak": int, "reserved_peak": (int, None), "device_peak": int},
    "step_seconds": dict.fromkeys(("median", "min", "max", "p10", "p90"), NUMBER),
    "tokens_per_second": NUMBER, "flops_per_second": NUMBER, "loss": {"first": NUMBER, "last": NUMBER},
    "trained_parameters": int,
}
MEASURED = ("step_seconds", "tokens_per_second", "flops_per_second", "loss", "trained_parameters")
OUT_OF_MEMORY = "out of memory"
# How far a measured peak may be from the planned one. On the CPU the allocator serves what is asked for, to the byte.
TOLERANCE = {"allocated_peak": 0.001, "reserved_peak": 0.01, "device_peak": 0.02}


def problems(result: Any, asked: Result) -> list[str]:
    """Where a result departs from the schema or from what was asked for; empty if nowhere."""
    if not isinstance(result, dict):
        return [f"expected a JSON object, found {type(result).__name__}"]
    schema = dict(SCHEMA)
    if "error" in result:       # what was not measured is null; what was planned stays
        schema |= {"error": str, "memory": dict.fromkeys(SCHEMA["memory"], None)}
        schema["memory"] |= {"planned_peak": (int, None), "device_before": (int, None)}
        schema |= dict.fromkeys(MEASURED, None)
    found = departures(result, schema, "")
    if not found:
        if result["method"] != "full" and None in (result["adapter_dtype"], result["rank"]):
            found.append(f"method {result['method']} without adapter_dtype or rank")
        if result["tool"] == "lorafa-opt" and result["memory"]["planned_peak"] is None:
            found.append("memory.planned_peak is null")
        if result.get("error", OUT_OF_MEMORY) != OUT_OF_MEMORY:
            found.append(f"error: {result['error']}")
        found += [f"{key}: asked for {value!r}, found {result[key]!r}" for key, value in asked.items()
                  if result[key] != value]
    return found


def departures(value: Any, schema: Any, path: str) -> list[str]:
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{path}: expected an object, found {value!r}"]
        within = {key: f"{path}.{key}" if path else key for key in [*schema, *value]}
        wrong = [f"{within[key]}: not in the schema" for key in value if key not in schema]
        for key, part in schema.items():
            wrong += departures(value[key], part, within[key]) if key in value else [f"{within[key]}: missing"]
        return wrong
    types = schema if isinstance(schema, tuple) else (schema,)
    if value is None and None in types:
        return []
    if isinstance(value, bool) or not isinstance(value, tuple(t for t in types if t is not None)):
        return [f"{path}: expected {' or '.join('null' if t is None else t.__name__ for t in types)}, found {value!r}"]
    if isinstance(value, NUMBER) and not math.isfinite(value):
        return [f"{path}: {value}"]
    return []


@dataclass(frozen=True)
class Check:
    """A measured peak against the planned one, in bytes."""

    met: bool
    more: int
    planned: int

    def __str__(self) -> str:
        return f"{'ok' if self.met else 'NO'} ({self.more:+,} B, {self.more / self.planned:+.3%})"


@dataclass(frozen=True)
class Row:
    """One configuration: its runs in all rounds taken together."""

    tool: str
    label: str
    shape: str
    results: list[Result] = field(default_factory=list)     # one a round, by the schema
    failures: list[str] = field(default_factory=list)       # the other rounds

    @property
    def error(self) -> str | None:
        """Why there is no step time."""
        return "failed" if self.failures else next((r["error"] for r in self.results if "error" in r), None)

    def memory(self, key: str) -> int | None:
        """The largest of the rounds, in bytes."""
        return max((m for r in self.results if (m := r["memory"][key]) is not None), default=None)

    def seconds(self, key: str = "median") -> float | None:
        """The median of the rounds."""
        return self.middle([r["step_seconds"] and r["step_seconds"][key] for r in self.results])

    def rate(self, key: str) -> float | None:
        return self.middle([r[key] for r in self.results])

    def middle(self, figures: list[float | None]) -> float | None:
        return None if self.error or None in figures else median(f for f in figures if f is not None)

    def plan_checks(self) -> list[Check | None]:
        """For each measured peak, in the order of TOLERANCE; None where there is nothing to compare: what was not
        measured, and on the CPU the whole process with its code."""
        arena, cuda = self.memory("planned_peak"), any(r["device"] != "cpu" for r in self.results)
        checks: list[Check | None] = []
        for key, tolerance in TOLERANCE.items():
            measured, planned = self.memory(key), arena
            if planned is not None and key == "device_peak":
                planned += self.memory("device_before") or 0
            if planned is None or measured is None or (key == "device_peak" and not cuda):
                checks.append(None)
            else:
                allowed = tolerance * planned if cuda else 0
                checks.append(Check(abs(measured - planned) <= allowed, measured - planned, planned))
        return checks


def size(count: int | None) -> str:
    if count is None:
        return "—"
    unit = next(i for i in range(4) if i == 3 or count < 1024 ** (i + 1))
    return f"{count} B" if unit == 0 else f"{count / 1024 ** unit:.2f} {['', 'K', 'M', 'G'][unit]}iB"


def milliseconds(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds * 1e3:.2f} ms"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def ratio(mine: float | None, other: float | None) -> str:
    return "—" if mine is None or not other else f"{mine / other:.3f}"


def runs_table(rows: list[Row]) -> str:
    def cells(row: Row) -> list[str]:
        step = row.error or ("—" if row.seconds() is None else f"{milliseconds(row.seconds())} "
                             f"({milliseconds(row.seconds('p10'))} – {milliseconds(row.seconds('p90'))})")
        tokens, flops = row.rate("tokens_per_second"), row.rate("flops_per_second")
        return [row.label, row.shape, *(size(row.memory(key)) for key in ("planned_peak", *TOLERANCE)), step,
                "—" if tokens is None else f"{tokens:.0f}", "—" if flops is None else f"{flops / 1e12:.3g}"]

    return table(["run", "batch × seq", "planned", "allocated", "reserved", "device", "step, median (p10 – p90)",
                  "tokens/s", "TFLOP/s"], [cells(row) for row in rows])


def ratio_table(rows: list[Row]) -> str:
    """lorafa-opt divided by Hugging Face: below 1, lorafa-opt needs less."""
    pairs = [(mine, other) for mine in rows for other in rows
             if (mine.tool, other.tool) == ("lorafa-opt", "hf-peft") and mine.shape == other.shape]
    return table(["lorafa-opt / Hugging Face", "batch × seq", "allocated", "device", "step"],
                 [[f"{m.label} / {o.label}", m.shape, ratio(m.memory("allocated_peak"), o.memory("allocated_peak")),
                   ratio(m.memory("device_peak"), o.memory("device_peak")), ratio(m.seconds(), o.seconds())]
                  for m, o in pairs])


def plan_table(rows: list[Row]) -> str:
    return table(["planned against measured", "batch × seq", "allocated", "reserved", "device"],
                 [[row.label, row.shape, *("—" if check is None else str(check) for check in row.plan_checks())]
                  for row in rows if row.tool == "lorafa-opt"])


def markdown(rows: list[Row], title: str, notes: list[str]) -> str:
    tables = [runs_table(rows)]
    if any(row.tool == "lorafa-opt" for row in rows):
        tables.append(plan_table(rows))
        if any(row.tool == "hf-peft" for row in rows):
            tables.insert(1, ratio_table(rows))
    return "\n".join([f"# {title}\n", "".join(f"- {note}\n" for note in notes), *tables])
