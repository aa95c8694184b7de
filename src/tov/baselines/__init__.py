"""The methods that tov is compared with, a file a method."""
