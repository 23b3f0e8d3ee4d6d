"""The engine as a process of its own: a completer behind HTTP, and the client that talks to it."""
