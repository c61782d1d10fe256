"""Task heads: what they are, their files, and an encoder with heads on it."""
