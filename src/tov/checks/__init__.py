"""What is looked at before training: the chosen rows beside the pool, the target and the test. Loads no model."""
