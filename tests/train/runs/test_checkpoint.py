"""Checkpoints: written atomically, verified before use, refused by name when they do not fit."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from physseg.common.atomic import remove_partials
from physseg.train.errors import CheckpointError
from physseg.train.runs import checkpoint
from physseg.train.runs.checkpoint import CheckpointState

from ...fuzzing import as_json, mutants, mutated, survives

SETTINGS = {"clip": "tiny", "hidden": 4}


def make_model(hidden: int = 4) -> torch.nn.Module:
    torch.manual_seed(hidden)
    return torch.nn.Sequential(torch.nn.Linear(3, hidden), torch.nn.BatchNorm1d(hidden))


def save(folder: Path, step: int, model: torch.nn.Module | None = None, **settings: Any) -> Path:
    state = CheckpointState(step=step, model=SETTINGS | settings, classes=("cat", "dog"), data={"store": "abc"})
    trainer = {"optimizer": {"lr": 0.1, "moments": torch.ones(2)}, "rng": torch.get_rng_state()}
    return checkpoint.save(folder, state, (model or make_model()).state_dict(), trainer)


def test_write_read_identity(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model[0].weight.add_(1)
    path = save(tmp_path, 100, model)
    other = make_model()
    state = checkpoint.load_model(path, other, SETTINGS)
    assert (state.step, state.classes, state.data) == (100, ("cat", "dog"), {"store": "abc"})
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    trainer = checkpoint.load_trainer(path)
    assert torch.equal(trainer["optimizer"]["moments"], torch.ones(2))


def test_latest_is_found_by_name_and_pruned(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        save(tmp_path, step)
    assert checkpoint.path_of(tmp_path, None).name == "step_00000100"
    assert checkpoint.prune(tmp_path, 2) == [5]
    assert checkpoint.steps(tmp_path) == [20, 100]
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; there are 20, 100"):
        checkpoint.path_of(tmp_path, 7)
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.path_of(tmp_path / "nothing", None)


@pytest.mark.parametrize(
    "broken", ["safetensors.torch.save_file", "torch.save", "json.dumps", "os.fsync", "pathlib.Path.rename"]
)
def test_a_crash_while_writing_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Whatever fails on the way: the checkpoint before is the latest, and nothing half-written has a valid name."""
    save(tmp_path, 1)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint.steps(tmp_path) == [1]
    checkpoint.read_state(checkpoint.path_of(tmp_path, None))
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_00000001"]


def test_what_a_killed_process_left_is_not_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / ".step_00000002.partial-0a1b2c3d")
    assert checkpoint.steps(tmp_path) == []
    assert remove_partials(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_torn_checkpoint_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    path = save(tmp_path, 3) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-10])
    with pytest.raises(CheckpointError, match=f"{name}: torn or changed") as caught:
        checkpoint.read_state(path.parent)
    assert "step_00000003" in (caught.value.hint or "")


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "step_00000001").mkdir()
    with pytest.raises(CheckpointError, match="not a checkpoint of physseg"):
        checkpoint.read_state(tmp_path / "step_00000001")
    path = save(tmp_path, 2) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this physseg reads 1"):
        checkpoint.read_state(path.parent)
    path.write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match="not a checkpoint of physseg"):
        checkpoint.read_state(path.parent)


def test_another_architecture_names_the_differing_settings(tmp_path: Path) -> None:
    path = save(tmp_path, 1, hidden=8)
    with pytest.raises(CheckpointError, match=r"model\.hidden \(wanted 4, has 8\)"):
        checkpoint.load_model(path, make_model(), SETTINGS)
    wider = save(tmp_path, 2, make_model(8))
    with pytest.raises(CheckpointError, match=r"0\.weight is \(8, 3\), wanted \(4, 3\)"):
        checkpoint.load_model(wider, make_model(), SETTINGS)


