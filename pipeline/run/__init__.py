"""Computing a store: plan, shard task, run, verification."""
