"""What the scripts of `benchmarks/` share: engines to measure, statistics, tables, documents."""
