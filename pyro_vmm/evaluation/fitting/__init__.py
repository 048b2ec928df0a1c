"""Many fits to parts of the same data: the parts, the loop over fits, and the folder that keeps them."""
