"""The way to the engine: its process, keys, and the download of its model."""
