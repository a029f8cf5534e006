"""L^sac: patch weights against counting the label map, the three forms against an independent float64 reference."""

import doctest
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.common.errors import ConfigError
from physseg.train.errors import ShapeError
from physseg.train.losses import alignment as losses_alignment
from physseg.train.losses.alignment import AlignmentForm, labelled_patches, patch_alignment_loss, patch_weights
from torch.nn import functional

FORMS: tuple[AlignmentForm, ...] = ("infonce", "soft_ce", "printed")
# Relative error of a mean over some patches; see test_losses_segmentation.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def reference(form: str, similarity: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    """Eq. 3 in the three readings, patch by patch with plain exponentials."""
    patches = []
    for a, w in zip(similarity.reshape(-1, similarity.shape[-1]), weights.reshape(-1, weights.shape[-1]), strict=True):
        if w.sum() == 0:
            continue
        softmax = np.exp(a) / np.exp(a).sum()
        ratio = (w * np.exp(a)).sum() / np.exp(a).sum()
        patches.append({"infonce": -np.log(ratio), "soft_ce": -(w * np.log(softmax)).sum(), "printed": ratio}[form])
    return float(sum(patches) / (similarity.shape[0] if form == "printed" else len(patches)))


def toy() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    similarity = 3 * torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    weights = torch.rand(2, 6, 5, generator=generator, dtype=torch.float64).softmax(-1)
    weights[:, :, 3] = 0  # a class absent from the batch; all rows now sum to less than 1
    weights[0, 2] = 0  # a patch without any labelled pixel
    weights[1, 4] = torch.tensor([0, 1.0, 0, 0, 0])
    return similarity, weights


def test_docstring_examples() -> None:
    assert doctest.testmod(losses_alignment).failed == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_agrees_with_the_formulas(form: AlignmentForm, dtype: torch.dtype) -> None:
    similarity, weights = toy()
    loss = patch_alignment_loss(similarity.to(dtype), weights, form=form)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = reference(form, similarity.numpy(), weights.numpy())
    assert loss.item() == pytest.approx(expected, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("form", FORMS)
def test_gradient(form: AlignmentForm) -> None:
    similarity, weights = toy()
    assert torch.autograd.gradcheck(lambda x: patch_alignment_loss(x, weights, form=form), similarity.requires_grad_())


@pytest.mark.parametrize("form", ["infonce", "soft_ce"])
def test_one_hot_weights_give_cross_entropy(form: AlignmentForm) -> None:
    similarity, _ = toy()
    classes = torch.randint(0, 5, (2, 6))
    expected = functional.cross_entropy(similarity.flatten(0, 1), classes.flatten())
    loss = patch_alignment_loss(similarity, functional.one_hot(classes, 5).double(), form=form)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_batch_and_patch_order_do_not_matter(form: AlignmentForm) -> None:
    similarity, weights = toy()
    loss = patch_alignment_loss(similarity, weights, form=form)
    flipped = patch_alignment_loss(similarity.flip(0, 1), weights.flip(0, 1), form=form)
    assert flipped.item() == pytest.approx(loss.item(), rel=1e-14)
    doubled = patch_alignment_loss(similarity.repeat(2, 1, 1), weights.repeat(2, 1, 1), form=form)
    assert doubled.item() == pytest.approx(loss.item(), rel=1e-14)


def test_temperature_limits() -> None:
    similarity, weights = toy()
    full = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)
    # Hot: every class is equally likely, so the ratio is the mean weight, 1 / T. Cold: the best class alone counts.
    assert patch_alignment_loss(similarity / 1e9, full).item() == pytest.approx(math.log(5))
    best = functional.one_hot(similarity.argmax(-1), 5).double()
    assert patch_alignment_loss(similarity / 1e-3, best).item() == pytest.approx(0, abs=1e-12)


def test_minimisers_of_a_mixed_patch() -> None:
    weights = torch.tensor([[[0.25, 0.75]]], dtype=torch.float64)
    share = torch.arange(0.01, 1, 0.01, dtype=torch.float64)
    similarity = torch.stack([torch.zeros_like(share), share.logit()], -1)[:, None, None]
    soft = torch.stack([patch_alignment_loss(x, weights, form="soft_ce") for x in similarity])
    assert share[soft.argmin()].item() == pytest.approx(0.75)
    hard = torch.stack([patch_alignment_loss(x, weights) for x in similarity])
    assert hard.argmin().item() == len(share) - 1 and hard[-1].item() == pytest.approx(-math.log(0.75), abs=0.01)


def test_printed_form_pushes_patches_away_from_their_class() -> None:
    similarity = torch.zeros(1, 1, 2, requires_grad=True)
    weights = torch.tensor([[[1.0, 0.0]]])
    for form, sign in (("infonce", -1), ("soft_ce", -1), ("printed", 1)):
        (slope,) = torch.autograd.grad(patch_alignment_loss(similarity, weights, form=form), similarity)  # type: ignore[arg-type]
        assert slope[0, 0, 0].sign().item() == sign


@pytest.mark.parametrize("form", FORMS)
def test_nothing_labelled_gives_zero_and_no_gradient(form: AlignmentForm) -> None:
    similarity, weights = toy()
    loss = patch_alignment_loss(similarity.requires_grad_(), torch.zeros_like(weights), form=form)
    loss.backward()
    assert loss.item() == 0 and similarity.grad is not None and similarity.grad.abs().max() == 0


