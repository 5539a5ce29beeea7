//! Hugepage regions with a fallback to ordinary pages: the only mmap of the project.
