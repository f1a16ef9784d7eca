"""``leanmoe bench governor``: goodput under overload, governed beside a fixed level 0."""
