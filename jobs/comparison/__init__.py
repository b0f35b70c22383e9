"""Parts of `jobs.compare`: the two sides, and the matching of their objects."""
