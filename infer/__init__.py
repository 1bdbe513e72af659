"""Runs a package over images of any size: plan, blocks, tiles, ledger, output. onnxruntime lives here, no torch."""
