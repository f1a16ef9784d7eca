"""The offline subcommands of ``leanmoe``."""
