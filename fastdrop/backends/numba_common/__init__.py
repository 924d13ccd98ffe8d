"""What both Numba backends are made of: the scalar rule, and axes as they walk them."""
