"""What makes two results comparable: their protocol, which must be equal, and their environment, which is noted.

Both are in every result as they are and as a short hash. Results of earlier versions have one hash of protocol and
physseg's version, and no environment.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import cv2

from ... import __version__
from ...common.documents import digest_of_json
from ...common.settings import differing_keys, to_dict
from ...manifests.manifest import Manifest
from ..model.inference import PRECISION, InferenceSettings
from ..model.segmenter import Segmenter

HASH_DIGITS = 12


def identity(
    model: Segmenter, manifest: Manifest, settings: InferenceSettings, max_images: int | None
) -> dict[str, Any]:
    """What was evaluated, by which protocol, in which environment; a `classes_kept` that changes nothing is none."""
    config, num_classes = model.config, len(manifest.vocabulary.classes)
    kept = config.classes_kept(num_classes, settings.classes_kept)
    settings = settings.fitted(config.arch.crop_px)
    not_named = ("batch_windows", "memory_bytes", "classes_kept")
    return {
        **identity_of_predictions(
            manifest,
            {
                "templates": list(config.templates),
                "synonyms": config.synonyms,
                "preselected_classes": config.pad_len if kept == config.classes_kept(num_classes) else kept,
                "precision": PRECISION,
                "max_images": max_images,
                # What bounds memory does not change what is computed; classes_kept is in preselected_classes.
                **{key: of for key, of in to_dict(settings).items() if key not in not_named},
            },
        ),
        **environment(next(model.parameters()).device.type),
    }


def identity_of_predictions(manifest: Manifest, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """On what predictions were scored, and by which protocol; `made_by` is the part of those who made them."""
    vocabulary = manifest.vocabulary
    protocol = {
        "miou_over": "ground_truth",
        "classes": vocabulary.fingerprint,
        "fold_from": vocabulary.fold_from,
        **made_by,
    }
    return {
        "dataset": manifest.dataset,
        "vocabulary": vocabulary.name,
        "manifest": manifest.fingerprint,
        "ignore_index": vocabulary.ignore_index,
        "shared_prompts": {name: list(ids) for name, ids in vocabulary.shared_prompts.items()},
        "protocol": protocol,
        "fingerprint": digest_of_json(protocol)[:HASH_DIGITS],
    }


def environment(device: str) -> dict[str, Any]:
    """The kind of device and the versions that may move a number's last digits, and their hash."""
    versions = {name: version(name) for name in ("torch", "torchvision", "pillow", "numpy")}
    return _hashed({"device": device, "physseg": __version__, **versions, "opencv": cv2.__version__})


def merged_environment(sources: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The environment of several results: where they differ, a list of what each has. Nothing of earlier versions."""
    all_of = [source["environment"] for source in sources if "environment" in source]
    values = {name: list(dict.fromkeys(each.get(name) for each in all_of)) for each in all_of for name in each}
    return _hashed({name: found[0] if len(found) == 1 else found for name, found in values.items()}) if values else {}


def environment_note(source: Mapping[str, Any]) -> str | None:
    """One line on what differs inside the environment of a merged result; None where nothing does."""
    mixed = {name: found for name, found in source.get("environment", {}).items() if isinstance(found, list)}
    listed = ", ".join(f"{name} ({', '.join(map(str, found))})" for name, found in mixed.items())
    return f"note: from environments that differ in {listed}" if mixed else None


def protocol_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Dotted keys of the protocols of two results that differ; between versions, a sentence on that alone."""
    if ("environment" in ours) != ("environment" in theirs):
        return ["their version: one is of a physseg whose results lack a part of the protocol, so evaluate all by one"]
    return list(differing_keys(ours.get("protocol", {}), theirs.get("protocol", {}), "protocol"))


def _hashed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"environment": dict(values), "environment_fingerprint": digest_of_json(values)[:HASH_DIGITS]}
