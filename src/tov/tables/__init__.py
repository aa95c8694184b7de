"""Score tables: for each method a function that fills one, given a `Work`; and what all of them share."""
