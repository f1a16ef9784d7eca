"""How many experts each layer keeps: the same for all, or what measured losses call for."""
