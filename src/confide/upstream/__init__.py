"""What requests are forwarded to, and how."""
