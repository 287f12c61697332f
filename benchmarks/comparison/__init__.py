"""The parts of `benchmarks/methods.py`: what is forgotten, by which methods, how a run is made, measured and shown."""
