"""Whether a loss keeps its contract: `physseg.testing.check_loss`, for the tests of its package."""

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from ...common.plugins import ConformanceError, require
from .interface import Counted, Loss, ModelView

CROPS, CLASSES, STRUCTURES, GRID, SIDE = 4, 5, 2, 2, 32  # SIDE in pixels: patches of 16
IGNORE_INDEX: Final = 255

Without = Literal["labels", "outside"]


def check_loss(loss: Loss | type[Loss], *, ignores: Sequence[Without] = ("labels", "outside")) -> None:
    """Call a loss with small batches made here, in float64 and bfloat16, whole and in parts.

        def test_hard():
            check_loss(Hard)
            check_loss(Hard(power=1.0))

    Args:
        loss: The object, or its class for the default settings.
        ignores: What counts neither in the sum nor in the count, and gets no gradient: crops without any label
            (`labels`), and crops wholly outside the image (`outside`), which have none either. L_seg of the baseline
            ignores neither, L^p has no need of labels.

    Raises:
        ConformanceError: A rule is broken. The message says which, what was expected and what came. The rules are those
            of docs/plugins.md, Losses.
    """
    made: Any = copy.deepcopy(loss() if isinstance(loss, type) else loss)
    where = type(made).__name__
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(14)
        batch, outputs = _batch(), _outputs()
    try:
        whole = _call(where, made.double() if isinstance(made, nn.Module) else made, batch, outputs)
    except ConformanceError:  # perhaps it makes everything float32, as its parameters then have to be
        if not isinstance(made, nn.Module):
            raise
        whole = _call(where, made.float(), batch, outputs)
    _near(f"{where}, order of the batch", whole, _call(where, made, batch, outputs, range(CROPS)[::-1]))
    for number in (2, 4):
        size = CROPS // number
        parts = [_call(where, made, batch, outputs, range(i, i + size)) for i in range(0, CROPS, size)]
        sums, counts = (torch.stack(each).sum(0) for each in zip(*parts, strict=True))
        _near(f"{where}, batch in {number} parts added up", whole, (sums, counts))
    _check_gradients(where, made, batch, outputs)
    for what in ignores:
        _check_ignored(where, made, batch, outputs, what)
    _differentiate(f"{where}, nothing to count", made, _without(batch, range(CROPS), "outside"), outputs)
    _differentiate(f"{where}, outputs of up to 100", made, batch, [value * 30 for value in outputs])
    half = [value.detach().bfloat16().requires_grad_() for value in outputs]
    exact = _call(where, made, batch, [value.double() for value in half])
    if isinstance(made, nn.Module):
        made.float()
    found = _differentiate(f"{where}, bfloat16", made, batch, half)
    _near(f"{where}, bfloat16 against float64", exact, found, relative=0.02)


def _outputs() -> list[Tensor]:
    """Logits, structure logits, similarities and texts, float64 with a gradient; values mostly within +-3."""
    cells = 4 * GRID
    shapes = [(CROPS, CLASSES, cells, cells), (CROPS, STRUCTURES, cells, cells), (CROPS, GRID * GRID, CLASSES)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in (*shapes, (CLASSES, 1, 16))]


