"""Parts of `jobs.compare`: the two sides, matching of their objects, and the HTML page."""
