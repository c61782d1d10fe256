"""Files of weights: native and foreign, found by name or path."""
