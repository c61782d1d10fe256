"""Labelled proteins: files of many forms become numbers that mean something."""
