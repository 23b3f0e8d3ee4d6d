"""What becomes of a text before it is shown: a filter a module."""
