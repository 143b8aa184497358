"""What a release takes: wheels, and tests on every Python.  Not part of the package."""
