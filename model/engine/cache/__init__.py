"""Keys and values of what has been read: pages in a prefix tree, and copies in one piece."""
