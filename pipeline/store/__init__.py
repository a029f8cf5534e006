"""The Zarr store: schema, layout, commit records, codec, reader, locks. What the trainer imports."""
