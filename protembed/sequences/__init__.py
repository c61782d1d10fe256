"""What comes in: alphabets, records, windows, batches."""
