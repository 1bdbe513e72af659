"""What runs on a tile: the processing steps of a package around its network, in whatever runtime."""
