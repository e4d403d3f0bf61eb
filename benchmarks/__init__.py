"""What a user runs to measure: bench_*.py by `make bench`, the package gpu by `make gpu`."""
