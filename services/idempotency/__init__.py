"""Requests that may be sent again: what they made is made once."""
