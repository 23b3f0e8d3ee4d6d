"""How good the model is, and how much of that it knows: `mezzotint evaluate`."""
