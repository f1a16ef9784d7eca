"""``leanmoe bench tools``: do other load generators see what ours sees?"""
