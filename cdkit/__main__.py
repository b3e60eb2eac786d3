"""`python -m cdkit` is `cdkit`."""

from cdkit.cli.app import main

if __name__ == "__main__":
    main()
