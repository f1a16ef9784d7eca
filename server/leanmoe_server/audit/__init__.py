"""The audit trail of the policy: what was changed, when, by whom and why."""
