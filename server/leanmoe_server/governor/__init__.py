"""The governor: raises the level of requests that name none while a server is overloaded."""
