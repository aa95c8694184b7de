"""Slow, obviously right twins of what tov computes. They import nothing of tov."""
