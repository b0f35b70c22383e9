"""Two models, endpoints or sets of saved answers over the same photos: who answers, what matches, and the page that shows it."""
