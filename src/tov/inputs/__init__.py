"""What the user named as inputs: read, indexed, drawn from, remembered, and read again by a later command."""
