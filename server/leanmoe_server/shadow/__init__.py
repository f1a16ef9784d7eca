"""Shadow quality: finished answers scored again, exact beside served, while nobody waits."""
