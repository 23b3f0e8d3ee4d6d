"""The backbone: an open causal code model that is read as it is, and the layout of its prompt."""
