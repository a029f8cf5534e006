"""Manifest to Zarr store, with Dask: schema, tasks, reader, verification and inspection."""
