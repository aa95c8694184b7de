"""Engines: where shards are scored. A method never knows which one."""
