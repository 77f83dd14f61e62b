"""The embedded engine: its weights and where they come from, and the child process that runs them."""
