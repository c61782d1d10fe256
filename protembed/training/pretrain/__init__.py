"""Pretraining on masked residues and on profiles of homologs."""
