"""HDF5 files: written, looked over, put together, and read."""
