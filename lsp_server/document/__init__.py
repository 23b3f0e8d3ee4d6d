"""What stands in documents: around the cursor, in other files, in holes, in recent edits."""
