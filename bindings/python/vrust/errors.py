"""What a failing call raises."""

import json


class VrustError(Exception):
    """A call or a request failed.

    `status` is the negative number of vrust.h, `code` its name such as "INVALID_ARGUMENT",
    `detail` a dict such as {"field": "top_p"}. `retryable` says whether the same call may succeed
    later without a change.
    """

    def __init__(self, status, code, message, detail="{}", retryable=False):
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.detail = json.loads(detail) if detail else {}
        self.retryable = retryable
