"""Runs: what one command does from files to files."""
