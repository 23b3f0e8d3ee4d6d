"""How good the model and its language server are: one module a measurement."""
