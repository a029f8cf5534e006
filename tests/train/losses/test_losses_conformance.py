"""check_loss: physseg's own losses keep every rule, and for each rule one that breaks it is told which."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from physseg.testing import ConformanceError, check_loss
from physseg.train.losses.alignment import AlignmentLoss
from physseg.train.losses.segmentation import SegmentationLoss
from physseg.train.losses.structure import StructureLoss
from torch import Tensor, nn

EVERY = ("labels", "outside")


@dataclass(frozen=True)
class Good:
    """Squares of the logits at labelled pixels, over their number."""

    power: float = 2.0

    def __call__(self, batch: Any, outputs: Any, model: Any) -> tuple[Tensor, Tensor]:
        known = self.known(batch, model.ignore_index)
        return self.values(outputs.logits)[known].sum(), known.sum()

    def known(self, batch: Any, ignore_index: int) -> Tensor:
        return (batch["labels"] != ignore_index)[:, None, ::4, ::4].expand(-1, 5, -1, -1)

    def values(self, logits: Tensor) -> Tensor:
        return logits.abs().where(logits.abs() < 90, 1.0) ** self.power

    def count(self, batch: Any) -> Tensor:
        return self.known(batch, batch["ignore_index"]).sum()


class Learned(nn.Module):
    """Texts against patches, by a layer that trains."""

    def __init__(self, used: bool = True) -> None:
        super().__init__()
        self.used, self.layer, self.idle = used, nn.Linear(16, 16), nn.Parameter(torch.ones(()))

    def forward(self, batch: Any, outputs: Any, model: Any) -> tuple[Tensor, Tensor]:
        tokens = model.encode_image(batch["images"].float()).patches
        scores = self.layer(tokens) @ model.text_features.mean(1).to(tokens.dtype).T * (self.idle if self.used else 1)
        patches = (batch["cell_counts"].sum(1) > 0).unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).any(3).flatten(1)
        difference = (scores - outputs.similarity).where(patches[..., None], 0)
        return (difference**2).sum(), patches.sum()


class Casting(nn.Module):
    """Makes everything float32, as its layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def forward(self, batch: Any, outputs: Any, model: Any) -> tuple[Tensor, Tensor]:
        known = (batch["labels"] != model.ignore_index)[:, ::4, ::4]
        return self.layer(outputs.logits.float().movedim(1, -1))[known].square().sum(), known.sum()


class Mean(Good):
    def __call__(self, *given: Any) -> Any:
        total, count = super().__call__(*given)
        return total / count.clamp(min=1), count


class Alone(Good):
    def __call__(self, *given: Any) -> Any:
        return super().__call__(*given)[0]


class Broken(Good):
    def __call__(self, *given: Any) -> Any:
        return super().__call__(*given)[0] / 0, torch.ones(())


class Negative(Good):
    def __call__(self, *given: Any) -> Any:
        total, count = super().__call__(*given)
        return total, -count


class Ordered(Good):
    def __call__(self, batch: Any, outputs: Any, model: Any) -> Any:
        total, count = super().__call__(batch, outputs, model)
        return total + outputs.logits[0, 0, 0, 0], count


class Pairs(Good):
    def __call__(self, batch: Any, outputs: Any, model: Any) -> Any:
        total, count = super().__call__(batch, outputs, model)
        return total + outputs.logits.sum(dim=(1, 2, 3)).prod(), count


class Cut(Good):
    def values(self, logits: Tensor) -> Tensor:
        return super().values(logits) + logits - logits.detach()


class Flat(Good):
    def values(self, logits: Tensor) -> Tensor:
        return super().values(logits.detach())


class Single(Good):
    def values(self, logits: Tensor) -> Tensor:
        return super().values(logits.float())


class SingleCut(Single):
    def values(self, logits: Tensor) -> Tensor:
        return super().values(logits) + 0.1 * (logits - logits.detach()).float()


class Negatives(Good):
    def known(self, batch: Any, ignore_index: int) -> Tensor:
        return super().known(batch, -1)


class Guess(Good):
    def count(self, batch: Any) -> Tensor:
        return super().count(batch) + 1


