"""Looking at a store: its figures, pictures, and one HTML page."""
