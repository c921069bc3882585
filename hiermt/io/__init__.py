"""Models on disk and models of other libraries."""
