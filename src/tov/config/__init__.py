"""Settings: every one once, with its default, its help, and what changes when it changes."""
