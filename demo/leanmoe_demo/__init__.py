"""The demo: the whole main job on the embedded model, driven through the command line."""
