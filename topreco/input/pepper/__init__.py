"""Event files of pepper."""
