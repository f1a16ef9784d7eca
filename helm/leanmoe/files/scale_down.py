"""Takes the waiting pods away, so that they hold no GPUs; standard library only.

python scale_down.py: sets the replicas of $SCALE_URL to 0, with the token in $API_FOLDER.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import urllib.request
from pathlib import Path

FOLDER = Path(os.environ.get("API_FOLDER", "/secrets/api"))
# Straight to the cluster's API: proxies of the environment are for what lies outside.
PROXIES = urllib.request.ProxyHandler({})


def main() -> None:
    url = os.environ["SCALE_URL"]
    headers = {
        "Authorization": f"Bearer {(FOLDER / 'token').read_text().strip()}",
        "Content-Type": "application/merge-patch+json",
    }
    body = json.dumps({"spec": {"replicas": 0}}).encode()
    request = urllib.request.Request(url, data=body, headers=headers, method="PATCH")
    trusted = urllib.request.HTTPSHandler(
        context=ssl.create_default_context(cafile=str(FOLDER / "ca.crt"))
    )
    try:
        urllib.request.build_opener(PROXIES, trusted).open(request, timeout=30).close()
    except OSError as error:
        sys.exit(f"the pods keep their GPUs, {url} answered: {error}")
    print("scaled to 0, so that no GPU is held; an upgrade brings the pods back")


if __name__ == "__main__":
    main()
