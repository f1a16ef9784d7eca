"""What a key's holder may have, has and had: limits, levels, caches, series, stored responses."""
