"""The model card and the page of a lean checkpoint: only what its files say was measured."""
