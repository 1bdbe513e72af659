"""Runs a package over images of any size: plan, blocks, tiles, ledger, output.

`networks` run on a tile, `sight` knows how far they see, `schedulers` hand out blocks, `output` takes the results. What
lies beside them plans the job (`meeting`, `planning`, `shaping`), does a block (`work`, `blocks`) and the whole (`run`,
`place`, `ledger`, `finish`). onnxruntime and OpenVINO live here, no torch but for packages that have nothing else.
"""
