"""The load test against a server whose every timestamp is known: is it right, and how fast?"""
