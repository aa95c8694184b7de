"""Comparing ways to choose rows by training on what they choose: the same seeds, steps and test for all."""
