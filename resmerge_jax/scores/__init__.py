"""Tables of benchmark scores as the ResMerge paper prints them."""
