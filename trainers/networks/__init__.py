"""Networks: a class, its `config()`, and a line in the table `NETWORKS`."""
