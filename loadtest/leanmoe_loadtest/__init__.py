"""The load test: Locust users that stream and measure."""
