"""Making the reference models: texts, training, packing, figures."""
