"""From a cursor to a suggestion: when to ask, what to ask for, what came back."""
