"""Training: recipes, the one loop, runs as folders, and their export to model bundles."""
