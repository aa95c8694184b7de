"""Faster ways to the same numbers: fused adapters, attention, norms, packed batches, memory."""
