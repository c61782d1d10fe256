"""Training: data, masking, optimisation and the loop."""
