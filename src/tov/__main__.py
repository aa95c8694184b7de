"""`python -m tov`."""

from tov.cli.main import main

if __name__ == "__main__":
    main()
