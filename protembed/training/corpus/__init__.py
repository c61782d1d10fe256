"""The prepared corpus: shards on disk, splits and the stream of batches."""
