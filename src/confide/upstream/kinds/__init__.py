"""One file a kind of upstream."""
