"""The language server: editor documents in, checked completions out. No torch in here."""
