"""The command line: `mezzotint complete`, `lsp`, `doctor`."""
