"""The service: one prompt path, its routes, and who may use them."""
