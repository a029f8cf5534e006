"""One training step on the device against the same step on the CPU in float32: loss, gradients, predictions.

Tolerances follow from what a precision keeps of a number. A rounding error is relative to the size of what is rounded,
so a loss and a norm, which are sums of many terms, are nearer than single values are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from physseg.train.data.dataset import Batch, to_device
from physseg.train.model.device import Precision, matmul_precision
from torch import Tensor
from train_step import Trained

from common import Goal, Section
from gpu.material import configuration, finish, hardware, let_go, pictures_store, scenes_store
from gpu.parts import Kit


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest differences that rounding explains."""

    loss: float
    """Relative."""
    norm: float
    """Of the gradient's norm of a group of parameters, relative."""
    gradient: float
    """Norm of the difference of a group's gradients, relative to the norm."""
    probability: float
    """Of a pixel and class, absolute."""
    reason: str


TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(1e-5, 1e-3, 5e-3, 1e-4, "24 bits, sums in another order; errors of 6e-8 grow over 60 layers"),
    "tf32": Tolerance(2e-3, 2e-2, 1e-1, 1e-2, "factors rounded to 11 bits, sums in float32: 5e-4 a product"),
    "bf16": Tolerance(2e-2, 1e-1, 5e-1, 5e-2, "8 bits, results of every layer rounded: 4e-3 each"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """What a step computed, on the CPU."""

    losses: dict[str, float]
    gradients: dict[str, Tensor]
    """Group of parameters -> all their gradients in one vector."""
    probabilities: Tensor


def measure(kit: Kit) -> Iterator[Section]:
    clip, store = ("B/16", pictures_store(kit)) if kit.on_gpu else ("demo", scenes_store(kit, 192))
    trained = Trained(replace(configuration(kit, clip, store, batch_size=1), device="cpu"))
    batch = trained.samples.batch([0])
    expected = step(trained, batch, "cpu", "fp32")
    trained.objective.to(kit.device)
    let_go(kit.device)
    rows, goals = [], []
    for precision, tolerance in TOLERANCES.items():
        found = step(trained, batch, kit.device, precision)
        rows += list(compare(precision, expected, found))
        goals += judge(precision, tolerance, expected, found)
        yield Section(
            title="A step against the CPU's",
            text=f"{clip}, batch 1, both losses, the same random weights and the same batch, on "
            f"{hardware(kit.device)}; the CPU computes in float32. Norms are of all gradients of a part of the network together.",
            tables=[rows, [{"precision": name, "tolerances because of": t.reason} for name, t in TOLERANCES.items()]],
            goals=goals,
        )


def step(trained: Trained, batch: Batch, device: str, precision: Precision) -> Step:
    """Losses, gradients and probabilities of a step that changes nothing."""
    objective, kept = trained.objective, []
    objective.config = replace(objective.config, precision=precision)
    hook = trained.objective.model.register_forward_hook(lambda _module, _inputs, output: kept.append(output.logits))
    with matmul_precision(precision):
        parts = objective(to_device(batch, torch.device(device)))
        parts["loss"].backward()
    finish(device)
    hook.remove()
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in objective.model.named_parameters():
        if parameter.grad is not None:
            groups.setdefault(name.partition(".")[0], []).append(parameter.grad.detach().flatten().float().cpu())
    objective.zero_grad(set_to_none=True)
    return Step(
        losses={name: value.item() for name, value in parts.items()},
        gradients={name: torch.cat(values) for name, values in groups.items()},
        probabilities=kept[0].detach().float().cpu().sigmoid(),
    )


def compare(precision: str, expected: Step, found: Step) -> Iterator[dict[str, object]]:
    for name, value in found.losses.items():
        yield row(precision, "loss" if name == "loss" else f"loss, {name}", expected.losses[name], value)
    for name, gradient in found.gradients.items():
        before = expected.gradients[name]
        norms = float(before.norm()), float(gradient.norm())
        yield row(precision, f"gradient of {name}", *norms, f"{float((gradient - before).norm()) / norms[0]:.1e}")
    same = (found.probabilities.argmax(1) == expected.probabilities.argmax(1)).float().mean()
    largest = float((found.probabilities - expected.probabilities).abs().max())
    yield {
        "precision": precision,
        "what": "probabilities",
        "CPU": "",
        "device": f"{same:.2%} of pixels the same class",
    } | {
        "difference": f"at most {largest:.1e}",
        "of the whole vector": "",
    }


def row(precision: str, what: str, cpu: float, device: float, vector: str = "") -> dict[str, object]:
    relative = abs(device - cpu) / max(abs(cpu), 1e-30)
    values = {"CPU": f"{cpu:.6g}", "device": f"{device:.6g}", "difference": f"{relative:.1e}"}
    return {"precision": precision, "what": what, **values, "of the whole vector": vector}


def judge(precision: str, tolerance: Tolerance, expected: Step, found: Step) -> Iterator[Goal]:
    def goal(what: str, difference: float, limit: float) -> Goal:
        text = f"{precision}: {what} differs by at most {limit:.0e}"
        return Goal(text=text, measured=f"{difference:.1e}", met=difference <= limit)

    yield goal("the loss", relative(expected.losses["loss"], found.losses["loss"]), tolerance.loss)
    pairs = [(before, found.gradients[name]) for name, before in expected.gradients.items()]
    norms = [relative(float(before.norm()), float(after.norm())) for before, after in pairs]
    yield goal("the gradient's norm of every part", max(norms), tolerance.norm)
    vectors = [float((after - before).norm() / before.norm()) for before, after in pairs]
    yield goal("the gradient of every part", max(vectors), tolerance.gradient)
    largest = float((found.probabilities - expected.probabilities).abs().max())
    yield goal("a probability", largest, tolerance.probability)


def relative(expected: float, found: float) -> float:
    return abs(found - expected) / abs(expected) if expected else abs(found)
