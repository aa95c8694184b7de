"""The run folder: what a run was made from, how far it is, and whether a command may go on with it."""
