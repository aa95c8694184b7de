"""Training: the one loop that steps an optimizer, the final training by it, and TRL's beside it."""
