"""Outputs: HDF5, text and pictures, written whole or not at all, looked over, put together, and read."""
