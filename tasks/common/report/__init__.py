"""The report's parts: what is read, the frames behind the figures, the figures, sample cards, and the page."""
