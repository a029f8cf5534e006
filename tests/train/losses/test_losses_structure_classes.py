"""L^p of class-aware edges: targets against a map for each class, the printed formula, division, size in memory."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from physseg.common.errors import ConfigError
from physseg.train.errors import ShapeError
from physseg.train.losses.interface import ModelView
from physseg.train.losses.structure import (
    StructureForm,
    StructureLoss,
    TargetMode,
    class_count,
    class_targets,
    structure_targets,
)
from physseg.train.losses.total import LossConfig, loss_counts, total_loss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CLASSES = 3
MODEL = ModelView(ignore_index=255, grid=2)


def toy(batch: int = 4, maps: int = 1) -> dict[str, Any]:
    """Crops of 32 px, 8 x 8 cells: the first without any edge, the second half ignored, the third half padding."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, CLASSES, (batch, 32, 32), generator=generator)
    labels = labels.where(torch.rand(batch, 32, 32, generator=generator) > 0.02, 255)
    labels[1, :18] = 255
    valid = torch.ones(batch, 32, 32, dtype=torch.bool)
    valid[2, 15:] = False
    edge = (torch.rand(batch, 1, 32, 32, generator=generator) > 0.95) & (labels != 255)[:, None]
    edge[0] = False
    low = torch.randint(0, CLASSES - 1, (batch, 1, 32, 32), generator=generator)
    planes = torch.cat([low, low + 1], dim=1).where(edge, 255).to(torch.uint8)
    structures = torch.randint(0, 256, (batch, maps, 32, 32), generator=generator, dtype=torch.uint8)
    sparse = torch.rand(batch, maps, 32, 32, generator=generator) > 0.9
    return {
        "labels": labels,
        "valid": valid,
        "structures": structures.where(sparse, 0),
        "structure_classes": planes[:, None],
        "ignore_index": 255,
        "grid": 2,
    }


def logits_of(batch: int = 4, channels: int = 1 + CLASSES) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(batch, channels, 8, 8, generator=generator, dtype=torch.float64)


def planes_of(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    return batch["structure_classes"][:, 0], batch["labels"], batch["valid"]


def cells_of(batch: dict[str, Any]) -> Any:
    """Each cell with its pixels: image, row, column, ids at its valid pixels, whether all pixels have a label."""
    planes, labels, valid = planes_of(batch)
    for b, i, j in itertools.product(range(len(labels)), range(8), range(8)):
        where = slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4)
        inside = valid[b][where]
        ids = set(planes[b][:, where[0], where[1]][:, inside].flatten().tolist()) - {255}
        yield b, i, j, ids, bool(inside.all()) and 255 not in labels[b][where].flatten().tolist()


@pytest.mark.parametrize("mode", ["binary", "soft", "gaussian"])
def test_targets_are_those_of_a_map_for_each_class(mode: TargetMode) -> None:
    batch = toy()
    planes, labels, valid = planes_of(batch)
    maps = torch.stack([255 * (planes == number).any(dim=1) for number in range(CLASSES)], dim=1).to(torch.uint8)
    expected, _ = structure_targets(maps, valid, (8, 8), mode)
    targets, _ = class_targets(planes, labels, valid, (8, 8), CLASSES, mode, ignore_index=255)
    assert targets.dtype == torch.float32
    assert 0.1 < (targets == 1).float().mean().item() < 0.5
    assert torch.equal(targets, expected)


def test_a_cell_counts_where_its_class_is_marked_or_all_of_it_is_labelled() -> None:
    batch = toy()
    _, valid = class_targets(*planes_of(batch), (8, 8), CLASSES, ignore_index=255)
    expected = torch.zeros(4, CLASSES, 8, 8, dtype=torch.bool)
    for b, i, j, ids, labelled in cells_of(batch):
        expected[b, :, i, j] = torch.tensor([labelled or number in ids for number in range(CLASSES)])
    assert torch.equal(valid, expected)
    assert 0 < expected.float().mean().item() < 1
    assert (expected.any(dim=1) & ~expected.all(dim=1)).any()  # known of one class only


def test_targets_of_mirrored_crops_are_mirrored() -> None:
    parts = planes_of(toy())
    found = class_targets(*parts, (8, 8), CLASSES, "gaussian", ignore_index=255)
    mirrored = class_targets(*(part.flip(-1) for part in parts), (8, 8), CLASSES, "gaussian", ignore_index=255)
    for ours, theirs in zip(found, mirrored, strict=True):
        assert torch.equal(ours.flip(-1), theirs)


@pytest.mark.parametrize("form", ["focal", "quality", "gaussian_focal"])
def test_count_is_of_cells_or_of_edges(form: StructureForm) -> None:
    batch = toy()
    count = class_count(*planes_of(batch), (8, 8), form, ignore_index=255)
    cells = list(cells_of(batch))
    edges = sum(len(ids) for *_, ids, _ in cells)
    counted = sum(bool(ids) or labelled for *_, ids, labelled in cells)
    assert count.dtype == torch.float32
    assert count.item() == (edges if form == "gaussian_focal" else counted)


