"""Readers: one file format each, every one a lazy `FileArray` that `ordered.assemble` turns into an `Image`."""
