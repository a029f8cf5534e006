"""What a store says of itself: to zarr and xarray without a warning, and to a physseg that lacks a layer's package."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import physseg
import pytest
import xarray
import zarr
from physseg.manifests.manifest import Manifest, Vocabulary
from physseg.pipeline.run import run
from physseg.pipeline.run.verify import repair, verify
from physseg.pipeline.store import layout
from physseg.pipeline.store.errors import StoreError
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.layout import metadata_documents, open_schema
from physseg.pipeline.store.schema import StoredArray, StoreSchema
from physseg.pipeline.store.version_1 import describe_arrays
from physseg.structure_extractors import registry
from physseg.structure_extractors.errors import ExtractorError, PackageError
from physseg.structure_extractors.interface import ArraySpec, identity

MakeManifest = Callable[..., Manifest]
FRAME = Frame(short_edge=32, max_long_edge=64, canvas=64)
V1_ARRAYS = [
    *("labels", "frame_size", "canny", "mask_edges", "sift"),
    *("superpoint", "superpoint_dense", "cell_classes", "cell_counts", "cell_dropped"),
]


def preprocess(manifest: Manifest, store: Path, **options: Any) -> run.RunReport:
    return run.preprocess(manifest, store, **{"scheduler": "sync", "frame": FRAME, "progress": False} | options)


def as_version_1(store: Path) -> None:
    """Give a store the documents it would have had in version 1."""
    for name in layout.ID_ARRAYS:
        shutil.rmtree(store / name)
    schema = open_schema(store)
    arrays = tuple(StoredArray(**array) for array in describe_arrays(list(schema.array_names), dict(schema.layers)))
    for path, data in metadata_documents(replace(schema, version=1, arrays=arrays)).items():
        (store / path).write_bytes(data)


@dataclass(frozen=True, kw_only=True)
class Corners:
    """A structure of another package: two planes of class ids, and a number per sample."""

    name: ClassVar[str] = "corners"
    revision: ClassVar[int] = 1
    slots: ClassVar[int] = 2
    arrays: ClassVar[tuple[ArraySpec, ...]] = (
        ArraySpec("corners", "label", ("slot", "y", "x"), "ignore", "two classes of each pixel"),
        ArraySpec("corner_count", "uint16", (), 0, "number of corners", units="pixel"),
    )

    def __call__(self, image: np.ndarray, labels: np.ndarray, *, ignore_index: int) -> dict[str, np.ndarray]:
        return {"corners": np.stack([labels, labels]), "corner_count": np.array(7, np.uint16)}


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Offer an extractor of a package in this process, and take it away by offering another."""
    find, load, ours = registry.plugins.find, registry._load, registry.plugins.names("extractors")

    def offer(extractor: type) -> None:
        named = "corners" if issubclass(extractor, Corners) else ""

        def found(kind: str, name: str) -> Any:
            if name == named:
                return replace(find(kind, "canny"), name=name, package="physseg-corners", version="0.3")
            return find(kind, name)

        registry._made.cache_clear()
        monkeypatch.setattr(registry.plugins, "find", found)
        monkeypatch.setattr(registry.plugins, "names", lambda kind: (*ours, *([named] if named else [])))
        monkeypatch.setattr(registry, "_load", lambda name: extractor if name == named else load(name))

    return offer


