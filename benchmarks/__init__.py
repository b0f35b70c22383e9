"""Research: this project beside mmdet, other servers and its own ceiling. Needs a checkout; nothing that is installed imports it."""
