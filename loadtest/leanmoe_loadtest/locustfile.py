"""For Locust's own command line and web page:

locust -f "$(leanmoe loadtest --locustfile)" --host http://127.0.0.1:8000 ChatUser
"""

from leanmoe_loadtest.user import ChatUser, CompletionsUser

__all__ = ["ChatUser", "CompletionsUser"]
