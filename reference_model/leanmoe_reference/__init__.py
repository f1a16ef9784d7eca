"""The embedded reference MoE: a small real chat model, rebuilt from a wheel and 22 MB."""
