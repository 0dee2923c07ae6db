"""One module per framework."""
