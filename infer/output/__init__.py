"""Where results go: chunks on disk, arrays, pyramids, OME-Zarr and OME-TIFF."""
