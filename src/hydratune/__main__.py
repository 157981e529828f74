"""`python -m hydratune` is the same command as `hydratune`."""

from hydratune.main import main

if __name__ == "__main__":
    main()
