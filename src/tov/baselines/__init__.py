"""What tov is measured against, a file a method: arithmetic on arrays and text; knows no files, no models, no torch."""
