"""One look for every report: the page, its style sheet and the colours of charts. Imports nothing of ours."""
