"""Selection methods: which experts of each layer stay."""
