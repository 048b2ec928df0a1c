"""How a computation runs on a machine: checks, files, rows, random numbers, threads, processes and devices."""
