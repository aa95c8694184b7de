"""`python -m tov`."""

from tov.cli import main

if __name__ == "__main__":
    main()
