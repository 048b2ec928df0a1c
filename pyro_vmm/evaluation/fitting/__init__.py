"""How are many fits made to parts of the same data? The parts, the loop over fits, and the folder that keeps them."""
