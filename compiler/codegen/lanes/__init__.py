"""Lane groups -> C functions and the arguments of their calls."""
