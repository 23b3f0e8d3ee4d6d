"""Open diffusion checkpoints: their configurations, weight names and tokenizers, mapped onto one
plain Transformer. No model code of theirs is read or run."""
