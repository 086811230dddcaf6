"""The programs: flags, and a `main` that calls the library."""
