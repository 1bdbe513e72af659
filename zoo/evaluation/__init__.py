"""How good a result is beside the truth: objects by their overlap, intensities by their error; images of any size."""
