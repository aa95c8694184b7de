"""The verbs: each reads settings, calls rooms in their order, and writes a run."""
