"""Shards of a pool: read, stored, and put together as the score table."""
