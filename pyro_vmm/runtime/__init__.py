"""How does a computation run on a machine? Checks, files, rows, random numbers, threads, processes and devices."""
