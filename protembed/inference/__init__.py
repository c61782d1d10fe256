"""What task heads say of proteins: computed, written, drawn, and measured."""
