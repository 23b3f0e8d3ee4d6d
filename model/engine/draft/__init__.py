"""Drafts, and the backbone's verdict on them."""