def test_unpickling_runs_no_code(tmp_path: Path) -> None:
    """A trainer.pt from somebody else, with hashes to match, must not execute what it carries."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "owned").touch, ())

    state = CheckpointState(step=1, model=SETTINGS, classes=("cat",), data=None)
    path = checkpoint.save(tmp_path / "run", state, make_model().state_dict(), {"optimizer": Evil()})
    checkpoint.read_state(path)
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        checkpoint.load_trainer(path)
    assert not (tmp_path / "owned").exists()


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    model = make_model()
    with torch.no_grad():
        model[0].bias.fill_(7)
    path = save(tmp_path, 1, model)
    other = make_model()
    checkpoint.load_model(path, other, SETTINGS)
    assert torch.equal(other[0].bias, torch.full((4,), 7.0))


def changed(path: Path, **values: Any) -> None:
    document = json.loads((path / "state.json").read_text()) | values
    (path / "state.json").write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))


@pytest.mark.parametrize("values", [{"step": 22}, {"classes": ["cow", "dog"]}, {"files": {}}, {"data": None}])
@pytest.mark.parametrize("sealed", [True, False])
def test_a_changed_state_is_refused(values: dict[str, Any], sealed: bool, tmp_path: Path) -> None:
    path = save(tmp_path, 20)
    changed(path, **values, **({} if sealed else {"sha256": ...}))
    if not sealed and values.keys() & {"classes", "data"}:
        checkpoint.read_state(path)  # of the time before digests: nothing tells
    else:
        with pytest.raises(CheckpointError, match=r"state\.json"):
            checkpoint.read_state(path)


def test_a_checkpoint_of_before_opens_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, 20)
    changed(path, sha256=...)
    assert checkpoint.load_model(path, make_model(), SETTINGS).step == 20
    assert capsys.readouterr().err.count("without a digest") == 1


def test_a_torn_latest_checkpoint_offers_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint before that of step 1"):
        checkpoint.path_of(save(tmp_path, 1).parent, "previous")
    (save(tmp_path, 2) / "model.safetensors").write_bytes(b"torn")
    hints = [f"{tmp_path}/step_00000002 and `train` resumes from step 1;", "--checkpoint previous`"]
    for hint in (hints, [hints[0], "--checkpoint 1`"]):
        with pytest.raises(CheckpointError, match="torn or changed") as caught:
            checkpoint.read_state(checkpoint.path_of(tmp_path, 2))
        assert all(text in str(caught.value) for text in hint)
        save(tmp_path, 3)  # from now on it is not the latest
    assert checkpoint.read_state(checkpoint.path_of(tmp_path, "previous").with_name("step_00000001")).step == 1
    (tmp_path / "step_00000001" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"There is none before it: .* begins anew"):
        checkpoint.read_state(tmp_path / "step_00000001")


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (1.0, torch.float64)])
def test_unfit_weights_are_named(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model[0].bias[1] = value
    path = save(tmp_path, 1, model.to(dtype))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: 0\.(bias|weight): .*(NaN|float64)"):
        checkpoint.load_model(path, make_model(), SETTINGS)


def test_damaged_states_are_read_or_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    state = path / "state.json"
    good = state.read_bytes()
    document, draw = json.loads(good), random.Random(0)
    del document["sha256"]
    for number, data in enumerate(
        [*mutants(good, seed=0, count=100), *(as_json(mutated(document, draw)) for _ in range(150))]
    ):
        state.write_bytes(data)
        survives(lambda: checkpoint.load_model(path, make_model(), SETTINGS), f"mutant {number}")


def test_damaged_trainer_states_are_read_or_refused(tmp_path: Path) -> None:
    """A trainer.pt of somebody's making: state.json's hash of it, verified before, cannot tell."""
    path = save(tmp_path, 1)
    good = (path / "trainer.pt").read_bytes()
    for number, data in enumerate(mutants(good, seed=3, count=60)):
        (path / "trainer.pt").write_bytes(data)
        survives(lambda: checkpoint.load_trainer(path), f"mutant {number}")


@pytest.mark.parametrize("content", [[1], {}, {"optimizer": 1}, torch.ones(2)])
def test_a_trainer_state_of_another_form_is_named(content: object, tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    torch.save(content, path / "trainer.pt")
    with pytest.raises(CheckpointError, match=r"trainer\.pt: expected the state of an optimizer"):
        checkpoint.load_trainer(path)


def test_a_state_that_went_since_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for content in ("[", '{"format": 1, "files": []}', '{"format": 1, "files": {}}'):
        (path / "state.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"state\.json"):
            checkpoint.weights_sha256(path)


def test_our_own_bugs_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    path = save(tmp_path, 1)
    for name in ("read_tensors", "check_weights", "check_seal"):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError, match="planted"):
            patch.setattr(checkpoint, name, planted)
            checkpoint.load_model(path, make_model(), SETTINGS)
    monkeypatch.setattr(checkpoint, "read_tensors", planted)
    with pytest.raises(ZeroDivisionError, match="planted"):
        checkpoint.load_trainer(path)