class Scribbles(Good):
    def __call__(self, batch: Any, outputs: Any, model: Any) -> Any:
        found = super().__call__(batch, outputs, model)
        batch["labels"][batch["labels"] == model.ignore_index] = 0
        return found


class Overflows(Good):
    def values(self, logits: Tensor) -> Tensor:
        return logits.exp().exp()


class Root(Good):
    def __call__(self, batch: Any, outputs: Any, model: Any) -> Any:
        known = self.known(batch, model.ignore_index)
        return (outputs.logits * known).square().flatten(1).sum(1).sqrt().sum(), known.sum()


class Half(Good):
    """Adds up in the dtype of the logits."""

    def __call__(self, batch: Any, outputs: Any, model: Any) -> Any:
        values = outputs.logits.abs()[self.known(batch, model.ignore_index)]
        return sum(values.unbind(0), start=outputs.logits.sum() * 0), values.new_tensor(len(values))


class Raises(Good):
    def values(self, logits: Tensor) -> Tensor:
        raise KeyError("no such thing")


RULES = {
    Mean: "Mean, batch in 2 parts added up: expected the sum",
    Alone: r"Alone: expected a tuple \(sum, count\)",
    Broken: "Broken: expected a tuple .* two finite tensors",
    Negative: "a count of 0 or more",
    Ordered: "Ordered, order of the batch: expected the sum",
    Pairs: "Pairs, batch in 2 parts added up: expected the sum",
    Cut: "Cut: expected the gradient of finite differences",
    Flat: "Flat: expected a sum with a gradient",
    SingleCut: "SingleCut: expected the gradient of finite differences",
    Negatives: "Negatives, a crop without labels: expected the sum",
    Guess: r"Guess, count\(batch\): expected the sum",
    Scribbles: "the batch's labels unchanged",
    Overflows: "expected a tuple .* two finite tensors",
    Root: "Root, a crop without labels: expected .* gradient|Root, nothing to count: expected a finite gradient",
    Raises: "Raises: expected a sum and a count, got KeyError",
    Half: "Half, bfloat16 against float64: expected the sum",
}


@pytest.mark.parametrize(
    ("loss", "ignores"),
    [
        (SegmentationLoss, ()),
        (SegmentationLoss(mask_ignored=True), EVERY),
        (StructureLoss, ("outside",)),
        (StructureLoss(form="gaussian_focal", target="gaussian"), ("outside",)),
        (StructureLoss(form="quality", target="soft"), ("outside",)),
        (AlignmentLoss, EVERY),
        (AlignmentLoss(form="soft_ce"), EVERY),
        (AlignmentLoss(form="printed"), ()),
        (Good, EVERY),
        (Good(power=3.0), EVERY),
        (Single, EVERY),
        (Learned, EVERY),
        (Casting, EVERY),
    ],
)
def test_our_own_and_good_ones_keep_every_rule(loss: Any, ignores: tuple[Any, ...]) -> None:
    before = torch.random.get_rng_state()
    check_loss(loss, ignores=ignores)
    if not isinstance(loss, type):  # making a Learned draws its own
        assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("loss", "what"), [(SegmentationLoss, "outside the image"), (StructureLoss, "without labels")])
def test_what_our_own_do_not_claim_is_found(loss: Any, what: str) -> None:
    with pytest.raises(ConformanceError, match=f"a crop {what}: expected the sum"):
        check_loss(loss, ignores=EVERY if loss is StructureLoss else ("outside",))


@pytest.mark.parametrize("loss", RULES)
def test_each_rule_is_told(loss: type[Good]) -> None:
    with pytest.raises(ConformanceError, match=RULES[loss]) as caught:
        check_loss(loss)
    assert "\n" not in caught.value.args[0]


def test_a_parameter_that_takes_no_part_is_told() -> None:
    with pytest.raises(ConformanceError, match="in which every parameter takes part"):
        check_loss(Learned(used=False))


def test_the_loss_that_was_given_stays_as_it_was() -> None:
    loss = Learned()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    check_loss(loss)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    assert all(parameter.grad is None and parameter.dtype == torch.float32 for parameter in loss.parameters())
