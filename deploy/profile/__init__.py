"""What traces say, shown and exported: pages, Perfetto, tables, comparisons."""
