"""Our shards against zarr-python's: each reads what the other wrote, and damage never passes."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from physseg.pipeline.store.errors import StoreCorruptError
from physseg.pipeline.store.schema import StoreSchema
from physseg.pipeline.store.shard_codec import ABSENT, compress, decode_index, decompress_into, encode_shard, index_size

CHUNKS = 4


def _zarr_array(path: Path, shape: tuple[int, ...], dtype: str) -> zarr.Array:
    return zarr.create_array(
        store=path,
        shape=(CHUNKS, *shape),
        chunks=(1, *shape),
        shards=(CHUNKS, *shape),
        dtype=dtype,
        fill_value=0,
        compressors=[zarr.codecs.ZstdCodec(level=3, checksum=False), zarr.codecs.Crc32cCodec()],
        config={"write_empty_chunks": True},
    )


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from(["uint8", "uint16", "uint32"]),  # 1 byte: no endianness; more: little endian
    shape=st.sampled_from([(5, 7), (16, 16), (3, 4, 4)]),
)
def test_each_reads_what_the_other_wrote(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, dtype: str, shape: tuple[int, ...]
) -> None:
    values = data.draw(arrays(dtype, (CHUNKS, *shape)))
    folder = tmp_path_factory.mktemp("shard")
    array = _zarr_array(folder / "a", shape, dtype)
    array[:] = values
    file = folder / "a" / "c" / "/".join("0" * (len(shape) + 1))
    theirs = file.read_bytes()
    index = decode_index(theirs[-index_size(CHUNKS) :], CHUNKS, len(theirs), "theirs")
    for row in range(CHUNKS):
        out = np.empty(shape, dtype)
        offset, length = index[row].tolist()
        decompress_into(theirs[offset : offset + length], out)
        np.testing.assert_array_equal(out, values[row])
    file.write_bytes(encode_shard([compress(values[row : row + 1]) for row in range(CHUNKS)], CHUNKS))
    np.testing.assert_array_equal(zarr.open_array(folder / "a", mode="r")[:], values)


def test_slots_beyond_the_last_sample_are_marked_absent() -> None:
    shard = encode_shard([b"abc"], CHUNKS)
    index = decode_index(shard[-index_size(CHUNKS) :], CHUNKS, len(shard), "here")
    assert index[0].tolist() == [0, 3]
    assert (index[1:] == ABSENT).all()


def test_every_flipped_bit_is_noticed() -> None:
    values = np.random.default_rng(0).integers(0, 3, (2, 6, 6)).astype(np.uint8)
    shard = encode_shard([compress(value) for value in values], 2)
    np.testing.assert_array_equal(_read_shard(shard, values.shape), values)
    for position in range(len(shard)):
        for bit in range(8):
            damaged = bytearray(shard)
            damaged[position] ^= 1 << bit
            with pytest.raises(StoreCorruptError):
                _read_shard(bytes(damaged), values.shape)


def _read_shard(shard: bytes, shape: tuple[int, ...]) -> np.ndarray:
    index = decode_index(shard[-index_size(shape[0]) :], shape[0], len(shard), "shard")
    values = np.empty(shape, np.uint8)
    for row in range(shape[0]):
        offset, length = index[row].tolist()
        decompress_into(shard[offset : offset + length], values[row])
    return values


@pytest.mark.parametrize("cut", [1, 4, 20, 60])
def test_a_truncated_shard_is_noticed(cut: int) -> None:
    shard = encode_shard([compress(np.zeros((8, 8), np.uint8))] * 2, 2)[:-cut]
    with pytest.raises(StoreCorruptError, match=r"shard 7: .*(checksum|too short)"):
        decode_index(shard[-index_size(2) :], 2, len(shard), "shard 7")


@pytest.mark.parametrize("size", [0, 99, 101])
def test_a_chunk_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(StoreCorruptError, match=f"expected {size} bytes, got 100"):
        decompress_into(compress(np.zeros(100, np.uint8)), np.empty(size, np.uint8))


def test_metadata_documents_are_what_zarr_would_write(tmp_path: Path, make_manifest) -> None:  # type: ignore[no-untyped-def]
    """Zarr opens every array of the table with the shape, dtype, fill and names the table says."""
    from physseg.pipeline.run.run import prepare
    from physseg.pipeline.store.layout import metadata_documents

    schema: StoreSchema = prepare(make_manifest(3), tmp_path / "s.zarr").schema
    for path, data in metadata_documents(schema).items():
        (tmp_path / "s.zarr" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s.zarr" / path).write_bytes(data)
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    for spec in schema.specs:
        array = group[spec.name]
        assert array.shape == (3, *schema.sample_shape(spec))
        assert array.dtype == schema.dtype(spec)
        assert array.fill_value == schema.fill(spec)
        assert array.metadata.dimension_names == ("sample", *spec.dims)
        assert (array.shards is not None) == spec.is_sharded
