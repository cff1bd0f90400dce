"""Document-to-image retrieval (CFIR): which images of a large collection illustrate a text."""
