"""results.json, and the plots and the page that show it."""