def test_zarr_and_xarray_open_a_store_without_a_warning(make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest, store = make_manifest(5), tmp_path / "s.zarr"
    preprocess(manifest, store)
    ids = [sample.sample_id for sample in manifest.samples]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = str(zarr.open_group(store, mode="r").tree())
        dataset = xarray.open_zarr(store, consolidated=False)
    assert "canny (5, 64, 64) uint8" in tree and "manifest" not in tree
    assert dataset.coords["sample_id"].values.tolist() == ids
    by_id = dataset.sel(sample=ids[3])
    np.testing.assert_array_equal(by_id.labels, physseg_labels(store, 3))
    assert dataset.sel(sample=[ids[4], ids[0]]).sample_id.values.tolist() == [ids[4], ids[0]]
    assert dataset.canny.attrs == {"long_name": "Canny edges of the image: 0 or 255", "units": "1"}
    assert dataset.frame_size.attrs["units"] == "pixel"


def physseg_labels(store: Path, index: int) -> np.ndarray:
    """Labels of the whole canvas, by zarr alone."""
    return np.asarray(zarr.open_group(store, mode="r")["labels"][index])


def test_labels_name_their_classes(make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest = make_manifest(2)
    words = ("sea, ocean", "café au lait", "???", "ground-other", "ball")
    vocabulary = replace(manifest.vocabulary, classes=words)
    preprocess(replace(manifest, vocabulary=vocabulary), tmp_path / "s.zarr")
    attributes = zarr.open_group(tmp_path / "s.zarr", mode="r")["labels"].attrs
    assert attributes["flag_values"] == [0, 1, 2, 3, 4]
    assert attributes["flag_meanings"].split(" ") == ["sea", "café_au_lait", "class_2", "ground-other", "ball"]


def test_ids_lie_in_as_many_chunks_as_they_fill(
    make_manifest: MakeManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "IDS_PER_CHUNK", 4)
    manifest, store = make_manifest(10), tmp_path / "s.zarr"
    ids = [f"é/{index:05d}"[: 2 + index] for index in range(6)] + ["seven", "eight", "ninth", "last"]
    renamed = [replace(sample, sample_id=id_) for sample, id_ in zip(manifest.samples, ids, strict=True)]
    preprocess(replace(manifest, samples=manifest.table.of(renamed)), store)
    assert len(list((store / "sample_id" / "c").iterdir())) == 3
    assert zarr.open_group(store, mode="r")["sample_id"][:].tolist() == ids
    assert verify(store, progress=False).faults == ()


def test_documents_of_version_1_are_what_they_were() -> None:
    """The hash is that of the documents which the last release of version 1 wrote for the same settings."""
    layers: dict[str, dict[str, Any]] = {
        "labels": {"resize": "nearest", "revision": 1},
        "canny": {"low": 100.0},
        "mask_edges": {},
        "sift": {},
        "superpoint": {"dense": True},
        "patch_counts": {"max_classes": 8},
    }
    schema = StoreSchema(
        num_samples=130,
        frame=Frame(),
        vocabulary=Vocabulary(name="three", classes=("sea, ocean", "grass", "polar bear")),
        dataset="d",
        manifest_fingerprint="0" * 64,
        manifest_sha256="1" * 64,
        layers=layers,
        arrays=tuple(StoredArray(**array) for array in describe_arrays(V1_ARRAYS, layers)),
        made_with={"physseg": "0.1.0"},
        version=1,
    )
    hashed = hashlib.sha256()
    for path, data in sorted(metadata_documents(schema).items()):
        hashed.update(path.encode() + b"\0" + data)
    assert hashed.hexdigest() == "b17b5663aec8c5a8a5495d298297a2aa19d40339825fee11e9deb8bf05b00a49"
    assert schema.layer_digest("canny").startswith("5cbfc3b70c15")
    assert schema.layer_digest("patch_counts").startswith("d915f7265ab3")


def test_a_store_of_version_1_is_used_as_it_is_and_completed_without_computing(
    make_manifest: MakeManifest, tmp_path: Path
) -> None:
    manifest, store = make_manifest(5), tmp_path / "s.zarr"
    preprocess(manifest, store)
    new = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    as_version_1(store)
    old = json.loads((store / "zarr.json").read_text())["attributes"]["physseg"]
    assert (old["schema_version"], old["arrays"][:3]) == (1, ["labels", "frame_size", "canny"])
    assert verify(store, progress=False).faults == ()
    assert physseg.open_store(store)[2].arrays["canny"].shape == physseg.open_store(store)[2].size
    (store / "sift/zarr.json").unlink()
    repair(store, verify(store, progress=False), lambda manifest: pytest.fail("computed"))
    assert verify(store, progress=False).faults == ()
    assert preprocess(manifest, store).shards_computed == 0
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == new


def test_a_damaged_id_is_found_and_written_again(make_manifest: MakeManifest, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    preprocess(make_manifest(5), store)
    (store / "sample_id/c/0").write_bytes(b"other ids")
    (store / "sample/c/9").write_bytes(b"too many ids")
    report = verify(store, progress=False)
    assert {fault.path for fault in report.faults} == {"sample_id/c/0", "sample/c/9"}
    repair(store, report, lambda manifest: pytest.fail("computed"))
    assert verify(store, progress=False).faults == ()


def test_a_layer_of_a_package_stays_when_the_package_is_gone(
    make_manifest: MakeManifest, tmp_path: Path, offered: Callable[[type], None]
) -> None:
    manifest, store = make_manifest(3), tmp_path / "s.zarr"
    offered(Corners)
    preprocess(manifest, store, structures=["canny", "corners"])
    assert open_schema(store).made_with["physseg-corners"] == "0.3"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xarray.open_zarr(store, consolidated=False)
    assert dataset.sizes["corners_slot"] == 2 and dataset.sizes["slot"] == 8
    assert dataset.corner_count.values.tolist() == [7, 7, 7]
    kept = (store / "corners/c/0/0/0/0").read_bytes()

    offered(type("Nothing", (), {}))
    assert verify(store, progress=False).faults == ()
    assert physseg.open_store(store)[1].arrays["corners"].shape == (2, *physseg.open_store(store)[1].size)
    assert preprocess(manifest, store).shards_computed == 0
    preprocess(manifest, store, structures=["sift"])
    assert (store / "corners/c/0/0/0/0").read_bytes() == kept
    (store / "canny/c/0/0/0").unlink()
    preprocess(manifest, store)
    (store / "corners/c/0/0/0/0").unlink()
    with pytest.raises(StoreError, match="layer corners has to be computed again, and no package") as caught:
        preprocess(manifest, store)
    assert "physseg-corners 0.3" in str(caught.value)


def test_a_worker_with_another_revision_computes_nothing(offered: Callable[[type], None]) -> None:
    offered(Corners)
    request = registry.Request.of(Corners())
    offered(type("Corners", (Corners,), {"revision": 2}))
    with pytest.raises(PackageError, match="corners is another one here: revision 2 instead of 1") as caught:
        request.make(identity(Corners()))
    assert "physseg-corners 0.3" in str(caught.value)


@pytest.mark.parametrize("name", ["status", "sample_id", "labels", "canny"])
def test_two_arrays_of_one_name_are_refused(
    name: str, make_manifest: MakeManifest, tmp_path: Path, offered: Callable[[type], None]
) -> None:
    arrays = (ArraySpec(name, "uint8", ("y", "x"), 0, "nothing"),)
    offered(dataclass(frozen=True)(type("Corners", (Corners,), {"arrays": arrays})))
    with pytest.raises(StoreError, match=f"structure corners: expected a name .*, got {name}"):
        preprocess(make_manifest(1), tmp_path / "s.zarr", structures=["canny", "corners"])
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "Canny"}, "name: expected small letters"),
        ({"name": "../canny"}, "name: expected small letters"),
        ({"dtype": "float64"}, "dtype: expected one of label"),
        ({"dims": ("x", "y")}, "dims: expected one of"),
        ({"fill": 0.5}, "fill: expected an integer"),
        ({"meaning": None}, "meaning: expected text"),
        ({"dtype": "uint16", "target": "map"}, "target: expected an array of uint8"),
    ],
)
def test_an_array_that_no_store_could_hold_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ExtractorError, match=message):
        replace(ArraySpec("plane", "uint8", ("y", "x"), 0, "nothing"), **changed)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"name": "other"}, "expected the name 'corners'"),
        ({"revision": "1"}, "expected an integer as its `revision`"),
        ({"arrays": ("corners",)}, "expected a tuple of ArraySpec"),
        ({"slots": None}, "expected an integer as its `slots`"),
    ],
)
def test_an_extractor_that_does_not_keep_to_the_interface_is_named(
    members: dict[str, Any], message: str, offered: Callable[[type], None]
) -> None:
    changed = dataclass(frozen=True)(type("Corners", (Corners,), members))
    offered(changed)
    with pytest.raises(ExtractorError, match=message) as caught:
        registry.build(["corners"])
    assert "physseg-corners 0.3" in str(caught.value)
