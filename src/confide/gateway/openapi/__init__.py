"""What the service says of its own API: the OpenAPI document, the page that is made of it, and the documents."""
