"""The encoder, its configuration and its heads."""