def _batch() -> dict[str, Any]:
    """Labels that are constant in cells, some of them ignored; the right edge of the last crop is outside its image."""
    cells = torch.randint(0, CLASSES + 1, (CROPS, SIDE // 8, SIDE // 8))
    cells[cells == CLASSES] = IGNORE_INDEX
    cells[-1, :, -1] = IGNORE_INDEX
    valid = torch.ones(CROPS, SIDE, SIDE, dtype=torch.bool)
    valid[-1, :, -8:] = False
    structures = torch.where(torch.rand(CROPS, STRUCTURES, SIDE, SIDE) > 0.95, torch.randint(1, 256, (SIDE, SIDE)), 0)
    return {
        "images": torch.randint(0, 256, (CROPS, 3, SIDE, SIDE), dtype=torch.uint8),
        "labels": cells.repeat_interleave(8, 1).repeat_interleave(8, 2),
        "valid": valid,
        "structures": (structures * valid[:, None]).byte(),
        "cell_classes": torch.stack([cells, torch.full_like(cells, IGNORE_INDEX)], 1),
        "cell_counts": torch.stack([(cells != IGNORE_INDEX) * 64, torch.zeros_like(cells)], 1).byte(),
        "sample_ids": [f"{number:03d}" for number in range(CROPS)],
    }


def _without(batch: dict[str, Any], crops: Sequence[int], what: Without) -> dict[str, Any]:
    """The batch with nothing labelled in some crops, or with these outside the image."""
    fills = {"labels": IGNORE_INDEX, "cell_classes": IGNORE_INDEX, "cell_counts": 0}
    fills |= {"valid": False, "structures": 0, "images": 128} if what == "outside" else {}
    index = torch.tensor(list(crops))
    return batch | {name: batch[name].index_fill(0, index, value) for name, value in fills.items()}


def _call(
    where: str, loss: Any, batch: dict[str, Any], outputs: Sequence[Tensor], chosen: Sequence[int] = range(CROPS)
) -> tuple[Tensor, Tensor]:
    """Sum and count of some of the crops, as a loss has to return them."""
    crops = list(chosen)
    seen = {name: [value[i] for i in crops] if name == "sample_ids" else value[crops] for name, value in batch.items()}
    seen |= {"ignore_index": IGNORE_INDEX, "grid": GRID}
    logits, structure_logits, similarity, texts = outputs
    model = ModelView(
        ignore_index=IGNORE_INDEX,
        grid=GRID,
        classes=tuple(f"class {number}" for number in range(CLASSES)),
        structures=tuple(f"structure{number}" for number in range(STRUCTURES)),
        text_features=texts,
        encode_image=_encoder(torch.promote_types(logits.dtype, torch.float32)),
    )
    of_crops = SimpleNamespace(
        logits=logits[crops], structure_logits=structure_logits[crops], similarity=similarity[crops]
    )
    given = {name: value.clone() for name, value in seen.items() if isinstance(value, Tensor)}
    try:
        got = loss(seen, of_crops, model)
    except Exception as error:
        raise ConformanceError.mismatch(where, "a sum and a count", f"{type(error).__name__}: {error}") from error
    for name, value in given.items():
        require(torch.equal(value, torch.as_tensor(seen[name])), where, f"the batch's {name} unchanged", "another")
    total, count = _returned(where, got)
    if isinstance(loss, Counted):
        _near(f"{where}, count(batch)", (count, count), (loss.count(seen).double(), count))
    return total, count


def _returned(where: str, got: Any) -> tuple[Tensor, Tensor]:
    tensors = isinstance(got, tuple) and all(isinstance(x, Tensor) and x.ndim < 2 and x.isfinite().all() for x in got)
    require(tensors and len(got) == 2, where, "a tuple (sum, count) of two finite tensors () or (K,)", got)
    total, count = got[0], got[1].detach().double()
    kept = not (count < 0).any() and not (total.detach() * (count == 0)).any()
    require(kept, where, "a count of 0 or more, with a sum of 0 where it is 0", (total.tolist(), count.tolist()))
    return total, count


def _encoder(dtype: torch.dtype) -> Callable[[Tensor], Any]:
    """In the place of CLIP's image encoder: the same 16 numbers of each patch, and a first token of their means."""

    def encode(images: Tensor) -> Any:
        patches = nn.functional.adaptive_avg_pool2d(images.to(dtype), (GRID, GRID)).flatten(2).transpose(1, 2)
        return SimpleNamespace(patches=patches / 255 @ torch.linspace(-1, 1, 48, dtype=dtype).reshape(3, 16).cos())

    return encode


def _near(where: str, expected: tuple[Tensor, Tensor], got: tuple[Tensor, Tensor], *, relative: float = 1e-5) -> None:
    for what, *pair in zip(("sum", "count"), expected, got, strict=True):
        wanted, found = (each.detach().double() for each in pair)
        near = wanted.shape == found.shape and torch.allclose(found, wanted, rtol=relative, atol=relative)
        require(near, where, f"the {what} {wanted.tolist()}", found.tolist())


def _differentiate(where: str, loss: Any, batch: dict[str, Any], outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sum and count; the gradient is finite."""
    leaves = [value.detach().requires_grad_() for value in outputs]
    found = _call(where, loss, batch, leaves)
    for gradient in torch.autograd.grad(found[0].sum(), leaves, allow_unused=True):
        finite = gradient is None or bool(gradient.isfinite().all())
        require(finite, where, "a finite gradient", "NaN or infinity in it")
    return found


def _check_gradients(where: str, loss: Any, batch: dict[str, Any], outputs: Sequence[Tensor]) -> None:
    """The gradient is that of finite differences, and every parameter that trains has one."""
    parameters = [each for each in loss.parameters() if each.requires_grad] if isinstance(loss, nn.Module) else []
    total = _call(where, loss, batch, outputs)[0].sum()
    expected = "a sum with a gradient, in which every parameter takes part"
    require(total.requires_grad, where, expected, "one without")
    found = torch.autograd.grad(total, parameters, allow_unused=True) if parameters else ()
    require(all(each is not None for each in found), where, expected, "a parameter without")

    # Many losses make everything float32. Its rounding of the sum is then what differences are made of.
    of_float32 = {"eps": 1e-2, "rtol": 0.02, "atol": 3e-5 * max(1.0, abs(total.item()))}
    precision: dict[str, Any] = {} if total.dtype == torch.float64 else of_float32

    doubles = [each for each in parameters if each.dtype == torch.float64]

    def sum_of(*values: Tensor) -> Tensor:
        return _call(where, loss, batch, values[: len(outputs)])[0]

    try:
        torch.autograd.gradcheck(sum_of, (*outputs, *doubles), fast_mode=True, **precision)
    except RuntimeError as error:
        got = " ".join(str(error).split())[:200]
        raise ConformanceError.mismatch(where, "the gradient of finite differences", got) from error


def _check_ignored(where: str, loss: Any, batch: dict[str, Any], outputs: Sequence[Tensor], what: Without) -> None:
    """The second crop counts for nothing: sum and count are those of the others, and it has no gradient."""
    words = {"labels": "a crop without labels", "outside": "a crop outside the image"}
    where, changed = f"{where}, {words[what]}", _without(batch, [1], what)
    found = _call(where, loss, changed, outputs)
    _near(where, _call(where, loss, changed, outputs, [0, 2, 3]), found)
    gradients = torch.autograd.grad(found[0].sum(), outputs[:3], allow_unused=True)
    silent = not any(gradient is not None and gradient[1].any() for gradient in gradients)
    require(silent, where, "no gradient there", "another than 0")