@pytest.mark.parametrize("form", FORMS)
def test_unlabelled_patches_have_no_gradient_and_no_weight(form: AlignmentForm) -> None:
    similarity, weights = toy()
    loss = patch_alignment_loss(similarity.requires_grad_(), weights, form=form)
    loss.backward()
    assert similarity.grad is not None and similarity.grad[0, 2].abs().max() == 0
    assert similarity.grad.isfinite().all() and similarity.grad[0, 1].abs().min() > 0
    changed = similarity.detach().clone()
    changed[0, 2] = 1e3
    assert patch_alignment_loss(changed, weights, form=form).item() == pytest.approx(loss.item(), rel=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_large_similarities_stay_finite(form: AlignmentForm) -> None:
    similarity = torch.tensor([[[1e4, -1e4, 0.0]]], requires_grad=True)
    loss = patch_alignment_loss(similarity, torch.tensor([[[0.0, 1.0, 0.0]]]), form=form)
    loss.backward()
    assert math.isfinite(loss.item()) and similarity.grad is not None and similarity.grad.isfinite().all()


def count_cells(
    labels: npt.NDArray[np.int64], slots: int, ignore_index: int, cell_px: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The store's cell arrays of a label map, by definition: the classes of each cell and their pixels."""
    height, width = labels.shape[0] // cell_px, labels.shape[1] // cell_px
    classes = np.full((slots, height, width), ignore_index)
    counts = np.zeros((slots, height, width), dtype=np.uint8)
    for row, column in np.ndindex(height, width):
        cell = labels[row * cell_px : (row + 1) * cell_px, column * cell_px : (column + 1) * cell_px]
        ids, pixels = np.unique(cell[cell != ignore_index], return_counts=True)
        order = np.argsort(-pixels, kind="stable")
        classes[: len(ids), row, column], counts[: len(ids), row, column] = ids[order], pixels[order]
    return classes, counts


def count_patches(labels: npt.NDArray[np.int64], num_classes: int, patch_px: int) -> npt.NDArray[np.float64]:
    """w_ij straight from a label map: pixels of class j / all pixels of patch i, patches row by row."""
    rows = []
    for row, column in np.ndindex(labels.shape[0] // patch_px, labels.shape[1] // patch_px):
        patch = labels[row * patch_px : (row + 1) * patch_px, column * patch_px : (column + 1) * patch_px]
        rows.append([(patch == j).sum() / patch_px**2 for j in range(num_classes)])
    return np.array(rows)


@st.composite
def label_maps(draw: st.DrawFn) -> npt.NDArray[np.int64]:
    """Canvas of 4 x 5 patches of 16 px: blocks of any size (classes meet inside cells), ignored parts, padding."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    block = draw(st.sampled_from([3, 5, 8, 16, 40]))  # 3: several classes per cell; 40: whole patches of one
    coarse = rng.integers(0, 7, (64 // block + 1, 80 // block + 1))
    labels = np.kron(coarse, np.ones((block, block), dtype=np.int64))[:64, :80]
    labels = np.where(labels == 6, 255, labels)  # ignored pixels
    labels[draw(st.integers(20, 64)) :, :] = 255  # padding below the frame
    return labels


@settings(max_examples=25, deadline=None)
@given(labels=label_maps(), top=st.integers(0, 4), left=st.integers(0, 6), flip=st.booleans())
def test_weights_equal_counting_the_cropped_label_map(
    labels: npt.NDArray[np.int64], top: int, left: int, flip: bool
) -> None:
    classes, counts = count_cells(labels, slots=8, ignore_index=255, cell_px=8)
    crop = labels[8 * top : 8 * top + 32, 8 * left : 8 * left + 32]
    cells = [array[:, top : top + 4, left : left + 4] for array in (classes, counts)]
    if flip:
        crop, cells = crop[:, ::-1], [array[..., ::-1] for array in cells]
    cell_classes, cell_counts = (torch.from_numpy(array.copy())[None] for array in cells)
    got = patch_weights(cell_classes, cell_counts, num_classes=6, cells_per_patch=2, ignore_index=255)
    expected = count_patches(crop, 6, 16)
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got[0].double().numpy(), expected)  # whole pixels / 256: exact in float32
    labelled = labelled_patches(cell_classes, cell_counts, 2, ignore_index=255)
    np.testing.assert_array_equal(labelled[0].numpy(), expected.sum(-1) > 0)


def test_convention_patches_are_in_row_major_order() -> None:
    classes = torch.arange(6).view(1, 1, 2, 3)
    weights = patch_weights(classes, torch.full((1, 1, 2, 3), 64), 6, 1, ignore_index=255)
    assert torch.equal(weights[0], torch.eye(6))


def test_weights_take_every_integer_type() -> None:
    for dtype in (torch.uint8, torch.int32, torch.int64):
        classes, counts = torch.tensor([[[[2]]]], dtype=dtype), torch.tensor([[[[16]]]], dtype=torch.uint8)
        assert patch_weights(classes, counts, 3, 1, ignore_index=255).tolist() == [[[0, 0, 0.25]]]


def test_what_does_not_fit_is_named() -> None:
    similarity, weights = toy()
    with pytest.raises(ConfigError, match="unknown alignment loss 'hinge'\n  hint: known: infonce, soft_ce, printed"):
        patch_alignment_loss(similarity, weights, form="hinge")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"one shape \(B, N, T\)"):
        patch_alignment_loss(similarity, weights[:, :5])
    cells = torch.zeros(1, 2, 3, 4, dtype=torch.int64)
    with pytest.raises(ShapeError, match="3 x 4 cells do not divide into patches of 2 x 2"):
        patch_weights(cells, cells, 5, 2, ignore_index=255)
    with pytest.raises(ShapeError, match=r"one shape \(B, K, h, w\)"):
        patch_weights(cells, cells[:, :1], 5, 1, ignore_index=255)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        patch_weights(cells + 5, cells, 5, 1, ignore_index=255)
