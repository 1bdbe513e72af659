"""How far a network sees: read from its graph, or measured on the image."""
