"""One file a surface of the prompt path."""
