"""Training of task heads on labelled proteins: on a frozen encoder, with LoRA, or with all weights."""
