"""Train on Validation (Jain, Montanari, Sasoglu; arXiv 2510.00386): path variants as data, fit, scan, score."""
