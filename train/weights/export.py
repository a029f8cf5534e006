"""A trained model as two files for somebody else's use: `physseg export RUN OUT`.

    OUT/model.safetensors   the weights at inference: neither auxiliary head, no optimizer state
    OUT/model.json          how to build the model and ask it: sizes, prompts, synonym rule, training vocabulary; where
                            it comes from, by which physseg; size and sha256 of the other file; a digest of all that

`physseg.load(OUT)`, `physseg evaluate` and `physseg predict` take the folder. It names no path of the machine it was
made on.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ... import __version__
from ...common.atomic import atomic_folder, atomic_json
from ...common.documents import digest_of_json, parsing, read_document
from ...common.errors import ConfigError
from ...common.settings import build, to_dict
from ..errors import CheckpointError, RunFolderError
from ..model.config import SegmenterConfig
from ..model.segmenter import Segmenter, blank_segmenter
from ..runs.checkpoint import check_seal
from ..runs.tensor_files import check_weights, read_tensors, writing_to
from .cache import file_sha256

FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE = "model.json", "model.safetensors"


def is_export(path: Path) -> bool:
    """Whether a folder is an exported model."""
    return (path / CONFIG_FILE).is_file()


def write_export(
    out: Path, model: Segmenter, *, classes: tuple[str, ...], step: int, origin: Mapping[str, Any] | None
) -> None:
    """Write a model of `step` training steps as it predicts, without its auxiliary heads, atomically.

    `classes` is the training vocabulary, `origin` whatever is known of where the weights come from. Raises
    RunFolderError if `out` is in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out}: exists already", hint="choose another name for the export")
    tensors = {
        name: tensor.detach().to("cpu").contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(("structure_head.", "alignment_head."))
    }
    with writing_to(out), atomic_folder(out) as partial:
        weights = partial / WEIGHTS_FILE
        safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})  # two would come in any order
        # Sizes in full: what a preset's name stands for may change one day.
        config = replace(
            model.config, structures=(), structure_classes=None, alignment=False, architecture=model.arch.in_full
        )
        document = {
            "format": FORMAT,
            "physseg": __version__,
            "step": step,
            "vocabulary": list(classes),
            "model": to_dict(config),
            "origin": origin,
            "weights": {"file": WEIGHTS_FILE, "bytes": weights.stat().st_size, "sha256": file_sha256(weights)},
        }
        atomic_json(partial / CONFIG_FILE, document | {"sha256": digest_of_json(document)})
        weights.chmod((partial / CONFIG_FILE).stat().st_mode)


def read_export(path: Path) -> tuple[Segmenter, dict[str, Any]]:
    """The model in evaluation mode, on the CPU, and the whole of `model.json`.

    Raises:
        CheckpointError: The format is another one, the weights are torn or changed, or names or shapes do not fit.
    """
    config_file, weights = path / CONFIG_FILE, path / WEIGHTS_FILE
    fault = f"{config_file}: not the description of an exported model"
    keys = ("physseg", "step", "vocabulary", "model", "origin", "weights")
    document = read_document(config_file, FORMAT, CheckpointError, fault, keys=keys)
    again = "copy both files of the export again"
    check_seal(document, config_file, again)
    hint = f"it was written by physseg {document['physseg']}, this is {__version__}"
    with parsing(CheckpointError, fault, again):
        expected = str(document["weights"]["sha256"])
        document |= {"vocabulary": tuple(map(str, document["vocabulary"])), "step": int(document["step"])}
        document["origin"] = dict(document["origin"] or {})
        settings = dict(document["model"])
    found = file_sha256(weights) if weights.is_file() else "no file"
    if found != expected:
        where = f"{weights}: torn or changed since it was exported"
        raise CheckpointError.mismatch(where, f"sha256 {expected}", found, again)
    try:
        model = blank_segmenter(build(SegmenterConfig, settings, base=path))
    except ConfigError as error:
        raise CheckpointError(f"{config_file}: {error.args[0]}", hint=error.hint or hint) from error
    read = read_tensors(weights, fault=f"{weights}: cannot be read", hint=again)
    check_weights(read, weights, again)
    # Copied: in the file they lie at any multiple of 8 bytes, and on some CPUs the last bits of a matrix product depend
    # on where its operands lie. PyTorch's own memory is aligned as in the run that was exported.
    tensors: dict[str, Tensor] = {name: tensor.clone() for name, tensor in read.items()}
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        fault = str(error).splitlines()[1].strip()
        raise CheckpointError(f"{weights}: does not fit the sizes in {CONFIG_FILE}: {fault}", hint=hint) from error
    return model.eval(), document
