//! A frozen process → its state and pages.
