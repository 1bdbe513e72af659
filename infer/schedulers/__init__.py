"""Who does the blocks: threads, processes, a cluster of dask, slurm."""
