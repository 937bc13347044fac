"""`python -m gpulet.cli`: the command line without its script."""

from gpulet.cli import main

if __name__ == "__main__":
    main()
