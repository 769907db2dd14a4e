"""One look for every report: the page with its style sheet, and its figures. Imports nothing of ours."""
