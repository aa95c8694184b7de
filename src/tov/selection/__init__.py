"""Which n rows to take, given scores: rules, length bins, quotas. Pure NumPy."""