def test_loss_is_the_sum_over_classes_of_means_over_cells_by_the_printed_formula() -> None:
    """Lin et al. 2017, Eq. 5, cell by cell in Python; the map beside it is a structure of its own."""
    batch, logits = toy(), logits_of()
    sums, counts = StructureLoss()(batch, SimpleNamespace(structure_logits=logits), MODEL)
    of_map = SimpleNamespace(structure_logits=logits[:, :1])
    alone = StructureLoss()({**batch, "structure_classes": None}, of_map, MODEL)
    assert (sums[0].item(), counts[0].item()) == (alone[0].item(), alone[1].item())
    total, cells = 0.0, 0
    for b, i, j, ids, labelled in cells_of(batch):
        cells += bool(ids) or labelled
        for number in range(CLASSES):
            s = 1 / (1 + math.exp(-logits[b, 1 + number, i, j].item()))
            if number in ids:
                total += -0.25 * (1 - s) ** 2 * math.log(s)
            elif labelled:
                total += -0.75 * s**2 * math.log(1 - s)
    assert sums.shape == counts.shape == (2,)
    assert sums[1].item() == pytest.approx(total, rel=1e-12)
    assert counts[1].item() == cells


def test_an_edge_weighs_the_same_among_many_classes() -> None:
    """Classes that have no edge, and are predicted so, add nothing."""
    batch = toy(maps=0)
    few = logits_of(channels=CLASSES)
    many = torch.cat([few, torch.full((4, 20, 8, 8), -30.0, dtype=torch.float64)], dim=1)
    losses = [StructureLoss()(batch, SimpleNamespace(structure_logits=logits), MODEL) for logits in (few, many)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["focal", "gaussian_focal"])
@pytest.mark.parametrize("number", [2, 4])
def test_loss_and_gradient_do_not_depend_on_how_a_step_is_spread(form: StructureForm, number: int) -> None:
    batch, size = toy(), 4 // number
    del batch["ignore_index"], batch["grid"]
    config = LossConfig(lambda_sac=0, structure_form=form, structure_target="gaussian", lambda_p=2.0)
    leaf, classes = logits_of().requires_grad_(), logits_of(channels=CLASSES)
    whole = SimpleNamespace(logits=classes, structure_logits=leaf, similarity=None)
    names = ("canny", "semantic_edges")
    expected = total_loss(whole, batch, config, ignore_index=255, structures=names)
    (gradient,) = torch.autograd.grad(expected["loss"], leaf)
    counts = loss_counts(batch, config, ignore_index=255, grid=2)
    counts = {name: count / number for name, count in counts.items()}
    parts = []
    for start in range(0, 4, size):
        rows = slice(start, start + size)
        output = SimpleNamespace(logits=classes[rows], structure_logits=leaf[rows], similarity=None)
        share = {name: value[rows] for name, value in batch.items()}
        parts.append(total_loss(output, share, config, ignore_index=255, structures=names, counts=counts))
    mean = {name: torch.stack([part[name] for part in parts]).mean() for name in expected}
    assert {"structure/canny", "structure/semantic_edges"} < mean.keys()
    for name, value in mean.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=0)  # counts are float32
    torch.testing.assert_close(torch.autograd.grad(mean["loss"], leaf)[0], gradient, rtol=1e-6, atol=1e-12)


def test_gradient() -> None:
    batch = {name: value[3:] if isinstance(value, Tensor) else value for name, value in toy(maps=0).items()}

    def loss(logits: Tensor) -> Tensor:
        return StructureLoss()(batch, SimpleNamespace(structure_logits=logits), MODEL)[0]

    assert torch.autograd.gradcheck(loss, logits_of(1, CLASSES).requires_grad_())


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            self.elements = max(self.elements, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return out


def test_no_tensor_has_all_classes_at_all_pixels() -> None:
    planes, labels = torch.full((1, 2, 96, 96), 65535, dtype=torch.int32), torch.zeros(1, 96, 96, dtype=torch.int64)
    with Largest() as largest:
        targets, _ = class_targets(planes, labels, labels == 0, (24, 24), 847, ignore_index=65535)
    assert targets.shape == (1, 847, 24, 24)
    assert largest.elements <= 848 * 24 * 24


def test_what_does_not_fit_is_named() -> None:
    batch = toy()
    parts = planes_of(batch)
    with pytest.raises(ShapeError, match="do not divide"):
        class_targets(*parts, (7, 8), CLASSES, ignore_index=255)
    with pytest.raises(ShapeError, match=r"expected maps"):
        class_targets(parts[0][:, 0], *parts[1:], (8, 8), CLASSES, ignore_index=255)
    with pytest.raises(ConfigError, match="unknown structure target 'hard'"):
        class_targets(*parts, (8, 8), CLASSES, "hard", ignore_index=255)  # type: ignore[arg-type]
    with pytest.raises(ShapeError):  # a head with more channels than the batch has maps
        StructureLoss()({**batch, "structure_classes": None}, SimpleNamespace(structure_logits=logits_of()), MODEL)
