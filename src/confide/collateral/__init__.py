"""What vendors say about their platforms: fetched, kept while it is valid, and carried in a file."""
