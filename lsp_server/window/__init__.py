"""One editor window: its status, statistics, dialogs, and the model it wants."""
