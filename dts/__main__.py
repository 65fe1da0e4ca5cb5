"""`python -m dts`: the command line without an installed script."""

from dts.cli.app import main

if __name__ == "__main__":
    main()
