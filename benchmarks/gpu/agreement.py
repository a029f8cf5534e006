"""One training step on the device against the same step on the CPU in float32: loss, gradients, predictions.

What a device may differ by comes from steps on a CPU that round otherwise. A loss and a norm are sums of many terms,
whose errors cancel, so they are nearer than single values are.
"""

from collections.abc import Iterable, Iterator, Mapping
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
class Difference:
    """How far two steps are from one another."""

    loss: float
    """Relative."""
    norm: float
    """Of the norm of a part's gradients, relative, the largest of all parts of the network."""
    gradient: float
    """Norm of the difference of a part's gradients, relative to their norm, the largest of all parts."""
    probability: float
    """Of a pixel and class, absolute, the largest."""


SEEN: Mapping[Precision, tuple[Difference, str]] = {
    "fp32": (Difference(1e-6, 1e-5, 1e-4, 1e-6), "the same sums in another order (oneDNN switched off)"),
    "tf32": (Difference(4e-5, 4e-4, 4e-3, 5e-4), "factors of products and convolutions rounded to 11 bits"),
    "bf16": (Difference(5e-4, 2e-3, 4e-2, 5e-3), "autocast of the CPU: 8 bits after every layer"),
}
"""Differences of a step of ViT-B/16, batch 1, 171 classes on a CPU, from rounding alone. A precision's gradients differ
by ten times those of the next finer one and more, so a step in another precision than it says is found."""
ALLOWED = 5
"""A device may differ by so many times of what was seen: its kernels, and the random weights, are others."""


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
    for precision, (seen, _) in SEEN.items():
        found = step(trained, batch, kit.device, precision)
        rows += list(compare(precision, expected, found))
        goals += judge(precision, seen, difference(expected, found))
        yield Section(
            title="A step against the CPU's",
            text=f"{clip}, batch 1, both losses, the same random weights and the same batch, on "
            f"{hardware(kit.device)}; the CPU computes in float32. Norms are of all gradients of a part of the network "
            f"together. Allowed is {ALLOWED} times what rounding alone did to a step of B/16 on a CPU.",
            tables=[rows, [{"precision": name, "what rounding did": why} for name, (_, why) in SEEN.items()]],
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
    most = float((found.probabilities - expected.probabilities).abs().max())
    yield {
        "precision": precision,
        "what": "probabilities",
        "CPU": "",
        "device": f"{same:.2%} of pixels the same class",
    } | {
        "difference": f"at most {most:.1e}",
        "of the whole vector": "",
    }


def row(precision: str, what: str, cpu: float, device: float, vector: str = "") -> dict[str, object]:
    values = {"CPU": f"{cpu:.6g}", "device": f"{device:.6g}", "difference": f"{relative(cpu, device):.1e}"}
    return {"precision": precision, "what": what, **values, "of the whole vector": vector}


def difference(expected: Step, found: Step) -> Difference:
    pairs = [(before, found.gradients[name]) for name, before in expected.gradients.items()]
    return Difference(
        loss=relative(expected.losses["loss"], found.losses["loss"]),
        norm=largest(relative(float(before.norm()), float(after.norm())) for before, after in pairs),
        gradient=largest(float((after - before).norm() / before.norm()) for before, after in pairs),
        probability=float((found.probabilities - expected.probabilities).abs().max()),
    )


def judge(precision: str, seen: Difference, found: Difference) -> Iterator[Goal]:
    """Whether each difference is one that rounding explains; one that is no number is not."""
    names = {"loss": "the loss", "norm": "the norm of a part's gradient", "gradient": "a part's gradient"}
    for name, what in (names | {"probability": "a probability"}).items():
        limit, value = ALLOWED * getattr(seen, name), getattr(found, name)
        text = f"{precision}: {what} differs by at most {limit:.0e}"
        yield Goal(text=text, measured=f"{value:.1e}", met=value <= limit)


def largest(values: Iterable[float]) -> float:
    """NaN where one is, unlike Python's `max`."""
    return torch.tensor(list(values)).max().item()


def relative(expected: float, found: float) -> float:
    return abs(found - expected) / abs(expected) if expected else abs(found)
