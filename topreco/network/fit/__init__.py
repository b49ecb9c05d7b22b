"""The training loop and its data; knows no task."""
