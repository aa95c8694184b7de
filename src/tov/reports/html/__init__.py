"""Pages: one self-contained HTML file of what run folders say. Renders; computes nothing but the look of numbers."""
