"""The order of samples and the draws: functions of (seed, position), whatever shares the work."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.train.data.order import PositionBatches, Purpose, SampleOrder, permutation, random_bits, uniforms


def test_convention_random_stream() -> None:
    """Pinned: another value here means that no old run can be repeated or resumed."""
    assert permutation(7, 0, 6).tolist() == [4, 1, 3, 2, 5, 0]
    assert permutation(7, 1, 6).tolist() == [3, 1, 2, 5, 4, 0]
    assert uniforms(7, Purpose.CROP, 0, 3).tolist() == [0.8325354439343788, 0.35366591520344914, 0.08569592948441451]


def test_every_epoch_visits_every_sample_once() -> None:
    order = SampleOrder(3, 11)
    epochs = [[order(epoch * 11 + rank) for rank in range(11)] for epoch in range(5)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_order_is_even_over_first_places() -> None:
    """A sort by too few bits, or a stable order of equal keys, would favour some samples."""
    firsts = np.bincount([permutation(seed, 0, 4)[0] for seed in range(2000)], minlength=4)
    assert np.abs(firsts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_streams_are_independent() -> None:
    """Equal numbers for two purposes, seeds or indices would tie crop to jitter, or one epoch to the next."""
    keys = [
        (0, Purpose.CROP, 5),
        (0, Purpose.JITTER, 5),
        (5, Purpose.CROP, 0),
        (0, Purpose.ORDER, 5),
        (0, Purpose.CROP, 6),
    ]
    values = [tuple(uniforms(seed, purpose, index, 4)) for seed, purpose, index in keys]
    assert len(set(values)) == len(values)


def test_uniforms_are_in_the_unit_interval_and_prefix_stable() -> None:
    many = uniforms(1, Purpose.JITTER, 2, 1000)
    assert many.min() >= 0
    assert many.max() < 1
    assert abs(many.mean() - 0.5) < 0.05
    np.testing.assert_array_equal(uniforms(1, Purpose.JITTER, 2, 10), many[:10])


def test_streams_do_not_overlap() -> None:
    """Counters count up from 0 in the low word; the purpose sits in the highest, 2^192 blocks away."""
    long = {int(word) for word in random_bits(0, Purpose.ORDER, 0).random_raw(4096)}
    assert not long & {int(word) for word in random_bits(0, Purpose.CROP, 0).random_raw(4096)}


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 10**7),
    num_steps=st.integers(0, 5),
    share=st.integers(1, 4),
    num_ranks=st.sampled_from([1, 2, 3, 4]),
)
def test_ranks_share_the_global_batches_of_one_rank(start: int, num_steps: int, share: int, num_ranks: int) -> None:
    """Guards elastic order: 1, 2 or 4 ranks take the same positions in every step."""
    batch, stop = share * num_ranks, start + num_steps
    alone = list(PositionBatches(start=start, stop=stop, batch_size=batch))
    shared = [
        list(PositionBatches(start=start, stop=stop, batch_size=batch, rank=rank, num_ranks=num_ranks))
        for rank in range(num_ranks)
    ]
    assert [[position for part in parts for position in part] for parts in zip(*shared, strict=True)] == alone
    assert [positions[0] for positions in alone] == [step * batch for step in range(start, stop)]


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 50), total=st.integers(0, 60), batch=st.integers(1, 7))
def test_starting_later_equals_walking_there(first: int, total: int, batch: int) -> None:
    """Guards resume: the sampler of a resumed run continues the list of the uninterrupted one."""
    whole = list(PositionBatches(start=0, stop=total, batch_size=batch))
    assert list(PositionBatches(start=first, stop=total, batch_size=batch)) == whole[first:]
    assert len(PositionBatches(start=first, stop=total, batch_size=batch)) == len(whole[first:])


def test_order_survives_pickling_and_any_access_pattern() -> None:
    order = SampleOrder(9, 5)
    walked = [order(position) for position in range(40)]
    copy = pickle.loads(pickle.dumps(order))
    assert [copy(position) for position in reversed(range(40))] == walked[::-1]
    assert len(copy._epochs) <= 2


def test_batch_must_divide_among_ranks() -> None:
    with pytest.raises(ValueError, match="6 is not a multiple of the 4 ranks"):
        PositionBatches(start=0, stop=1, batch_size=6, num_ranks=4)
