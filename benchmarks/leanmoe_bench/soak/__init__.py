"""Many mixed requests at once, then: do the counters say what really ran, and does nothing grow?"""
