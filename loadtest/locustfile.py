"""For Locust's own command line and web page:

locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --chat-model NAME ChatUser
"""

from leanmoe_loadtest.user import ChatUser, CompletionsUser

__all__ = ["ChatUser", "CompletionsUser"]
